"""Keepers end by themselves: what a test waits for at its end, so that no process of it stays."""

import os
import select
import signal
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from snapshotter.errors import PlaneError
from snapshotter.keeper.client import find

END_S = 60.0


def keeper_pid(run_dir: Path) -> int:
    """The keeper of a run directory; 0: none."""
    keeper = find(run_dir)
    if keeper is None:
        return 0
    with keeper:
        return keeper.pid


def wait_for_end(pid: int, timeout_s: float = END_S) -> bool:
    """Whether a process has ended in time."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        return bool(poll.poll(timeout_s * 1000))
    finally:
        os.close(fd)


def await_no_keeper(run_dir: Path) -> None:
    """Return when no keeper of `run_dir` is left; one that stays is killed, and fails the test."""
    pid = keeper_pid(run_dir)
    if pid and not wait_for_end(pid):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        raise AssertionError(f"keeper {pid} of {run_dir} did not end")


def discharge(run_dir: Path) -> None:
    """Have the keeper of `run_dir` forget what it keeps, and end; that of a test which holds no mount."""
    keeper = find(run_dir)
    if keeper is not None:
        with closing(keeper), suppress(PlaneError):
            kept = keeper.hello()
            if kept is not None:
                os.close(kept.fd)
            keeper.drop()
        await_no_keeper(run_dir)


@pytest.fixture
def run_dir(tmp_path: Path) -> Iterator[Path]:
    """A run directory; its keeper, if there is one, ends with the test."""
    directory = tmp_path / "r"
    directory.mkdir(mode=0o700)
    yield directory
    discharge(directory)
