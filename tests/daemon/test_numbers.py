"""The daemon's parts as the metrics see them, over a real layer room."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import trio

from snapshotter.config import CacheConfig, Config
from snapshotter.daemon.calls import CALL_BOUNDS_S, CallTimes
from snapshotter.daemon.node import Identity
from snapshotter.daemon.numbers import Numbers, Sources, cache_figures, pulled
from snapshotter.errors import Reason, RegistryUnreachable, StoreError
from snapshotter.layer.breaker import FAILURES
from snapshotter.layer.counters import HOSTS_MAX, OTHER_HOSTS
from snapshotter.metrics.exposition import Exposition
from snapshotter.metrics.figures import Figures
from snapshotter.registry.retry import RetryCounts
from snapshotter.service.pulls import LayerOutcome, Outcome, PullLog
from snapshotter.store import state_snapshots
from snapshotter.store.state_snapshots import Kind, NewSnapshot
from tests.doubles.layers import BuiltLayer, dir, file, layer
from tests.doubles.memory_registry import MemoryRegistry
from tests.layer.world import QUIET, World, run, world

HOST = "registry.test"


def built(number: int) -> BuiltLayer:
    return layer(
        dir("a/"), file("a/x", f"layer {number} ".encode() * 200), file("a/y", f"more {number} ".encode() * 200)
    )


@dataclass
class Said:
    """An answer of the loop, without one."""

    answer: dict[str, bool]

    def read(self) -> tuple[dict[str, bool], float]:
        return self.answer, 0.5


def numbers(it: World, **replaced: Any) -> Numbers:
    parts: dict[str, Any] = {
        "state": it.state,
        "store": it.store,
        "shelf": it.room.shelf,
        "counters": it.room.counters,
        "waits": it.room.waits,
        "fuse_requests": {"lookup": 3},
        "fuse_failures": {"read": 1},
        "retries": RetryCounts(),
        "sick": Said({"mirror.test": True, HOST: False}),
        "pulls": PullLog(),
        "calls": CallTimes(),
        "problems": lambda: 0,
        "plane_failures": dict,
    }
    config = Config(root=it.root, cache=CacheConfig(quota=1000, min_free=0))
    return Numbers(config, Identity("fuse", "because", 7, 1), Sources(**{**parts, **replaced}))


def in_world(root: Path, registry: MemoryRegistry, main: Callable[[World], Awaitable[None]]) -> None:
    async def wrapped() -> None:
        async with world(root, registry, QUIET) as it:
            await main(it)

    run(wrapped)


def test_figures_are_those_of_the_parts(tmp_path: Path) -> None:
    async def main(it: World) -> None:
        (one,) = await it.pull(built(1))
        await it.read(one, "a/x")
        await it.read(one, "a/x")
        it.room.shelf.note_progress(one.number, complete=False)
        figures = numbers(it, problems=lambda: 2, plane_failures=lambda: {1: "no image"}).read()
        assert (figures.plane, figures.session, figures.problems, figures.layers_through_fuse) == ("fuse", 7, 2, 1)
        assert figures.layers == {"lazy": 1, "complete": 0, "failed": 0, "ordinary": 0}
        assert (figures.reads, sum(figures.waits["read"].counts)) == (2, 1)
        assert figures.waiting == {"read": 0, "lookup": 0}
        assert figures.fuse_errors == {"read": 1, "lookup": 0}
        assert figures.read_bytes["cache"] == figures.read_bytes["registry"] == len(built(1).files["a/x"])
        assert figures.fetches == {HOST: 1}
        assert figures.host_failing == {HOST: 0}
        assert figures.breaker_open == {HOST: 0}
        assert figures.host_passed_over == {"mirror.test": 1, HOST: 0}
        assert figures.loop_delay == 0.5
        assert figures.cache is not None
        assert figures.cache.files_by_kind["object"] == 1
        assert figures.cache.used == figures.cache.bytes_by_kind["object"] > 0
        assert (figures.cache.quota, figures.cache.high_water) == (1000, 950)
        it.room.shelf.note_progress(one.number, complete=True)
        assert numbers(it).read().layers["complete"] == 1

    in_world(tmp_path / "root", MemoryRegistry(), main)


def test_a_breaker_of_one_layer_shows_at_its_host(tmp_path: Path) -> None:
    registry = MemoryRegistry()

    async def main(it: World) -> None:
        one, two = await it.pull(built(1), built(2))
        await it.read(two, "a/x")
        registry.stuck.add(one.record.layer_digest)
        for _ in range(FAILURES):
            with pytest.raises(RegistryUnreachable):
                await it.read(one, "a/x")
        figures = numbers(it).read()
        assert figures.breaker_open == {HOST: 1}
        assert figures.host_failing == {HOST: 1}
        assert figures.fetch_failures == {HOST: FAILURES}

    in_world(tmp_path / "root", registry, main)


def series_of(figures: Figures) -> int:
    class Given:
        def read(self) -> Figures:
            return figures

    text = Exposition(Given()).render("")[1].decode()
    return sum(not line.startswith("#") for line in text.splitlines())


def test_series_do_not_grow_with_layers_and_hosts_are_bounded(tmp_path: Path) -> None:
    async def main(it: World) -> None:
        (first,) = await it.pull(built(0))
        await it.read(first, "a/x")
        before = series_of(numbers(it).read())
        for number in range(1, 6):
            (more,) = await it.pull(built(number), tag=f"t{number}")
            await it.read(more, "a/y")
        assert series_of(numbers(it).read()) == before
        for number in range(3 * HOSTS_MAX):
            host = f"registry-{number}.test"
            it.room.counters.of_host(host).requests += 1
            it.room.counters.hosts[host] = "away"
        figures = numbers(it).read()
        for by_host in (figures.fetches, figures.host_failing, figures.fetch_failures):
            assert len(by_host) == HOSTS_MAX + 1
            assert OTHER_HOSTS in by_host

    in_world(tmp_path / "root", MemoryRegistry(), main)


def test_ordinary_layers_are_those_that_were_unpacked(tmp_path: Path) -> None:
    async def main(it: World) -> None:
        def insert() -> None:
            with it.state.write() as db:
                for key, kind, reason in (
                    ("a", Kind.COMMITTED, Reason.TIMEOUT),
                    ("b", Kind.COMMITTED, None),
                    ("c", Kind.ACTIVE, Reason.TIMEOUT),
                    ("d", Kind.VIEW, None),
                ):
                    state_snapshots.insert(db, NewSnapshot(key, None, kind, 1, {}, not_lazy=reason))

        await trio.to_thread.run_sync(insert)
        figures = numbers(it).read()
        assert figures.layers["ordinary"] == 1
        assert figures.snapshots == {"view": 1, "active": 1, "committed": 2}

    in_world(tmp_path / "root", MemoryRegistry(), main)


def test_every_reason_has_its_zero() -> None:
    pulls = PullLog()
    pulls.note_unknown("", LayerOutcome("x", Outcome.ORDINARY, Reason.TIMEOUT, "late"))
    found = pulled(pulls)
    assert {reason for result, reason in found if result == "ordinary"} == set(Reason)
    assert found["ordinary", "timeout"] == 1
    assert found["lazy", ""] == found["present", ""] == 0


def test_a_disk_that_does_not_say_leaves_the_cache_out(tmp_path: Path) -> None:
    class Broken:
        def usage(self) -> None:
            raise StoreError("the disk is failing")

    assert cache_figures(cast("Any", Broken()), CacheConfig(), tmp_path) is None


def test_calls_of_many_threads_are_all_counted() -> None:
    times = CallTimes()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for number in range(20):
                code = "OK" if number % 2 else "NOT_FOUND"
                nursery.start_soon(trio.to_thread.run_sync, observe_many, times, code)

    run(main)
    found = times.histograms()
    assert {key: sum(one.counts) for key, one in found.items()} == {
        ("Snapshots/Stat", "OK"): 5000,
        ("Snapshots/Stat", "NOT_FOUND"): 5000,
    }
    assert found["Snapshots/Stat", "OK"].bounds == CALL_BOUNDS_S
    found["Snapshots/Stat", "OK"].observe(1.0)
    assert sum(times.histograms()["Snapshots/Stat", "OK"].counts) == 5000


def observe_many(times: CallTimes, code: str) -> None:
    for _ in range(500):
        times.observe("Snapshots/Stat", code, 0.002)
