"""What the layer room counts: waits, bytes by host, and that hosts are bounded."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from snapshotter.config import FetchConfig
from snapshotter.errors import BlobMissing, RegistryUnreachable
from snapshotter.layer.counters import HOSTS_MAX, OTHER_HOSTS, Counters, Histogram
from snapshotter.layer.priority import Priority
from tests.doubles.layers import dir, file, layer
from tests.doubles.memory_registry import MemoryRegistry
from tests.layer.world import QUIET, World, run, world

HOST = "registry.test"
FILES = [file(f"a/{number}", f"content {number} ".encode() * 100) for number in range(10)]


def test_a_value_falls_into_the_bucket_whose_bound_it_does_not_pass() -> None:
    histogram = Histogram.over((1.0, 2.0))
    for value in (0.0, 1.0, 1.5, 2.0, 2.1, 100.0):
        histogram.observe(value)
    assert histogram.counts == [2, 2, 2]
    assert histogram.sum == pytest.approx(106.6)


def test_so_many_hosts_are_counted_by_name_and_the_rest_together() -> None:
    counters = Counters()
    for number in range(HOSTS_MAX + 20):
        counters.of_host(f"registry-{number}.test").requests += 1
    assert len(counters.by_host) == HOSTS_MAX + 1
    assert counters.by_host[OTHER_HOSTS].requests == 20
    assert counters.by_host["registry-0.test"].requests == 1
    assert counters.host_name("registry-0.test") == "registry-0.test"
    assert counters.host_name("one-more.test") == OTHER_HOSTS
    counters.of_host("registry-3.test").requests += 1
    assert counters.by_host["registry-3.test"].requests == 2


def in_world(root: Path, registry: MemoryRegistry, main: Callable[[World], Awaitable[None]]) -> None:
    async def wrapped() -> None:
        async with world(root, registry) as it:
            await main(it)

    run(wrapped)


def test_bytes_of_a_host_are_those_that_were_asked_of_it(tmp_path: Path) -> None:
    registry = MemoryRegistry()

    async def main(it: World) -> None:
        (one,) = await it.pull(layer(dir("a/"), *FILES))
        counters = it.room.counters
        for number in (3, 7):
            await it.read(one, f"a/{number}")
        asked = sum(request.length for request in registry.requests)
        assert counters.by_host[HOST].fetched[Priority.DEMAND] == counters.fetched[Priority.DEMAND] == asked
        assert counters.by_host[HOST].requests == counters.requests[Priority.DEMAND] == 2
        assert sum(counters.first_byte[Priority.DEMAND].counts) == 2
        assert sum(counters.whole_range[Priority.DEMAND].counts) == 2

    in_world(tmp_path / "root", registry, main)


def test_bytes_count_for_the_mirror_that_sent_them_and_requests_for_the_registry(tmp_path: Path) -> None:
    async def main(it: World) -> None:
        (one,) = await it.pull(layer(dir("a/"), *FILES))
        for source in one.origin.sources():
            blob = await source.blob()
            blob.serving = "mirror.test"
        opened = it.room.counters.by_host[HOST].fetched[Priority.DEMAND]
        await it.read(one, "a/3")
        by_host = it.room.counters.by_host
        assert (by_host["mirror.test"].requests, by_host[HOST].requests) == (0, 1)
        assert by_host["mirror.test"].fetched[Priority.DEMAND] > 0
        assert by_host[HOST].fetched[Priority.DEMAND] == opened

    in_world(tmp_path / "root", MemoryRegistry(), main)


def test_a_first_read_waits_once_and_the_next_is_served_by_the_cache(tmp_path: Path) -> None:
    async def main(it: World) -> None:
        (one,) = await it.pull(layer(dir("a/"), *FILES))
        counters, size = it.room.counters, len(FILES[0].data)
        await it.read(one, "a/0")
        assert (counters.read_after_wait, counters.read_from_cache) == (size, 0)
        await it.read(one, "a/0")
        assert (counters.read_after_wait, counters.read_from_cache) == (size, size)
        assert sum(it.room.waits.read_times.counts) == 1
        assert counters.reads == 2

    in_world(tmp_path / "root", MemoryRegistry(), main)


def test_who_waits_is_counted_while_it_waits_and_also_if_it_gives_up(tmp_path: Path) -> None:
    registry = MemoryRegistry()

    async def main(it: World) -> None:
        (one,) = await it.pull(layer(dir("a/"), *FILES))
        waits = it.room.waits
        registry.hold = trio.Event()
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(it.read, one, "a/5")
            await trio.testing.wait_all_tasks_blocked()
            while waits.reads < 3:  # noqa: ASYNC110 (threads of the store come between)
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
        assert waits.reads == 0
        assert sum(waits.read_times.counts) == 3
        registry.hold.set()

    in_world(tmp_path / "root", registry, main)


@pytest.mark.parametrize("failure", [RegistryUnreachable("away"), BlobMissing("gone")])
def test_a_fetch_that_fails_is_counted_for_its_host(tmp_path: Path, failure: RegistryUnreachable | BlobMissing) -> None:
    registry = MemoryRegistry()

    async def main(it: World) -> None:
        (one,) = await it.pull(layer(dir("a/"), *FILES))
        registry.faults.append(failure)
        with pytest.raises(type(failure)):
            await it.read(one, "a/1")
        counters = it.room.counters
        assert counters.by_host[HOST].failures == 1
        assert counters.read_errors == 1
        breakers = one.origin.breakers()
        assert [breaker.open for breaker in breakers.values()] == [False]

    in_world(tmp_path / "root", registry, main)


def test_what_fills_a_layer_is_counted_apart(tmp_path: Path) -> None:
    filling = replace(QUIET, fetch=FetchConfig(background_delay_s=0.0, prefetch=False))

    async def main() -> None:
        async with world(tmp_path / "root", MemoryRegistry(), filling) as it:
            await it.pull(layer(dir("a/"), *FILES))
            background = it.room.counters.by_host[HOST].fetched
            while it.room.fill.busy or not background[Priority.BACKGROUND]:  # noqa: ASYNC110 (it runs in threads too)
                await trio.sleep(0.01)
            assert background[Priority.BACKGROUND] == it.room.counters.fetched[Priority.BACKGROUND]

    run(main)
