"""A disk that is full, over its quota or failing: containers read on, status says so, and it is over when the disk is well."""

import errno
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from integration.conftest import ALONE, QUIET, StartNode
from integration.harness.cri import Container
from integration.harness.disk import BadDisk, full_disk
from integration.harness.node import Node
from integration.harness.process import wait_for
from integration.harness.registry import Registry
from integration.images.dialects import push_built, small_layers
from integration.images.sample import SMALL_OUTPUT, SMALL_WORKLOAD
from integration.images.trial import CHUNK, PROBE, content, expected, large
from snapshotter.format.footer import Flavor

SLEEP = ("/bin/busybox", "sleep", "1000000")
DISK = 64 << 20
RECOVERY_S = 60.0


@pytest.fixture(scope="module")
def second_image(registry: Registry) -> str:
    """second:1, which no node of this file has before it asks for it."""
    with registry.client() as client:
        push_built(client, "second:1", small_layers(Flavor.ESTARGZ))
    return "second:1"


def started(this: Node) -> Container:
    """A running container whose tools are on the node."""
    box = this.start(this.reference("trial:lazy"), *SLEEP)
    assert box.exec(["/bin/busybox", "sh", "-c", "/bin/probe uid"]).stdout == "0 0\n"
    return box


def read(box: Container, *paths: str, how: str = "read") -> list[str]:
    """What the probe says of files."""
    return box.exec([PROBE, "each", how, *paths]).stdout.splitlines(keepends=True)


def is_cached(this: Node, data: bytes) -> bool:
    """Whether a file's content is among the objects."""
    name = hashlib.sha256(data).hexdigest()
    return any((this.daemon.root / "objects").glob(f"*/node/{name[:2]}/{name}"))


def problems(this: Node) -> list[str]:
    return [str(one) for one in this.daemon.json("status")["problems"]]


def degraded(this: Node, word: str) -> bool:
    """Whether status says so, with this word."""
    return any(one.startswith("degraded") and word in one for one in problems(this))


def everything_reads_right(box: Container, folder: str, numbers: range) -> None:
    files = {f"/{folder}/{number}": content(folder, number) for number in numbers} | {f"/{folder}/large": large(folder)}
    for how in ("read", "map", "scatter"):
        assert read(box, *files, how=how) == [expected(data, how) for data in files.values()]


def keeps_again(this: Node, box: Container, folder: str) -> None:
    """Nothing is said of the disk any more, and what is read is kept."""
    wait_for(lambda: problems(this) == [], "a disk that is well again", RECOVERY_S)
    assert read(box, f"/{folder}/20") == [expected(content(folder, 20))]
    assert is_cached(this, content(folder, 20))
    assert this.daemon.json("status")["read_errors"] == 0


def test_disk_that_somebody_else_fills_stops_no_container(
    start_node: StartNode, trial_image: str, second_image: str, plane: str
) -> None:
    this = start_node(ALONE, plane=plane, disk=DISK)
    this.pull(trial_image)
    box = started(this)
    with full_disk(this.daemon.root / "filler"):
        everything_reads_right(box, "change", range(8))
        wait_for(lambda: degraded(this, "free space"), "word of the full disk")
        # No room for what containerd would have to be told: refused in words, not half done.
        with pytest.raises(grpc.RpcError, match=r"no room|No space"):
            this.pull(second_image)
        everything_reads_right(box, "tree", range(8))
    keeps_again(this, box, "tree")
    assert this.run(this.pull(second_image), *SMALL_WORKLOAD).stdout == SMALL_OUTPUT
    everything_reads_right(started(this), "change", range(8))


@pytest.fixture
def bad_disk_node(start_node: StartNode, plane: str) -> Iterator[tuple[Node, BadDisk]]:
    """A node whose disk fails on order."""
    with tempfile.TemporaryDirectory() as folder:
        disk = BadDisk(Path(folder), "/s/root")
        yield start_node(QUIET, plane=plane, environ=disk.environ), disk


@pytest.mark.parametrize("code", [errno.EDQUOT, errno.EIO, errno.EROFS], ids=errno.errorcode.get)
def test_disk_that_refuses_writes_stops_no_container(
    bad_disk_node: tuple[Node, BadDisk], trial_image: str, second_image: str, code: int
) -> None:
    this, disk = bad_disk_node
    this.pull(trial_image)
    box = started(this)
    with disk.failing(writes=code):
        everything_reads_right(box, "change", range(8))
        wait_for(lambda: degraded(this, os.strerror(code)), "word of the disk")
        with pytest.raises(grpc.RpcError, match=rf"disk I/O error|{os.strerror(code)}"):
            this.pull(second_image)
    keeps_again(this, box, "change")
    assert this.run(this.pull(second_image), *SMALL_WORKLOAD).stdout == SMALL_OUTPUT


@pytest.mark.parametrize("writes", [0, errno.EIO], ids=["only-reads-fail", "writes-fail-too"])
def test_content_that_the_disk_does_not_give_back_is_fetched_again(
    bad_disk_node: tuple[Node, BadDisk], trial_image: str, writes: int
) -> None:
    this, disk = bad_disk_node
    this.pull(trial_image)
    box = started(this)
    path, data = "/change/large", large("change")
    # The end of the first chunk: all of it is on the node then, and the kernel has read a part.
    first = box.exec(["/bin/busybox", "dd", f"if={path}", "bs=1", f"skip={CHUNK - 1}", "count=1"])
    assert first.exit_code == 0
    with disk.failing(reads=errno.EIO, writes=writes):
        assert read(box, path, how="scatter") == [expected(data, "scatter")]
    assert "Input/output error" in this.daemon.log()
    keeps_again(this, box, "change")
