"""Runs of `snapshotter image optimize` on a node, and what is left of them there."""

import gzip
import io
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from integration.conftest import BUILD, QUIET
from integration.harness.daemon import SNAPSHOTTER
from integration.harness.leftovers import MARKER, processes_rooted_in
from integration.harness.node import LAZY, Node, node
from integration.harness.registry import Registry
from integration.images.script import (
    LINE,
    script_image,
)

TIMEOUT_S = 120
LANDMARK = ".prefetch.landmark"
SOURCE, TARGET = "script:plain", "script:optimized"
# Longer than any of these takes: what ends them is something else.
NEVER_OVER = ("--period", "1000")


@contextmanager
def node_with_script(registry: Registry) -> Iterator[Node]:
    """A node with our snapshotter, and the image in its registry."""
    with registry.client() as client:
        script_image(BUILD / "script").push(client, SOURCE)
    with node(registry, settings=QUIET) as made:
        yield made
    # Where every shim has its runtime remember containers, whosever its containerd is.
    shutil.rmtree(Path("/run/containerd/runc", made.place.name), ignore_errors=True)


def begin(
    node: Node, *options: str, source: str = SOURCE, target: str = TARGET, **streams: Any
) -> subprocess.Popen[str]:
    """Start an optimization, in a namespace whose name is that of the control group that the harness removes."""
    argv = [*SNAPSHOTTER, "image", "optimize", "--plain-http", "--containerd", str(node.containerd.address)]
    argv += ["--namespace", node.place.name, "--scratch", str(scratch(node)), *options]
    env = {**os.environ, MARKER: os.environ.get(MARKER, ""), "HOME": str(node.place.folder), "ESTARGZ_TRACEBACK": "1"}
    for variable in ("CONTAINERD_NAMESPACE", "CONTAINERD_ADDRESS", "DOCKER_CONFIG"):
        env.pop(variable, None)
    given = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
    places = [name if ":/" in name or "containerd:" in name else node.reference(name) for name in (source, target)]
    return subprocess.Popen([*argv, *places], text=True, env=env, **given)


def end(process: subprocess.Popen[str], words: str | None = None) -> tuple[int, str, str]:
    """Exit code and what it said."""
    out, said = process.communicate(words, timeout=TIMEOUT_S)
    return process.returncode, out, said


def optimize(node: Node, *options: str, source: str = SOURCE, target: str = TARGET) -> tuple[str, str]:
    """Optimize the image, and return what was said on both streams."""
    code, out, said = end(begin(node, *options, source=source, target=target))
    assert code == 0, said
    return out, said


def scratch(node: Node) -> Path:
    """Where the command keeps what it needs meanwhile."""
    folder = node.place / "scratch"
    folder.mkdir(exist_ok=True)
    return folder


def remains(node: Node) -> dict[str, list[str]]:
    """All that is there of runs."""
    ctr = node.ctr(node.place.name)
    found = {
        "containers": ctr("containers", "ls", "--quiet").split(),
        "tasks": ctr("tasks", "ls", "--quiet").split(),
        "images": ctr.images(),
        "content": ctr.content(),
        "leases": ctr("leases", "ls", "--quiet").split(),
        "lazy snapshots": ctr.snapshots(LAZY),
        "snapshots": ctr.snapshots("overlayfs"),
        "scratch": os.listdir(scratch(node)),
        "mounts": sample_mounts(node),
        "processes": [str(pid) for pid in processes_rooted_in(node.place.folder)],
    }
    return {kind: names for kind, names in found.items() if names}


def sample_mounts(node: Node) -> list[str]:
    """Roots of sample containers."""
    return [mount.path for mount in node.mounts() if "estargz-sample" in mount.path]


def fronts(node: Node, tag: str = "optimized") -> list[list[str]]:
    """For each layer, lowest first, the names of regular files before the landmark, in order."""
    found = []
    with node.registry.client() as client:
        for layer in client.manifest("script", tag)["layers"]:
            entries = toc(client.blob("script", layer["digest"]))
            names = [entry["name"] for entry in entries if entry["type"] == "reg"]
            found.append(names[: names.index(LANDMARK)] if LANDMARK in names else [])
    return found


def toc(blob: bytes) -> Sequence[Any]:
    """The entries of an eStargz blob's table of contents, read by other means than ours."""
    # The footer is the last 51 bytes; its extra field ends with the offset in 16 hexadecimal digits and "STARGZ".
    footer = blob[-51:]
    offset = int(footer[16:32], 16)
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(blob[offset:-51]))) as tar:
        content = tar.extractfile("stargz.index.json")
        assert content is not None
        return list(json.load(content)["entries"])


@contextmanager
def ready(node: Node, *options: str, **more: Any) -> Iterator[subprocess.Popen[str]]:
    """A run whose program has said that it is ready; the block ends it."""
    process = begin(node, *NEVER_OVER, *options, **more)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if line.strip() == LINE:
                break
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def is_there(node: Node, tag: str) -> bool:
    """Whether the registry has the image of this tag."""
    with node.registry.client() as client:
        return client.has("script", tag)
