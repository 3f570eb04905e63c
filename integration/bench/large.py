"""Figures of size: a layer of very many entries, and one of very many bytes."""

import json
import os
import random
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

from integration.bench.figure import BUILD, EROFS, FILLING, FUSE, QUIET, Figure, push_lazy, until_complete
from integration.bench.turns import seconds
from integration.harness.node import node
from integration.harness.registry import Registry
from integration.images.oci import packed
from integration.images.torture import torture_image
from snapshotter.format.codec import Codec
from snapshotter.format.digest import from_raw
from snapshotter.format.erofs import write_image
from snapshotter.format.index import BuildOptions, Index
from snapshotter.format.index_build import build_index

MANY = 100_000
IN_EACH_FOLDER = 250
LONGEST_MOUNT_S = 3.0
MOST_GROWTH = 20_000_000
LONGEST_DELAY_S = 0.050
PROBE_PAUSE_S = 0.002
FILL_FILES = 1000
FILL_FILE_SIZE = 1_000_000
MOST_RESIDENT = 300_000_000
LONGEST_IMAGE_S = 1.5
ABOUT_EACH = 200
MOST_EACH = 210
PLACE = b"/_abcdefghijklm/node"
"""As long as that of a node's shared content: every file has it in its inode."""
NAME_OVERHEAD = 12
"""What EROFS needs for a name besides the name."""


def entries(registry: Registry) -> Figure:
    """Pull a layer of 100 000 entries while another layer is in use."""
    return _entries(registry, EROFS)


def fuse_entries(registry: Registry) -> Figure:
    """The same on the fuse plane."""
    return _entries(registry, FUSE)


def _entries(registry: Registry, plane: str) -> Figure:
    push_lazy(registry, torture_image(BUILD / "torture"), "torture")
    push_lazy(registry, packed(BUILD / "many", f"{MANY} {IN_EACH_FOLDER}", (_many_entries,), {"Cmd": ["sh"]}), "many")
    with node(registry, settings=QUIET, plane=plane) as lazy:
        lazy.pull("torture:lazy")
        status, number = lazy.daemon.json("status"), lazy.daemon.json("layers")[0]["number"]
        served = Path(status["mountpoint"], str(status["session"]), "layers", str(number))
        before = lazy.daemon.process.resident_bytes()
        with _probing(served) as delays:
            took = seconds(lambda: lazy.pull("many:lazy"))
        growth = lazy.daemon.process.resident_bytes() - before
    delay = max(delays)
    met = took <= LONGEST_MOUNT_S and growth < MOST_GROWTH and delay <= LONGEST_DELAY_S
    return Figure(
        f"{plane} plane: layer of {MANY} entries: pulled, daemon's growth, longest delay of a FUSE request meanwhile",
        f"≤ {LONGEST_MOUNT_S:.0f} s, < {MOST_GROWTH / 1e6:.0f} MB, ≤ {LONGEST_DELAY_S * 1000:.0f} ms",
        f"{took:.2f} s, {growth / 1e6:.1f} MB, {delay * 1000:.0f} ms",
        met,
        f"{len(delays)} lookups meanwhile",
    )


def filling(registry: Registry) -> Figure:
    """Fetch a layer of 1 GB in the background."""
    push_lazy(
        registry, packed(BUILD / "filling", f"{FILL_FILES} {FILL_FILE_SIZE}", (_gigabyte,), {"Cmd": ["sh"]}), "filling"
    )
    with node(registry, settings=FILLING) as lazy:
        lazy.pull("filling:lazy")
        took = seconds(lambda: until_complete(lazy, "filling:lazy"))
        peak = lazy.daemon.process.peak_resident_bytes()
        received = lazy.traffic().received
    detail = f"{received / 1e9:.2f} GB came over the wire in {took:.1f} s"
    what = "layer of 1 GB filled in the background: daemon's largest size"
    return Figure(what, f"< {MOST_RESIDENT / 1e6:.0f} MB", f"{peak / 1e6:.0f} MB", peak < MOST_RESIDENT, detail)


def image(_registry: Registry) -> Figure:
    """Turn the index of a TOC of 100 000 entries into its EROFS image; the seconds are CPU seconds of this process."""
    index = Index(build_index(_many_rows(), BuildOptions(Codec.GZIP, MANY, MANY, from_raw(bytes(32)), False)), "many")
    began = time.process_time()
    size = len(write_image(index, PLACE))
    took = time.process_time() - began
    listed = (name for node in range(index.node_count) for _, name, _ in index.entries(node, 0))
    each = (size - sum(NAME_OVERHEAD + len(name) for name in listed)) / index.entry_count
    return Figure(
        f"EROFS image of a layer of {MANY} entries: CPU, bytes of an entry without its name",
        f"≤ {LONGEST_IMAGE_S} s, about {ABOUT_EACH}",
        f"{took:.2f} s, {each:.0f}",
        took <= LONGEST_IMAGE_S and each <= MOST_EACH,
        f"{size / 1e6:.1f} MB",
    )


@contextmanager
def _probing(tree: Path) -> Iterator[list[float]]:
    """Look names up that nobody has asked for, one after the other, and note how long each takes in seconds.

    Each name is new: the kernel has no answer of its own, so every lookup is a FUSE operation.
    """
    delays: list[float] = []
    stop = threading.Event()

    def probe() -> None:
        number = 0
        while not stop.wait(PROBE_PAUSE_S):
            began = time.perf_counter()
            os.path.lexists(tree / f"no-such-name-{number}")
            delays.append(time.perf_counter() - began)
            number += 1

    thread = threading.Thread(target=probe)
    thread.start()
    try:
        yield delays
    finally:
        stop.set()
        thread.join()


def _many_entries(tar: tarfile.TarFile) -> None:
    folders = MANY // (IN_EACH_FOLDER + 1)
    for folder in range(folders):
        info = tarfile.TarInfo(f"folder-{folder:04}")
        info.type, info.mode = tarfile.DIRTYPE, 0o755
        tar.addfile(info)
        for number in range(IN_EACH_FOLDER):
            data = b"%d of %d\n" % (number, folder)
            info = tarfile.TarInfo(f"folder-{folder:04}/file-{number:04}.txt")
            info.size = len(data)
            tar.addfile(info, BytesIO(data))


def _many_rows() -> bytes:
    """A TOC of as many entries, each file of a content of its own."""
    rows: list[dict[str, object]] = []
    for folder in range(MANY // (IN_EACH_FOLDER + 1)):
        rows.append({"name": f"folder-{folder:04}/", "type": "dir", "mode": 0o755})
        for number in range(IN_EACH_FOLDER):
            digest = f"sha256:{len(rows) + 1:064x}"
            name = f"folder-{folder:04}/file-{number:04}.txt"
            rows.append({"name": name, "type": "reg", "size": 1, "innerOffset": len(rows), "chunkDigest": digest})
    return json.dumps({"version": 1, "entries": rows}).encode()


def _gigabyte(tar: tarfile.TarFile) -> None:
    source = random.Random(1)
    for number in range(FILL_FILES):
        info = tarfile.TarInfo(f"file-{number:04}")
        info.size = FILL_FILE_SIZE
        tar.addfile(info, BytesIO(source.randbytes(FILL_FILE_SIZE)))
