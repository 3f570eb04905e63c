"""A run directory with a real mount, and daemons that keep it one after the other, without being daemons."""

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from snapshotter.config import Config
from snapshotter.daemon.custody import Custody
from snapshotter.daemon.fd_store import RECORD_NAME, read_record
from snapshotter.daemon.notify import Notifier
from snapshotter.plane.fuse.inodes import INODE_REVISION
from snapshotter.plane.fuse.kernel import MOUNT_NAME
from snapshotter.plane.fuse.record import RECORD_REVISION, SessionRecord, decode_record
from tests.doubles.keepers import keeper_pid, run_dir, wait_for_end
from tests.doubles.raw_fuse import RawMount, raw_mount
from tests.doubles.service_manager import ServiceManager

__all__ = ["daemon", "die", "given", "kill_keeper", "manager", "mount", "record_of", "run_dir", "stored_record"]


@pytest.fixture
def mount(run_dir: Path) -> Iterator[RawMount]:
    with raw_mount(run_dir / MOUNT_NAME) as made:
        yield made


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[ServiceManager]:
    with ServiceManager(tmp_path) as made:
        yield made


@pytest.fixture
def daemon(run_dir: Path) -> Iterator[Callable[..., Custody]]:
    """Begins as the next daemon; one at a time. What it holds ends with the test."""
    made: list[Custody] = []

    def begin(manager: ServiceManager | None = None, stored: dict[str, int] | None = None) -> Custody:
        environment = {"NOTIFY_SOCKET": manager.address} if manager else {}
        config = replace(Config(), run_dir=run_dir)
        made.append(Custody(config, Notifier(environment), stored or {}))
        return made[-1]

    yield begin
    for custody in made:
        die(custody)


def die(custody: Custody) -> None:
    """End as far as others see it."""
    if custody._keeper is not None:
        custody._keeper.close()
        custody._keeper = None
    if custody._memory >= 0:
        os.close(custody._memory)
        custody._memory = -1


def record_of(mount: RawMount) -> SessionRecord:
    connection = mount.connection
    return SessionRecord(
        RECORD_REVISION,
        INODE_REVISION,
        3,
        connection.init,
        b"reply",
        connection.device,
        str(connection.mount_point),
        "0.1.0",
    )


def given(manager: ServiceManager) -> dict[str, int]:
    """What a start is handed by the service manager."""
    manager.settle()
    with manager._lock:
        return {name: os.dup(fd) for name, fd in manager._store}


def stored_record(manager: ServiceManager) -> SessionRecord:
    """What the manager holds of it."""
    manager.settle()
    with manager._lock:
        (fd,) = (fd for name, fd in manager._store if name == RECORD_NAME)
        return decode_record(read_record(fd))


def kill_keeper(run_dir: Path) -> None:
    pid = keeper_pid(run_dir)
    os.kill(pid, signal.SIGKILL)
    assert wait_for_end(pid)
