"""What the daemon says that it takes up is what the disk says, with containers that write, link, punch and hold deleted files."""

import os
import subprocess
from collections.abc import Iterable
from pathlib import Path

from integration.conftest import ALONE, StartNode
from integration.harness.cri import Container
from integration.harness.node import CRI_NAMESPACE, Node
from integration.harness.process import wait_for
from integration.harness.registry import Registry
from integration.images.trial import FILES_IN_FOLDER, PROBE

DISK = 64 << 20
CACHE = ("objects", "late", "partial", "unproven")
SLACK = 512 << 10
"""What the file system takes for itself meanwhile: extents, directories, inodes that it initialises."""
HOLDS = "exec 5< /change/1; touch /tmp/open; exec sleep 1000000"
"""For a shell: keep a file open, so that the kernel does not forget it, which it may with all others at any time."""

CHANGES = """
dd if=/dev/urandom of=/plain bs=1000 count=300; ln /plain /linked; ln /plain /linked-again
dd if=/dev/urandom of=/sparse bs=4096 count=1 seek=2000; truncate -s 9000000 /sparse; mkdir /folder; ln -s /plain /folder/link
dd if=/dev/urandom of=/deleted bs=1000 count=500; exec 5< /deleted; rm /deleted; touch /ready; exec sleep 1000000
"""
"""For a shell: hard links, holes, and a deleted file that stays open."""


def du(paths: Iterable[Path]) -> int:
    """Bytes on disk of all regular files below, each inode once."""
    found = {}
    for path in paths:
        for parent, _, names in os.walk(path):
            for name in names:
                status = os.lstat(os.path.join(parent, name))
                found[status.st_ino] = status.st_blocks * 512
    return sum(found.values())


def written_back(this: Node) -> None:
    """Delayed writes get their blocks."""
    subprocess.run(["sync", "-f", this.daemon.root], check=True)


def cache_agrees(this: Node) -> bool:
    """Whether the daemon's sums are what lies in its directories."""
    written_back(this)
    said = this.daemon.json("cache", "usage")
    by_domain = sum(one["object_bytes"] + one["partial_bytes"] for one in said["domains"])
    on_disk = du(this.daemon.root / name for name in CACHE)
    return bool(said["used"] - said["deleted_open"] == on_disk == by_domain)


def unnamed_bytes(this: Node) -> int:
    """Bytes that the file system has given away and that no name leads to, with its own."""
    written_back(this)
    status = os.statvfs(this.daemon.root)
    return (status.f_blocks - status.f_bfree) * status.f_frsize - du([this.daemon.root])


def deleted_open(this: Node) -> int:
    return int(this.daemon.json("cache", "usage")["deleted_open"])


def read_folder(box: Container, folder: str) -> None:
    paths = [f"/{folder}/{name}" for name in (*range(FILES_IN_FOLDER), "large", "program")]
    assert " EIO" not in box.exec([PROBE, "each", "scatter", *paths]).stdout


def test_cache_usage_adds_up_with_du_and_with_the_file_system(
    start_node: StartNode, trial_image: str, plane: str
) -> None:
    this = start_node(ALONE, plane=plane, disk=DISK)
    image = this.pull(trial_image)
    own = unnamed_bytes(this)
    boxes = [this.start(image, "/bin/busybox", "sh", "-c", HOLDS) for _ in range(2)]
    for box in boxes:
        wait_for((this.rootfs(box) / "tmp/open").exists, "a container that has a file open")
        read_folder(box, "change")
    # Of a large file a part: it lies in `partial`.
    assert boxes[0].exec(["/bin/busybox", "dd", "if=/tree/large", "of=/dev/null", "bs=1", "count=1"]).exit_code == 0
    wait_for(lambda: cache_agrees(this), "sums that agree with du")
    wait_for(lambda: deleted_open(this) == 0, "the end of reads")
    this.daemon.command("cache", "prune", "--all")
    wait_for(lambda: cache_agrees(this), "sums that agree with du after the cache was emptied")
    # On the erofs plane the kernel keeps what the containers have found; no name leads there any more.
    wait_for(lambda: (deleted_open(this) > 0) == (plane == "erofs"), "what containers hold, and nothing else")
    add_up = lambda: abs(unnamed_bytes(this) - own - deleted_open(this)) < SLACK  # noqa: E731
    wait_for(add_up, "sums that agree with the file system")
    read_folder(boxes[1], "tree")
    wait_for(lambda: cache_agrees(this), "sums that agree with du when files have come again")
    this.remove_sandbox()
    wait_for(lambda: deleted_open(this) == 0, "the end of what containers held")
    wait_for(add_up, "sums that agree with the file system in the end")


def test_usage_of_ordinary_snapshots_is_that_of_du(start_node: StartNode, registry: Registry) -> None:
    this = start_node(ALONE, plane="fuse", disk=DISK)
    # It has no TOC: each of its layers is unpacked.
    image = this.pull("small:plain")
    box = this.start(image, "/bin/busybox", "sh", "-c", CHANGES)
    wait_for((this.rootfs(box) / "ready").exists, "a container that has changed things")
    written_back(this)
    snapshots = this.daemon.root / "snapshots"
    expected = sorted(
        int(_run("du", "-s", "--block-size=1", str(top / "fs")).split()[0]) for top in snapshots.iterdir()
    )
    keys = this.snapshots()
    said = [
        int(this.ctr(CRI_NAMESPACE)("snapshots", "--snapshotter", this.snapshotter, "usage", "-b", key).split()[-2])
        for key in keys
    ]
    assert len(keys) == len(expected)
    assert sorted(said) == expected
    assert this.daemon.json("cache", "usage")["used"] == 0


def _run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
