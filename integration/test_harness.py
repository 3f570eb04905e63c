"""The harness itself: what it says of a tree is true, and it leaves nothing behind however it ends."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from integration.fidelity import Clock, differences, report
from integration.harness.leftovers import CGROUPS, mounts_of
from integration.harness.node import WHOLE, node
from integration.harness.registry import Registry

TOP = Path(__file__).parent.parent
# A program that brings up a node with a running container, says where, and waits to be ended.
# A shell without job control starts background jobs with SIGINT ignored, and so may whatever runs the tests: it is taken back.
VICTIM = """
import signal, sys, time
from integration.harness.node import node
from integration.harness.registry import Registry
from integration.harness.scratch import termination_unwinds
signal.signal(signal.SIGINT, signal.default_int_handler)
registry = Registry.__new__(Registry)
registry.port = int(sys.argv[1])
with termination_unwinds(), node(registry, snapshotter="overlayfs") as whole:
    whole.start(whole.pull("pause:1"), "/bin/busybox", "sleep", "1000")
    print(whole.place.folder, flush=True)
    time.sleep(600)
"""


def is_gone(folder: Path) -> bool:
    """Nothing of a node in `folder` is on the machine any more."""
    groups = [*CGROUPS.glob(f"*/estargz-{folder.name}"), *CGROUPS.glob(f"estargz-{folder.name}")]
    return not folder.exists() and mounts_of(folder) == [] and groups == []


def test_node_leaves_nothing_when_its_block_ends(registry: Registry) -> None:
    with node(registry, snapshotter=WHOLE) as whole:
        folder = whole.place.folder
        assert whole.run(whole.pull("pause:1"), "/bin/busybox", "echo", "hello").stdout == "hello\n"
    assert is_gone(folder)


def test_node_leaves_nothing_when_its_block_fails(registry: Registry) -> None:
    with pytest.raises(ZeroDivisionError), node(registry, snapshotter=WHOLE) as whole:
        folder = whole.place.folder
        whole.start(whole.pull("pause:1"), "/bin/busybox", "sleep", "1000")
        raise ZeroDivisionError
    assert is_gone(folder)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_node_leaves_nothing_when_its_process_is_told_to_end(registry: Registry, number: signal.Signals) -> None:
    command = [sys.executable, "-c", VICTIM, str(registry.port)]
    with subprocess.Popen(command, cwd=TOP, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as victim:
        assert victim.stdout is not None
        assert victim.stderr is not None
        folder = Path(victim.stdout.readline().strip())
        assert folder.is_dir(), victim.stderr.read()
        victim.send_signal(number)
        victim.send_signal(number)
        try:
            victim.wait(60)
        finally:
            victim.terminate()  # one that did not end would hold the test up for as long as it sleeps
        victim.stderr.read()
    assert is_gone(folder)


def tree(folder: Path) -> Path:
    """A small tree with one of each kind that the changes below touch."""
    folder.mkdir()
    (folder / "file").write_bytes(b"content")
    os.link(folder / "file", folder / "linked")
    (folder / "folder").mkdir()
    os.symlink("target", folder / "symlink")
    os.mknod(folder / "device", 0o020644, os.makedev(1, 3))
    os.setxattr(folder / "folder", "user.name", b"value")
    for path in (folder / "file", folder / "folder", folder / "symlink", folder / "device", folder):
        os.utime(path, ns=(0, 1_500_000_000), follow_symlinks=False)
    return folder


def replace_link(folder: Path) -> None:
    (folder / "linked").unlink()
    (folder / "linked").write_bytes(b"content")
    os.utime(folder / "linked", ns=(0, 1_500_000_000))


def replace_device(folder: Path) -> None:
    (folder / "device").unlink()
    os.mknod(folder / "device", 0o020644, os.makedev(1, 5))


def replace_symlink(folder: Path) -> None:
    (folder / "symlink").unlink()
    os.symlink("other", folder / "symlink")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda folder: (folder / "file").write_bytes(b"cOntent"), "content"),
        (lambda folder: (folder / "file").write_bytes(b"longer content"), "size"),
        (lambda folder: (folder / "folder").chmod(0o711), "mode"),
        (lambda folder: os.chown(folder / "symlink", 1, 1, follow_symlinks=False), "owner"),
        (lambda folder: os.utime(folder / "folder", ns=(0, 1_500_000_001)), "mtime"),
        (lambda folder: os.setxattr(folder / "folder", "user.more", b""), "xattrs"),
        (lambda folder: (folder / "folder" / "new").mkdir(), "exists"),
        (replace_link, "hard links"),
        (replace_device, "device"),
        (replace_symlink, "target"),
    ],
)
def test_comparer_sees_every_kind_of_difference(tmp_path: Path, change: Callable[[Path], None], what: str) -> None:
    left, right = tree(tmp_path / "left"), tree(tmp_path / "right")
    assert report(differences(left, right)) == ""
    change(right)
    assert what in {difference.what for difference in differences(left, right)}


def test_comparer_can_round_times_to_seconds(tmp_path: Path) -> None:
    left, right = tree(tmp_path / "left"), tree(tmp_path / "right")
    for path in (right / "folder", right / "file", right / "symlink", right / "device", right):
        os.utime(path, ns=(0, 2_000_000_000), follow_symlinks=False)
    assert differences(left, right) != []
    assert report(differences(left, right, Clock.SECONDS)) == ""
