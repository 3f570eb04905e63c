"""Ends and beginnings: a mount outlives nobody wrongly, and a fresh one takes a dead one's place."""

import errno
import os
import signal
from pathlib import Path

import pytest

from snapshotter.errors import PlaneError
from snapshotter.plane.fuse.kernel import FS_TYPE, detach_ours
from snapshotter.plane.mounts import MS_RDONLY, detach, mount, mounts_on
from tests.mount import torture
from tests.mount.conftest import PATIENCE_S, Served, child, run, start

ERRNO = """
try:
    os.stat(sys.argv[1])
except OSError as error:
    print(json.dumps(error.errno))
"""
READ = "print(json.dumps(open(sys.argv[1]).read()))"


def test_killed_server_leaves_enotconn_and_a_fresh_mount_takes_its_place(own_server: Served) -> None:
    own_server.stop()
    assert child(ERRNO, own_server.layer(torture.TORTURE)) == errno.ENOTCONN
    again = start(own_server.mount_point.parent, session=8)
    try:
        assert child(READ, again.layer(torture.TORTURE) / "dir/file") == "hello\n"
        assert [entry.fs_type for entry in mounts_on(again.mount_point)] == [FS_TYPE]
    finally:
        again.clear()


def test_stacked_stale_mounts_are_all_detached(own_server: Served) -> None:
    own_server.stop()
    for _ in range(3):
        fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        mount("estargz", own_server.mount_point, FS_TYPE, MS_RDONLY, f"fd={fd},rootmode=40000,user_id=0,group_id=0")
        os.close(fd)
    assert detach_ours(own_server.mount_point) == 4
    assert mounts_on(own_server.mount_point) == []


def test_a_foreign_mount_is_left_alone(tmp_path: Path) -> None:
    run("mount", "-t", "tmpfs", "none", tmp_path)
    try:
        with pytest.raises(PlaneError, match="tmpfs"):
            detach_ours(tmp_path)
        assert len(mounts_on(tmp_path)) == 1
    finally:
        detach(tmp_path)


def test_a_server_that_ends_by_itself_unmounts_nothing(own_server: Served) -> None:
    assert own_server.process.stdin is not None
    own_server.process.stdin.close()
    assert own_server.process.wait(PATIENCE_S) == 0
    assert [entry.fs_type for entry in mounts_on(own_server.mount_point)] == [FS_TYPE]


def test_unmounting_under_a_server_is_an_error_it_says(own_server: Served) -> None:
    detach(own_server.mount_point)
    assert own_server.process.wait(PATIENCE_S) == 1
    log = (own_server.mount_point.parent / "log").read_text()
    assert "PlaneError" in log
    assert "was unmounted" in log


def test_a_container_keeps_its_files_while_the_mount_point_is_detached(own_server: Served, tmp_path: Path) -> None:
    merged = own_server.overlay(tmp_path / "container", torture.TORTURE)
    detach(own_server.mount_point)
    assert own_server.process.poll() is None
    assert child(READ, merged / "dir/file") == "hello\n"
    own_server.process.send_signal(signal.SIGKILL)
