"""Who was killed, as /proc says it."""

import os
from pathlib import Path

import pytest

from snapshotter.plane.erofs.gate import is_killed

STATUS = """\
Name:	cat
State:	D (disk sleep)
Pid:	{pid}
Threads:	1
SigQ:	1/7823
SigPnd:	{thread:016x}
ShdPnd:	{process:016x}
SigBlk:	0000000000000100
SigIgn:	0000000000000100
SigCgt:	0000000000000100
"""
SIGKILL, SIGTERM, SIGCHLD = 1 << 8, 1 << 14, 1 << 16


def write(proc: Path, pid: int, *, thread: int = 0, process: int = 0) -> None:
    (proc / str(pid)).mkdir()
    (proc / str(pid) / "status").write_text(STATUS.format(pid=pid, thread=thread, process=process))


@pytest.mark.parametrize(
    ("thread", "process", "killed"),
    [
        (0, 0, False),
        (SIGTERM, SIGCHLD, False),
        (SIGKILL, 0, True),
        (0, SIGKILL, True),
        (SIGKILL | SIGTERM, SIGCHLD, True),
        (SIGTERM, SIGKILL | SIGCHLD, True),
    ],
)
def test_a_kill_that_waits_for_the_thread_or_for_its_process_counts_and_other_signals_do_not(
    tmp_path: Path, thread: int, process: int, killed: bool
) -> None:
    write(tmp_path, 17, thread=thread, process=process)
    assert is_killed(17, tmp_path) is killed


def test_each_thread_is_asked_by_its_own_number(tmp_path: Path) -> None:
    write(tmp_path, 17)
    write(tmp_path, 18, thread=SIGKILL)
    assert (is_killed(17, tmp_path), is_killed(18, tmp_path)) == (False, True)


def test_a_process_that_cannot_be_seen_counts_as_alive(tmp_path: Path) -> None:
    assert not is_killed(17, tmp_path)
    (tmp_path / "18").mkdir()
    assert not is_killed(18, tmp_path)


@pytest.mark.parametrize("pid", [0, -1])
def test_no_process_counts_as_alive(tmp_path: Path, pid: int) -> None:
    write(tmp_path, pid, thread=SIGKILL, process=SIGKILL)
    assert not is_killed(pid, tmp_path)


def test_a_status_without_signals_counts_as_alive(tmp_path: Path) -> None:
    (tmp_path / "17").mkdir()
    (tmp_path / "17" / "status").write_text("Name:\tcat\n")
    assert not is_killed(17, tmp_path)


def test_the_kernels_own_table_is_understood() -> None:
    assert not is_killed(os.getpid())
