"""`snapshotter image optimize` with a real containerd: what a container read is in front, and nothing of it is left behind."""

import json
import os
import pty
import select
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from integration.conftest import BUILD, QUIET
from integration.harness.daemon import SNAPSHOTTER
from integration.harness.leftovers import MARKER, processes_rooted_in
from integration.harness.node import LAZY, Node, node
from integration.harness.process import wait_for
from integration.harness.registry import Registry
from integration.images.script import (
    FIRST,
    LINE,
    NEVER,
    SCRIPT,
    SECOND,
    SHELL,
    SLEEPER,
    UID,
    libraries,
    script_image,
)

TIMEOUT_S = 120
LANDMARK = ".prefetch.landmark"
SOURCE, TARGET = "script:plain", "script:optimized"
# Longer than any of these takes: what ends them is something else.
NEVER_OVER = ("--period", "1000")


@pytest.fixture(scope="module")
def place(registry: Registry) -> Iterator[Node]:
    """A node with our snapshotter, which these tests share: none of them may leave anything on it."""
    with registry.client() as client:
        script_image(BUILD / "script").push(client, SOURCE)
    with node(registry, settings=QUIET) as made:
        yield made


@pytest.fixture(autouse=True)
def nothing_is_left(place: Node) -> Iterator[None]:
    """No test leaves anything behind, but what it pulled itself and removes."""
    yield
    assert remains(place) == {}


def begin(node: Node, *options: str, source: str = SOURCE, **streams: Any) -> subprocess.Popen[str]:
    """Start an optimization, in a namespace whose name is that of the control group that the harness removes."""
    argv = [*SNAPSHOTTER, "image", "optimize", "--plain-http", "--containerd", str(node.containerd.address)]
    argv += ["--namespace", node.place.name, "--scratch", str(scratch(node)), *options]
    env = {**os.environ, MARKER: os.environ.get(MARKER, ""), "HOME": str(node.place.folder), "ESTARGZ_TRACEBACK": "1"}
    for variable in ("CONTAINERD_NAMESPACE", "CONTAINERD_ADDRESS", "DOCKER_CONFIG"):
        env.pop(variable, None)
    given = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
    return subprocess.Popen([*argv, node.reference(source), node.reference(TARGET)], text=True, env=env, **given)


def end(process: subprocess.Popen[str], words: str | None = None) -> tuple[int, str, str]:
    """Exit code and what it said."""
    out, said = process.communicate(words, timeout=TIMEOUT_S)
    return process.returncode, out, said


def optimize(node: Node, *options: str, source: str = SOURCE) -> tuple[str, str]:
    """Optimize the image, and return what was said on both streams."""
    code, out, said = end(begin(node, *options, source=source))
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
        "mounts": [mount.path for mount in node.mounts() if "estargz-sample" in mount.path],
        "processes": [str(pid) for pid in processes_rooted_in(node.place.folder)],
    }
    return {kind: names for kind, names in found.items() if names}


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
    import gzip
    import io
    import tarfile

    # The footer is the last 51 bytes; its extra field ends with the offset in 16 hexadecimal digits and "STARGZ".
    footer = blob[-51:]
    offset = int(footer[16:32], 16)
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(blob[offset:-51]))) as tar:
        content = tar.extractfile("stargz.index.json")
        assert content is not None
        return list(json.load(content)["entries"])


def recorded(path: Path) -> list[str]:
    """The paths of a record file."""
    return [json.loads(line)["path"] for line in path.read_text().splitlines()]


def test_what_the_program_reads_until_it_is_ready_is_in_front_in_order(place: Node) -> None:
    out, said = optimize(place, "--wait-on-line", LINE, *NEVER_OVER)
    lower, upper = fronts(place)
    assert upper == [SCRIPT, FIRST, SECOND]
    assert lower[:2] == ["etc/passwd", "etc/group"]
    assert set(lower[2:]) - {SLEEPER} == {SHELL, *libraries()}
    assert lower[2] == SHELL
    assert f"first from /app as {UID}\n" in out
    assert "second hello\n" in said
    assert NEVER not in upper
    assert out.splitlines()[-1].startswith(f"{place.reference(TARGET)}@sha256:")
