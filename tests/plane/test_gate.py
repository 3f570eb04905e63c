"""The gate's answers: no such file once it is there, an inode where that takes long, an error where it cannot be had."""

import errno
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest
import trio
import trio.testing

from snapshotter.errors import RegistryUnreachable, SnapshotterError, StoreError, WaiterKilled
from snapshotter.plane.erofs.gate import KILL_CHECK_S, PATIENCE_S
from snapshotter.plane.fuse.inodes import gate_file_node
from tests.doubles.gate import DOMAIN, MemoryNumbers
from tests.plane.gates import LARGE, LONG, OTHER, READER, SMALL, VICTIM, Asked, contents, opened, run

T = TypeVar("T")


@pytest.fixture
def virtual(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Awaitable[T]]], T]:
    """Runs a coroutine by a clock that jumps while everybody waits."""

    async def inline(function: Callable[..., object], *arguments: object, limiter: object = None) -> object:
        await trio.lowlevel.checkpoint()
        return function(*arguments)

    # No threads: the clock would not wait for them.
    monkeypatch.setattr(trio.to_thread, "run_sync", inline)

    def run_virtually(main: Callable[[], Awaitable[T]]) -> T:
        async def bounded() -> T:
            with trio.fail_after(10 * LONG):
                return await main()

        return trio.run(bounded, clock=trio.testing.MockClock(autojump_threshold=0))

    return run_virtually


# --- small files


def test_a_small_file_is_brought_and_then_looked_for_elsewhere() -> None:
    of = contents()

    async def main() -> None:
        async with opened(of) as gate:
            assert await gate.lookup(DOMAIN, SMALL, READER) is None
            assert of.brought == [SMALL]

    run(main)


@pytest.mark.parametrize("name", ["e5" * 32, "no digest", "e5" * 32 + "-" + "f6" * 16])
def test_a_name_that_no_layer_has_is_an_io_error(name: str) -> None:
    of = contents()

    async def main() -> None:
        async with opened(of) as gate:
            with pytest.raises(SnapshotterError) as caught:
                await gate.lookup(DOMAIN, name, READER)
            assert caught.value.errno == errno.EIO
            assert of.brought == []

    run(main)


def test_300_lookups_at_once_bring_the_file_once() -> None:
    of = contents(SMALL)

    async def main() -> None:
        async with opened(of) as gate:
            asked = Asked(gate)
            async with trio.open_nursery() as nursery:
                for _ in range(300):
                    nursery.start_soon(asked.one, SMALL)
                await trio.testing.wait_all_tasks_blocked()
                of.arrived[SMALL].set()
            assert (asked.answers, asked.errors) == ([None] * 300, [])
            assert of.brought == [SMALL]

    run(main)


def test_an_error_reaches_everyone_who_waits_and_the_next_lookup_starts_anew() -> None:
    of = contents(SMALL)
    of.outcomes[SMALL] = RegistryUnreachable("registry.test does not answer")

    async def main() -> None:
        async with opened(of) as gate:
            asked = Asked(gate)
            async with trio.open_nursery() as nursery:
                for _ in range(20):
                    nursery.start_soon(asked.one, SMALL)
                await trio.testing.wait_all_tasks_blocked()
                of.arrived[SMALL].set()
            assert [error.errno for error in asked.errors] == [errno.EIO] * 20
            assert (asked.answers, of.brought) == ([], [SMALL])
            del of.outcomes[SMALL]
            assert await gate.lookup(DOMAIN, SMALL, READER) is None
            assert of.brought == [SMALL] * 2

    run(main)


def test_a_fault_of_the_program_is_an_error_of_that_file_and_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    of = contents()
    of.outcomes[SMALL] = ValueError("a fault of the program")

    async def main() -> None:
        async with opened(of) as gate:
            with pytest.raises(SnapshotterError, match="a fault of the program") as caught:
                await gate.lookup(DOMAIN, SMALL, READER)
            assert caught.value.errno == errno.EIO
            assert await gate.lookup(DOMAIN, OTHER, READER) is None
            del of.outcomes[SMALL]
            assert await gate.lookup(DOMAIN, SMALL, READER) is None

    run(main)
    assert "ValueError" in caplog.text


def test_who_gives_up_takes_the_file_from_nobody() -> None:
    of = contents(SMALL)

    async def main() -> None:
        async with opened(of) as gate:
            asked = Asked(gate)
            async with trio.open_nursery() as patient:
                async with trio.open_nursery() as impatient:
                    impatient.start_soon(asked.one, SMALL)
                    await trio.testing.wait_all_tasks_blocked()
                    patient.start_soon(asked.one, SMALL)
                    await trio.testing.wait_all_tasks_blocked()
                    impatient.cancel_scope.cancel()
                of.arrived[SMALL].set()
            assert (asked.answers, of.brought) == ([None], [SMALL])

    run(main)


# --- patience and inodes


def test_who_waits_for_the_usual_patience_gets_an_inode_and_no_sooner(
    virtual: Callable[[Callable[[], Awaitable[float]]], float],
) -> None:
    of = contents(SMALL)

    async def main() -> float:
        async with opened(of, patience_s=PATIENCE_S) as gate:
            before = trio.current_time()
            file = await gate.lookup(DOMAIN, SMALL, READER)
            assert file is not None
            assert (file.domain, file.name, file.size) == (DOMAIN, SMALL, 100)
            return trio.current_time() - before

    assert virtual(main) == pytest.approx(PATIENCE_S) == 1.5


def test_patience_begins_with_the_file_and_not_with_who_asks(
    virtual: Callable[[Callable[[], Awaitable[None]]], None],
) -> None:
    """Of those who wait for one name the kernel lets one ask after the other; nothing can kill the others meanwhile."""
    of, dead = contents(SMALL), set[int]()

    async def main() -> None:
        async with opened(of, patience_s=PATIENCE_S, killed=dead.__contains__) as gate:
            began = trio.current_time()
            asked = Asked(gate)
            for pid in range(100, 105):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(asked.one, SMALL, pid)
                    await trio.sleep(0.2)
                    dead.add(pid)
            assert all(isinstance(error, WaiterKilled) for error in asked.errors)
            assert await gate.lookup(DOMAIN, SMALL, READER) is not None
            assert trio.current_time() - began == pytest.approx(PATIENCE_S)
            assert of.brought == [SMALL]

    virtual(main)


def test_bringing_goes_on_after_patience_and_the_inode_stays_when_the_file_is_whole() -> None:
    of = contents(SMALL)

    async def main() -> None:
        async with opened(of, patience_s=0.01) as gate:
            file = await gate.lookup(DOMAIN, SMALL, READER)
            assert file is not None
            assert await gate.lookup(DOMAIN, SMALL, READER) is file
            of.arrived[SMALL].set()
            await trio.testing.wait_all_tasks_blocked()
            assert of.brought == [SMALL]
            assert await gate.lookup(DOMAIN, SMALL, READER) is file
            assert gate.file(file.number) is file
            assert of.brought == [SMALL]

    run(main)


def test_a_file_that_is_had_in_parts_only_gets_an_inode_at_once_and_the_same_for_ever() -> None:
    of = contents()

    async def main() -> None:
        async with opened(of) as gate:
            file = await gate.lookup(DOMAIN, LARGE, READER)
            assert file is not None
            assert (file.name, file.size) == (LARGE, 9000)
            of.outcomes[LARGE] = True
            assert await gate.lookup(DOMAIN, LARGE, READER) is file
            assert await gate.read(file.number, 8990, 100) == bytes(10)
            assert of.reads == [(LARGE, 8990, 100)]

    run(main)


def test_a_large_file_that_is_whole_when_first_asked_for_gets_no_inode() -> None:
    of, numbers = contents(), MemoryNumbers()
    of.outcomes[LARGE] = True

    async def main() -> None:
        async with opened(of, numbers) as gate:
            assert await gate.lookup(DOMAIN, LARGE, READER) is None
            assert numbers.files == {}

    run(main)


def test_files_get_numbers_of_their_own_that_fit_an_inode() -> None:
    of = contents(SMALL, OTHER)

    async def main() -> None:
        async with opened(of, patience_s=0.01) as gate:
            files = [await gate.lookup(DOMAIN, name, READER) for name in (SMALL, OTHER, LARGE)]
            numbers = {file.number for file in files if file is not None}
            assert len(numbers) == 3
            assert all(gate_file_node(number) for number in numbers)

    run(main)


def test_reading_under_a_number_that_was_never_given_is_an_error() -> None:
    async def main() -> None:
        async with opened(contents()) as gate:
            assert gate.file(17) is None
            with pytest.raises(StoreError, match="17"):
                await gate.read(17, 0, 10)

    run(main)


# --- processes that are killed


def test_a_killed_waiter_is_let_go_within_one_check_and_others_go_on(
    virtual: Callable[[Callable[[], Awaitable[None]]], None],
) -> None:
    of, dead = contents(SMALL), set[int]()

    async def main() -> None:
        async with opened(of, killed=dead.__contains__) as gate:
            victim, reader = Asked(gate), Asked(gate)
            async with trio.open_nursery() as others:
                others.start_soon(reader.one, SMALL)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(victim.one, SMALL, VICTIM)
                    await trio.sleep(10.1 * KILL_CHECK_S)
                    assert victim.errors == []
                    dead.add(VICTIM)
                    killed_at = trio.current_time()
                assert trio.current_time() - killed_at <= KILL_CHECK_S < 1
                (error,) = victim.errors
                assert isinstance(error, WaiterKilled)
                assert error.errno == errno.EINTR
                of.arrived[SMALL].set()
            assert (reader.answers, reader.errors, of.brought) == ([None], [], [SMALL])

    virtual(main)


def test_a_waiter_that_is_killed_while_only_the_content_can_tell_the_size_is_let_go() -> None:
    of, dead = contents(SMALL), {VICTIM}
    of.sizes[SMALL] = [100, 101]

    async def main() -> None:
        async with opened(of, patience_s=0.01, killed=lambda pid: pid in dead and bool(of.brought)) as gate:
            with pytest.raises(WaiterKilled):
                await gate.lookup(DOMAIN, SMALL, VICTIM)

    run(main)
