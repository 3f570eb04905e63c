"""Figures of converting: time and size against another tool, and memory for a very large layer."""

import json
import os
import resource
import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from integration.bench.figure import BUILD, Figure
from integration.bench.turns import in_turns
from integration.harness.containerd import Ctr, run
from integration.harness.daemon import SNAPSHOTTER
from integration.harness.node import WHOLE, node
from integration.harness.registry import Registry
from integration.images.debian import bulky_image, debian_image

ROUNDS = 3
MOST_TIME = {"gzip": 0.25, "zstd:chunked": 0.5}
OPTIONS = {"gzip": (), "zstd:chunked": ("--zstdchunked",)}
MOST_SIZE = 1.02
MOST_MEMORY = 300_000_000
LOOK_S = 0.02
TARGET = "bench.invalid/debian:lazy"


@dataclass
class Converted:
    """What one tool needed in each round, and what came out, which is the same each time."""

    processor_s: list[float]
    size: int = 0


def estargz(registry: Registry) -> Figure:
    """Convert a Debian image to gzip members, each tool at its default level."""
    return _against(registry, "gzip")


def zstd_chunked(registry: Registry) -> Figure:
    """The same to zstd frames."""
    return _against(registry, "zstd:chunked")


def memory(registry: Registry) -> Figure:
    """Convert an image of one layer of 2 GB from a registry to it, and look at the largest resident sets meanwhile."""
    image = bulky_image(BUILD / "bulky")
    with registry.client() as client:
        image.push(client, "bulky:plain")
    peaks, seconds = {}, []
    for form, options in OPTIONS.items():
        places = [f"{registry.host}/bulky:{tag}" for tag in ("plain", f"lazy{len(options)}")]
        began = time.perf_counter()
        command = [*SNAPSHOTTER, "image", "convert", "--json", *options, *places]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as convert:
            peaks[form] = _peak(convert)
        seconds.append(time.perf_counter() - began)
        if convert.returncode:
            message = f"converting {places[0]} to {form} ended with {convert.returncode}"
            raise RuntimeError(message)
    return Figure(
        f"peak memory of converting a layer of {image.unpacked / 1e9:.1f} GB, all processes ({', '.join(peaks)})",
        f"< {MOST_MEMORY / 1e6:.0f} MB",
        ", ".join(f"{peak / 1e6:.0f} MB" for peak in peaks.values()),
        max(peaks.values()) < MOST_MEMORY,
        f"{' and '.join(f'{took:.0f} s' for took in seconds)} on {len(os.sched_getaffinity(0))} processors",
    )


def _against(registry: Registry, form: str) -> Figure:
    """Both tools from the content store of one containerd to it: the other one knows no other place."""
    image = debian_image(BUILD / "debian")
    name = f"{registry.host}/debian:plain"
    with registry.client() as client:
        image.push(client, "debian:plain")
    ours, theirs = Converted([]), Converted([])
    with node(registry, snapshotter=WHOLE) as whole:
        ctr_remote = whole.ctr(program="ctr-remote")
        ctr_remote("content", "fetch", "--plain-http", name)
        options = ("--containerd", str(whole.containerd.address), *OPTIONS[form])
        mine = [*SNAPSHOTTER, "image", "convert", *options, f"containerd:{name}", f"containerd:{TARGET}"]
        other = [*ctr_remote.prefix, "images", "optimize", "--no-optimize", "--oci", *OPTIONS[form], name, TARGET]
        runs = (partial(_convert, ctr_remote, mine, ours), partial(_convert, ctr_remote, other, theirs))
        mine_s, other_s = (statistics.median(one) for one in in_turns(runs, rounds=ROUNDS))
    time_ratio, size_ratio = mine_s / other_s, ours.size / theirs.size
    processor = [statistics.median(one.processor_s) for one in (ours, theirs)]
    return Figure(
        f"convert {image.unpacked / 1e6:.0f} MB of Debian in two layers to {form} at the default level, "
        "against ctr-remote: time, size",
        f"≤ {MOST_TIME[form]} ×, ≤ {MOST_SIZE} ×",
        f"{time_ratio:.2f} ×, {size_ratio:.3f} ×",
        time_ratio <= MOST_TIME[form] and size_ratio <= MOST_SIZE,
        f"{mine_s:.1f} s and {other_s:.1f} s, of processors {processor[0]:.1f} s and {processor[1]:.1f} s; "
        f"{ours.size / 1e6:.1f} MB and {theirs.size / 1e6:.1f} MB; {ROUNDS} rounds",
    )


def _convert(ctr: Ctr, command: Sequence[str], result: Converted) -> float:
    """Seconds of one conversion to `TARGET`, which is gone afterwards: the next must not find its blobs."""
    with _processor(result):
        began = time.perf_counter()
        run(command)
        took = time.perf_counter() - began
    digest = next(line.split()[2] for line in ctr("images", "ls").splitlines() if line.startswith(TARGET))
    document = json.loads(ctr("content", "get", digest))
    if "manifests" in document:  # of the same blobs, one for each family of tools
        document = json.loads(ctr("content", "get", document["manifests"][0]["digest"]))
    result.size = sum(layer["size"] for layer in document["layers"])
    ctr("images", "rm", "--sync", TARGET)
    return took


@contextmanager
def _processor(result: Converted) -> Iterator[None]:
    """Note what processor time the programs took that were run in the block."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    yield
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    result.processor_s.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)


def _peak(process: "subprocess.Popen[bytes]") -> int:
    """Sum of the largest resident sets of a process and all that it started, until it ends."""
    peaks: dict[int, int] = {}
    while process.poll() is None:
        for pid in _family(process.pid):
            peaks[pid] = max(peaks.get(pid, 0), _high_water(pid))
        time.sleep(LOOK_S)
    return sum(peaks.values())


def _family(pid: int) -> list[int]:
    """A process and all below it. Source: proc(5), /proc/pid/task/tid/children."""
    found = [pid]
    for tasks in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = tasks.read_text().split()
        except OSError:  # the thread has ended
            continue
        found += [one for child in children for one in _family(int(child))]
    return found


def _high_water(pid: int) -> int:
    """Source: proc(5), VmHWM in kB; a process that has ended has none."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)
