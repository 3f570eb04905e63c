"""What the daemon tells of this moment, over a real layer room whose registry answers when the test says so."""

import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from snapshotter.daemon import activity as activity_module
from snapshotter.daemon.activity import FILES_SHOWN, Activity
from snapshotter.daemon.blocked import BlockedThread, Doing, Lookout
from snapshotter.daemon.users import ContainerName
from snapshotter.errors import FailedPrecondition
from snapshotter.layer.layer import Layer
from snapshotter.plane.erofs.gate import Gate
from snapshotter.plane.fuse.inodes import Numbers
from snapshotter.plane.fuse.operations import LayerOperations
from snapshotter.service.bridge import Bridge
from snapshotter.service.control_views import ActivityView, WaitKind
from tests.doubles.layers import file, layer
from tests.doubles.memory_registry import MemoryRegistry
from tests.layer.world import World, content_name, find, world

FILES = 300
BUILT = layer(*(file(f"{number:03}", b"content %d" % number) for number in range(FILES)))
SESSION = 3
WAIT_S = 60


class Node:
    """A room with one layer, a gate and FUSE handlers, and threads that are said to wait. The clock may be moved on."""

    def __init__(self, it: World, one: Layer, clock: MockClock) -> None:
        self.it, self.layer, self.clock = it, one, clock
        self.threads: list[BlockedThread] | None = []
        self.hinted: set[int] = set()
        self.gate = Gate(it.room.contents, it.state, it.nursery, it.store.place, open_waits=it.room.waits)
        self.operations = LayerOperations(it.room.shelf, SESSION, it.root, gate=self.gate)
        bridge = Bridge(trio.lowlevel.current_trio_token())
        lookout = _Told(self)
        self.activity = Activity(it.room, it.state, self.gate, self.operations, SESSION, bridge, lookout)

    async def view(self, plane: str = "fuse") -> ActivityView:
        def ask() -> ActivityView:
            return self.activity.view(plane=plane, started_at_ns=1, cache_used=2, cache_quota=3)

        return await trio.to_thread.run_sync(ask)

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():  # noqa: ASYNC110 (reads go through threads on their way)
            await trio.sleep(0.01)


class _Told(Lookout):
    def __init__(self, node: Node) -> None:
        super().__init__()
        self._node = node

    def look(self, hinted: Iterable[int], timeout_s: float) -> list[BlockedThread] | None:
        self._node.hinted = set(hinted)
        return self._node.threads


@asynccontextmanager
async def node(tmp_path: Path, registry: MemoryRegistry, clock: MockClock) -> AsyncIterator[Node]:
    async with world(tmp_path / "root", registry) as it:
        (one,) = await it.pull(BUILT)
        registry.hold = trio.Event()
        made = Node(it, one, clock)
        await made.gate.load()
        yield made
        registry.hold.set()


def in_node(tmp_path: Path, main: Callable[[Node], Awaitable[None]]) -> None:
    """Run a test's coroutine; one that hangs fails."""
    clock = MockClock(rate=1)

    async def wrapped() -> None:
        with trio.fail_after(2 * WAIT_S):
            async with node(tmp_path, MemoryRegistry(), clock) as made:
                await main(made)

    trio.run(wrapped, clock=clock)


def blocked(number: int, doing: Doing, *paths: str) -> BlockedThread:
    return BlockedThread(number, number, "cat", doing, paths, ContainerName("c1", "default"))


def test_nothing_waits_and_no_process_is_looked_for(tmp_path: Path) -> None:
    async def main(it: Node) -> None:
        it.threads = None
        view = await it.view()
        assert (view.waits, view.reads_waiting, view.lookups_waiting, view.longest_wait_ns) == ((), 0, 0, 0)
        assert view.processes_seen
        assert (view.cache_used, view.cache_quota, view.layers_lazy, view.fetching_demand) == (2, 3, 1, 0)

    in_node(tmp_path, main)


def test_a_read_is_joined_with_the_thread_that_opened_the_inode(tmp_path: Path) -> None:
    async def main(it: Node) -> None:
        inode = Numbers(SESSION).of_node(it.layer.number, find(it.layer, "007"))
        it.operations.openers.opened(inode, 4001)
        it.operations.openers.opened(inode, 0)
        it.threads = [blocked(4001, Doing.CALL)]
        it.it.nursery.start_soon(it.it.read, it.layer, "007")
        await it.until(lambda: it.it.room.waits.reads == 1)
        first = await it.view()
        assert [(row.path, row.pid, row.container) for row in first.waits] == [("/007", 4001, "c1")]
        assert it.hinted == {4001}
        assert first.fetching_demand == 1
        second = await it.view()
        assert second.waits[0].waited_ns > first.waits[0].waited_ns
        assert second.clock_ns > first.clock_ns

    in_node(tmp_path, main)


def test_a_wait_at_the_gate_goes_on_in_a_read_and_counts_from_its_beginning(tmp_path: Path) -> None:
    async def main(it: Node) -> None:
        name, me = content_name(it.layer, "008"), os.getpid()
        answers: list[Any] = []

        async def open_and_read() -> None:
            answers.append(await it.gate.lookup("node", name, me))
            await it.gate.read(answers[0].number, 0, 10)

        it.gate._patience_s = WAIT_S
        it.it.nursery.start_soon(open_and_read)
        await it.until(lambda: it.it.room.waits.lookups == 1)
        waiting = await it.view("erofs")
        assert [(row.kind, row.path, row.pid) for row in waiting.waits] == [(WaitKind.LOOKUP, "/008", me)]
        it.clock.jump(WAIT_S)
        await it.until(lambda: it.it.room.waits.reads == 1)
        it.operations.openers.opened(it.operations._gate.inode(1 << 25 | answers[0].number), me)  # type: ignore[union-attr]
        it.threads = [blocked(me, Doing.CALL)]
        reading = await it.view("erofs")
        (row,) = reading.waits
        assert (row.kind, row.path, row.pid) == (WaitKind.READ, "/008", me)
        assert row.waited_ns >= WAIT_S * 1_000_000_000

    in_node(tmp_path, main)


def test_a_thousand_waits_are_counted_and_a_bounded_number_shown(tmp_path: Path) -> None:
    async def main(it: Node) -> None:
        for number in range(1000):
            it.it.nursery.start_soon(it.it.read, it.layer, f"{number % FILES:03}")
        await it.until(lambda: it.it.room.waits.reads == 1000)
        it.threads = [blocked(10_000 + number, Doing.CALL, f"/{number % FILES:03}") for number in range(1000)]
        began = time.monotonic()
        view = await it.view()
        took_s = time.monotonic() - began
        assert view.reads_waiting == 1000
        assert len(view.waits) == FILES_SHOWN
        assert len(it.hinted) == 0
        # Not a measurement: seconds would show work that grows with the square.
        assert took_s < 10

    in_node(tmp_path, main)


def test_that_processes_could_not_be_looked_at_is_said(tmp_path: Path) -> None:
    async def main(it: Node) -> None:
        it.threads = None
        it.it.nursery.start_soon(it.it.read, it.layer, "001")
        await it.until(lambda: it.it.room.waits.reads == 1)
        view = await it.view()
        assert not view.processes_seen
        assert [(row.path, row.pid) for row in view.waits] == [("/001", 0)]

    in_node(tmp_path, main)


def test_registries_that_are_away_are_named_with_a_short_reason(tmp_path: Path) -> None:
    async def main(it: Node) -> None:
        it.it.room.counters.hosts |= {"b.test": "x" * 10_000, "a.test": "refused", "c.test": ""}
        away = (await it.view()).away
        assert [host.host for host in away] == ["a.test", "b.test"]
        assert len(away[1].failure) == 500

    in_node(tmp_path, main)


def test_who_finds_others_asking_all_the_time_is_told_so_and_keeps_no_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activity_module, "TURN_TIMEOUT_S", 0.05)

    async def main(it: Node) -> None:
        with it.activity._lock, pytest.raises(FailedPrecondition, match="others ask"):
            await it.view()
        assert (await it.view()).waits == ()

    in_node(tmp_path, main)
