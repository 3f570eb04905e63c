"""The keeper goes while the daemon serves: another takes its place."""

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from snapshotter.daemon.custody import Custody
from snapshotter.errors import PlaneError
from snapshotter.keeper import client
from snapshotter.keeper.client import find
from tests.daemon.custodies import daemon, die, kill_keeper, manager, mount, record_of, run_dir
from tests.doubles.raw_fuse import RawMount
from tests.doubles.service_manager import ServiceManager

__all__ = ["daemon", "manager", "mount", "run_dir"]


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
