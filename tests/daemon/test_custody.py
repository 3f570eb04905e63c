"""Who keeps the connection besides the daemon: keeper and service manager, one without the other, and both."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from snapshotter.config import Config
from snapshotter.daemon.custody import Custody
from snapshotter.daemon.fd_store import FUSE_NAME, NAMES, RECORD_NAME, read_record
from snapshotter.daemon.notify import Notifier
from snapshotter.errors import PlaneError
from snapshotter.keeper import client
from snapshotter.keeper.client import find
from snapshotter.plane.fuse.inodes import INODE_REVISION
from snapshotter.plane.fuse.kernel import MOUNT_NAME
from snapshotter.plane.fuse.record import RECORD_REVISION, SessionRecord, decode_record
from tests.doubles.keepers import discharge, keeper_pid, wait_for_end
from tests.doubles.raw_fuse import ECONNABORTED, RawMount, raw_mount, said
from tests.doubles.service_manager import ServiceManager


@pytest.fixture
def run_dir(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "r"
    directory.mkdir(mode=0o700)
    yield directory
    discharge(directory)


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
    with manager._lock:
        return {name: os.dup(fd) for name, fd in manager._store}


def stored_record(manager: ServiceManager) -> SessionRecord:
    """What the manager holds of it."""
    with manager._lock:
        (fd,) = (fd for name, fd in manager._store if name == RECORD_NAME)
        return decode_record(read_record(fd))


def kill_keeper(run_dir: Path) -> None:
    pid = keeper_pid(run_dir)
    os.kill(pid, signal.SIGKILL)
    assert wait_for_end(pid)


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
    assert sorted(settled(manager)) == sorted(NAMES)
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
    assert settled(manager) == []
    assert second._keeper is not None
    assert not second._keeper.state().keeps


def settled(manager: ServiceManager) -> list[str]:
    """What the manager keeps once it has done what it was told."""
    Notifier({"NOTIFY_SOCKET": manager.address}).settle(60)
    return manager.names


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
    assert settled(manager) == []
    die(first)
    assert daemon(manager).take() is None


@pytest.mark.parametrize("serving", [False, True])
def test_a_keeper_that_dies_is_followed_by_one_that_is_given_everything(
    daemon: Callable[..., Custody], mount: RawMount, run_dir: Path, serving: bool
) -> None:
    custody = daemon()
    custody.take()
    custody.keep(mount.fd, record_of(mount))
    if serving:
        custody.serving()
    before = custody.keeper_pid

    async def main() -> None:
        with trio.fail_after(120):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(custody.watch)
                for _ in range(2):
                    old = custody.keeper_pid
                    os.kill(old, signal.SIGKILL)
                    while not await kept(run_dir) or custody.keeper_pid in (0, old):
                        pass
                nursery.cancel_scope.cancel()

    trio.run(main)
    assert custody.keeper_pid != before
    # None of ours is left as a zombie.
    with pytest.raises(ProcessLookupError):
        os.kill(before, 0)
    die(custody)
    inherited = daemon().take()
    assert inherited is not None
    assert inherited.record == record_of(mount)
    os.close(inherited.connection.fd)


def test_the_answers_of_a_keeper_are_not_its_end(daemon: Callable[..., Custody], mount: RawMount) -> None:
    custody = daemon()
    custody.take()
    custody.keep(mount.fd, record_of(mount))
    custody.serving()
    before = custody.keeper_pid

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(custody.watch)
            for number in range(300):
                record = replace(record_of(mount), take_overs=number)
                await trio.to_thread.run_sync(custody.keep, mount.fd, record)
            nursery.cancel_scope.cancel()

    trio.run(main)
    assert custody.keeper_pid == before


def test_a_keeper_that_dies_while_we_serve_is_noticed_by_whoever_talks_to_it_and_replaced_by_the_watch(
    daemon: Callable[..., Custody], mount: RawMount, run_dir: Path
) -> None:
    custody = daemon()
    custody.take()
    custody.keep(mount.fd, record_of(mount))
    custody.serving()
    kill_keeper(run_dir)
    later = replace(record_of(mount), take_overs=9)
    custody.keep(mount.fd, later)

    async def main() -> None:
        with trio.fail_after(120):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(custody.watch)
                while not await kept(run_dir):
                    pass
                nursery.cancel_scope.cancel()

    trio.run(main)
    die(custody)
    inherited = daemon().take()
    assert inherited is not None
    assert inherited.record == later
    os.close(inherited.connection.fd)


async def kept(run_dir: Path) -> bool:
    def look() -> bool:
        keeper = find(run_dir)
        if keeper is None:
            return False
        with keeper, suppress(PlaneError):
            return keeper.state().keeps
        return False

    return await trio.to_thread.run_sync(look)


def test_a_keeper_that_dies_before_it_is_given_anything_costs_no_take_over(
    daemon: Callable[..., Custody], mount: RawMount, run_dir: Path
) -> None:
    custody = daemon()
    custody.take()
    kill_keeper(run_dir)
    custody.keep(mount.fd, record_of(mount))
    kill_keeper(run_dir)
    custody.serving()
    assert custody._keeper is not None


def test_a_second_daemon_is_refused_while_the_first_one_lives(
    daemon: Callable[..., Custody], mount: RawMount, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "PATIENCE_S", 0.05)
    first = daemon()
    first.take()
    first.keep(mount.fd, record_of(mount))
    with pytest.raises(PlaneError, match="stop that one"):
        daemon().take()


def test_a_manager_that_stores_nothing_holds_nobody_up(
    daemon: Callable[..., Custody], mount: RawMount, manager: ServiceManager
) -> None:
    custody = daemon(manager)
    custody.take()
    custody.keep(mount.fd, record_of(mount))
    manager.lose()
    assert custody.keeper_pid
    die(custody)
    assert manager.names == []
    inherited = daemon(manager).take()
    assert inherited is not None
    os.close(inherited.connection.fd)
