"""Who waits for the network at this moment, and nobody who does not."""

from pathlib import Path

import pytest
import trio

from snapshotter.errors import RegistryUnreachable
from snapshotter.layer.waits import Waits
from tests.doubles.layers import dir, file, layer
from tests.doubles.memory_registry import MemoryRegistry
from tests.layer.world import find, run, until, world


def test_the_longest_come_first_and_leave_when_they_end() -> None:
    ticks = iter(range(10))
    waits = Waits(lambda: float(next(ticks)))
    with waits.read("node", b"a", 1, 11), waits.lookup("node", b"b", 4000):
        with waits.read("node", b"c", 2, 12):
            assert [wait.digest for wait in waits.longest(2)] == [b"a", b"b"]
            assert (waits.reads, waits.lookups) == (2, 1)
        assert [(wait.began, wait.layer, wait.node, wait.pid) for wait in waits.longest(9)] == [
            (0.0, 1, 11, 0),
            (1.0, 0, 0, 4000),
        ]
    assert (waits.longest(9), waits.reads, waits.lookups) == ((), 0, 0)


def test_a_wait_that_fails_or_is_cancelled_is_over() -> None:
    async def main() -> None:
        waits = Waits()
        with pytest.raises(RegistryUnreachable), waits.lookup("node", b"a", 1):
            raise RegistryUnreachable("away")
        with trio.move_on_after(0.01), waits.read("node", b"a", 1, 1):
            await trio.sleep_forever()
        assert waits.longest(9) == ()
        assert waits.lookups == 0

    run(main)


def test_reads_are_noted_while_they_wait_for_the_registry_and_not_otherwise(tmp_path: Path) -> None:
    built, registry = layer(dir("a/"), file("a/here", b"here"), file("a/away", b"away")), MemoryRegistry()

    async def main() -> None:
        async with world(tmp_path / "root", registry) as it:
            (one,) = await it.pull(built)
            await it.read(one, "a/here")
            waits = it.room.waits
            assert waits.longest(9) == ()
            registry.hold = trio.Event()
            async with trio.open_nursery() as nursery:
                for path in ("a/away", "a/here", "a/away"):
                    nursery.start_soon(it.read, one, path)
                await until(lambda: waits.reads == 2)
                node = find(one, "a/away")
                seen = [(wait.layer, wait.node, wait.digest) for wait in waits.longest(9)]
                assert seen == [(one.number, node, one.index.digest(node))] * 2
                registry.hold.set()
            assert waits.longest(9) == ()

    run(main)


def test_a_file_that_is_brought_for_the_gate_is_no_read(tmp_path: Path) -> None:
    """The gate notes the processes that wait for it."""
    built, registry = layer(file("away", b"away")), MemoryRegistry()

    async def main() -> None:
        async with world(tmp_path / "root", registry) as it:
            (one,) = await it.pull(built)
            registry.hold = trio.Event()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(one.bring_chunks, find(one, "away"))
                await until(lambda: sum(it.room.gates.under_way().values()) == 1)
                assert it.room.waits.longest(9) == ()
                registry.hold.set()

    run(main)
