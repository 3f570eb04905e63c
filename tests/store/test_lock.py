import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from snapshotter.errors import StoreError, StoreLocked
from snapshotter.store.lock import RootLock, _is_dying

HOLDER = """
import sys
from pathlib import Path
from snapshotter.store.lock import RootLock
with RootLock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_second_holder_is_told_who_and_where(tmp_path: Path) -> None:
    with RootLock(tmp_path), pytest.raises(StoreLocked, match=f"{tmp_path}.*{os.getpid()}"):
        RootLock(tmp_path)


def test_released_lock_can_be_taken_again(tmp_path: Path) -> None:
    lock = RootLock(tmp_path / "new" / "root")
    lock.release()
    lock.release()
    with RootLock(tmp_path / "new" / "root"):
        pass


def test_lock_of_another_process_ends_with_it_even_if_killed(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"held\n"
            with pytest.raises(StoreLocked, match=str(holder.pid)):
                RootLock(tmp_path)
        finally:
            holder.kill()
    with RootLock(tmp_path):
        pass


def test_root_that_cannot_be_made_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="root directory"):
        RootLock(tmp_path / "file" / "root")


def status(proc: Path, pid: int, state: str = "S (sleeping)", shared: int = 0) -> None:
    (proc / str(pid)).mkdir(parents=True)
    lines = f"Name:\tx: y\nState:\t{state}\nSigPnd:\t{0:016x}\nShdPnd:\t{shared:016x}\nTgid:\t{pid}\n"
    (proc / str(pid) / "status").write_text(lines)


@pytest.mark.parametrize(
    ("state", "shared", "dying"),
    [
        ("S (sleeping)", 0, False),
        ("R (running)", 1 << 14, False),
        ("D (disk sleep)", 1 << 8, True),
        ("Z (zombie)", 0, True),
        ("X (dead)", 0, True),
    ],
)
def test_who_has_been_killed_is_dying(tmp_path: Path, state: str, shared: int, dying: bool) -> None:
    status(tmp_path, 5, state, shared)
    assert _is_dying("5", tmp_path) is dying


def test_who_is_gone_is_dying_and_who_is_not_named_is_not(tmp_path: Path) -> None:
    assert _is_dying("77", tmp_path)
    assert not _is_dying("", tmp_path)


def test_a_holder_that_is_dying_is_waited_for(tmp_path: Path) -> None:
    """Its name is still in the file, and a copy of its lock is held for a moment after it."""
    lock = RootLock(tmp_path)
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        pass
    (tmp_path / "lock").write_text(f"{gone.pid}\n")
    ending = threading.Timer(0.1, lock.release)
    ending.start()
    with RootLock(tmp_path, wait_s=60):
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"
    ending.join()


def test_a_holder_that_dies_for_ever_is_waited_for_no_longer_than_said(tmp_path: Path) -> None:
    with RootLock(tmp_path), subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
        (tmp_path / "lock").write_text(f"{gone.pid}\n")
        with pytest.raises(StoreLocked, match=str(gone.pid)):
            RootLock(tmp_path, wait_s=0.01)


def test_a_holder_that_lives_is_not_waited_for(tmp_path: Path) -> None:
    with RootLock(tmp_path), pytest.raises(StoreLocked):
        RootLock(tmp_path, wait_s=3600)
