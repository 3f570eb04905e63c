"""Who keeps the connection besides the daemon: keeper and service manager, one without the other, and both."""

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from snapshotter.daemon.custody import Custody
from snapshotter.daemon.fd_store import FUSE_NAME, NAMES, RECORD_NAME
from snapshotter.plane.fuse.inodes import INODE_REVISION
from tests.daemon.custodies import daemon, die, given, kill_keeper, manager, mount, record_of, run_dir, stored_record
from tests.doubles.keepers import keeper_pid
from tests.doubles.raw_fuse import ECONNABORTED, RawMount, said
from tests.doubles.service_manager import ServiceManager

__all__ = ["daemon", "manager", "mount", "run_dir"]


def test_at_the_first_start_there_is_nothing_to_take_and_a_keeper_is_there(
    daemon: Callable[..., Custody], run_dir: Path
) -> None:
    custody = daemon()
    assert custody.take() is None
    assert custody.keeper_pid == keeper_pid(run_dir) != 0


def test_what_one_daemon_kept_the_next_one_takes(daemon: Callable[..., Custody], mount: RawMount) -> None:
    first = daemon()
    first.take()
    first.keep(mount.fd, record_of(mount))
    first.serving()
    before_ns = time.monotonic_ns()
    die(first)
    inherited = daemon().take()
    assert inherited is not None
    assert inherited.record == record_of(mount)
    assert inherited.connection.mount_point == mount.connection.mount_point
    assert inherited.connection.init == mount.connection.init
    # By the keeper's clock, in whole milliseconds.
    assert inherited.died_ns is not None
    assert before_ns - 1_000_000 <= inherited.died_ns <= time.monotonic_ns()
    os.close(inherited.connection.fd)


def test_without_the_keeper_the_service_manager_has_it(
    daemon: Callable[..., Custody],
    mount: RawMount,
    manager: ServiceManager,
    run_dir: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    first = daemon(manager)
    first.take()
    first.keep(mount.fd, record_of(mount))
    assert sorted(manager.names) == sorted(NAMES)
    kill_keeper(run_dir)
    die(first)
    stored = given(manager)
    second = daemon(manager, stored)
    inherited = second.take()
    assert inherited is not None
    assert (inherited.record, inherited.died_ns) == (record_of(mount), None)
    assert "comes from the service manager's store" in caplog.text
    # That which came with the start is closed, this is a copy.
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(stored[FUSE_NAME])
    heard = len(manager.heard)
    second.keep(inherited.connection.fd, inherited.record.taken_over())
    # It stays where it is, and says the new: taken out and put back it could be lost in between.
    assert manager.heard[heard:] == []
    assert stored_record(manager) == record_of(mount).taken_over()
    os.close(inherited.connection.fd)
    # And the keeper has it again.
    die(second)
    third = daemon(manager, given(manager)).take()
    assert third is not None
    assert third.record.take_overs == 1
    os.close(third.connection.fd)


def test_the_keeper_is_asked_first_because_it_knows_when(
    daemon: Callable[..., Custody], mount: RawMount, manager: ServiceManager
) -> None:
    first = daemon(manager)
    first.take()
    first.keep(mount.fd, record_of(mount))
    die(first)
    inherited = daemon(manager, given(manager)).take()
    assert inherited is not None
    assert inherited.died_ns is not None
    os.close(inherited.connection.fd)


def test_what_is_stored_of_another_connection_is_replaced(
    daemon: Callable[..., Custody], mount: RawMount, manager: ServiceManager
) -> None:
    """As where a daemon that is not of this manager's unit has served in between."""
    first = daemon(manager)
    first.take()
    first.keep(mount.fd, replace(record_of(mount), session=2))
    stored = given(manager)
    first._keeper.put(  # type: ignore[union-attr]
        mount.fd, record_of(mount).encode(), minor=mount.minor, deadline_s=0, resend=True, answered=True
    )
    die(first)
    second = daemon(manager, stored)
    inherited = second.take()
    assert inherited is not None
    second.keep(inherited.connection.fd, inherited.record)
    assert stored_record(manager) == record_of(mount)
    assert sorted(manager.names) == sorted(NAMES)
    os.close(inherited.connection.fd)


def test_a_record_that_becomes_shorter_is_whole(
    daemon: Callable[..., Custody], mount: RawMount, manager: ServiceManager
) -> None:
    custody = daemon(manager)
    custody.take()
    custody.keep(mount.fd, replace(record_of(mount), version="1.0.0-with-a-long-name"))
    custody.keep(mount.fd, record_of(mount))
    assert stored_record(manager) == record_of(mount)
    custody.keep(mount.fd, replace(record_of(mount), version="1.0.0-with-an-even-longer-name"))
    assert stored_record(manager).version == "1.0.0-with-an-even-longer-name"


@pytest.mark.parametrize("left", NAMES)
def test_half_of_what_was_stored_is_nothing_and_is_replaced(
    daemon: Callable[..., Custody], mount: RawMount, manager: ServiceManager, run_dir: Path, left: str
) -> None:
    first = daemon(manager)
    first.take()
    first.keep(mount.fd, record_of(mount))
    die(first)
    kill_keeper(run_dir)
    stored = given(manager)
    os.close(stored.pop(RECORD_NAME if left == FUSE_NAME else FUSE_NAME))
    second = daemon(manager, stored)
    assert second.take() is None
    second.keep(mount.fd, record_of(mount))
    assert sorted(manager.names) == sorted(NAMES)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"inode_revision": INODE_REVISION + 1}, "inode numbers of revision"),
        ({"mount_point": "/run/other/fuse"}, "it is mounted on /run/other/fuse"),
    ],
)
def test_what_cannot_be_served_is_given_up_by_all_with_a_sentence(
    daemon: Callable[..., Custody],
    mount: RawMount,
    manager: ServiceManager,
    caplog: pytest.LogCaptureFixture,
    change: dict[str, object],
    sentence: str,
) -> None:
    first = daemon(manager)
    first.take()
    first.keep(mount.fd, replace(record_of(mount), **change))  # type: ignore[arg-type]
    die(first)
    second = daemon(manager, given(manager))
    assert second.take() is None
    assert sentence in caplog.text
    assert manager.names == []
    assert second._keeper is not None
    assert not second._keeper.state().keeps


def test_a_connection_that_has_ended_is_given_up(
    daemon: Callable[..., Custody],
    mount: RawMount,
    manager: ServiceManager,
    run_dir: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    first = daemon(manager)
    first.take()
    first.keep(mount.fd, record_of(mount))
    stored = given(manager)
    kill_keeper(run_dir)
    die(first)
    mount.end()
    mount.await_end()
    assert daemon(manager, stored).take() is None
    assert "it has ended" in caplog.text


def test_dropped_it_is_kept_by_nobody_and_ends_for_its_readers(
    daemon: Callable[..., Custody], mount: RawMount, manager: ServiceManager
) -> None:
    first = daemon(manager)
    first.take()
    first.keep(mount.fd, record_of(mount))
    child = mount.ask("trusted.a")
    mount.read()
    first.drop()
    # Whoever holds a copy: this test does.
    assert said(child) == ECONNABORTED
    assert manager.names == []
    die(first)
    assert daemon(manager).take() is None
