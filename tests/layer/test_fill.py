"""Prefetch and background fill: what they bring, in which order, and what stops them."""

import os
import random
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing

from snapshotter.config import Config, FetchConfig
from snapshotter.errors import RegistryUnreachable, StoreError, StoreFull
from snapshotter.layer import fill, housekeeping
from snapshotter.layer.layer import Layer
from snapshotter.layer.priority import Priority
from snapshotter.store import cache_db
from snapshotter.store.cache_db import CacheDB
from tests.doubles.layers import BuiltLayer, dir, file, layer
from tests.doubles.memory_registry import MemoryRegistry
from tests.layer.world import QUIET, World, content_name, content_path, request, run, until, world

NOISE = random.Random(2).randbytes(400_000)
PREFETCH = replace(QUIET, fetch=replace(QUIET.fetch, prefetch=True))
BACKGROUND = replace(QUIET, fetch=replace(QUIET.fetch, background=True, background_delay_s=0.0))


def a_layer(**more: object) -> BuiltLayer:
    files = [file(f"a/{number:02}", NOISE[number * 9000 : number * 9000 + 8000]) for number in range(10)]
    return layer(dir("a/"), *files, file("big", NOISE), chunk_size=64_000, **more)  # type: ignore[arg-type]


async def settled(it: World) -> None:
    """Until every task but the workers' sleeps has nothing more to do."""
    await until(lambda: it.registry.hold is None and not it.room.fill.busy)


def mapped() -> str:
    """The files that this process maps."""
    return Path("/proc/self/maps").read_text()


def stored(one: Layer) -> int:
    return sum(one.member_stored(number) for number in range(one.index.member_count))


def test_the_range_before_the_landmark_is_prefetched_and_no_more(tmp_path: Path) -> None:
    registry = MemoryRegistry()
    built = a_layer(prefetch=["a/07", "a/03"])

    async def main() -> None:
        async with world(tmp_path / "root", registry, PREFETCH) as it:
            (one,) = await it.pull(built)
            await settled(it)
            registry.requests.clear()
            for path in ("a/07", "a/03"):
                assert await it.read(one, path) == built.files[path]
            assert registry.requests == []
            await it.read(one, "a/01")
            assert len(registry.requests) == 1
            assert it.room.counters.requests[Priority.PREFETCH] == 1

    run(main)


def test_a_landmark_against_prefetching_is_obeyed(tmp_path: Path) -> None:
    config = replace(PREFETCH, fetch=replace(PREFETCH.fetch, prefetch_size=1 << 20))

    async def main() -> None:
        async with world(tmp_path / "root", MemoryRegistry(), config) as it:
            (one,) = await it.pull(a_layer(prefetch=[]))
            await settled(it)
            assert stored(one) == 0

    run(main)


def test_without_a_landmark_the_configured_size_counts(tmp_path: Path) -> None:
    config = replace(PREFETCH, fetch=replace(PREFETCH.fetch, prefetch_size=30_000))

    async def main() -> None:
        async with world(tmp_path / "root", MemoryRegistry(), config) as it:
            (one,) = await it.pull(a_layer())
            await settled(it)
            assert 3 <= stored(one) <= 5

    run(main)


@pytest.mark.parametrize(
    ("asked", "limit", "expected"), [(30_000, 1 << 30, 30_000), (1 << 40, 50_000, 50_000), (0, 9, 0)]
)
def test_the_labels_size_is_capped_by_the_admin(tmp_path: Path, asked: int, limit: int, expected: int) -> None:
    config = replace(PREFETCH, fetch=replace(PREFETCH.fetch, prefetch=True, prefetch_max=limit))

    async def main() -> None:
        async with world(tmp_path / "root", MemoryRegistry(), config) as it:
            (one,) = await it.pull(a_layer())
            one.record = replace(one.record, prefetch_size=asked)
            assert it.room.fill.prefetch_end(one) == expected

    run(main)


def test_background_brings_the_whole_layer_in_large_ranges(tmp_path: Path) -> None:
    registry, built = MemoryRegistry(), a_layer()

    async def main() -> None:
        async with world(tmp_path / "root", registry, BACKGROUND) as it:
            (one,) = await it.pull(built)
            await settled(it)
            assert it.room.counters.requests[Priority.BACKGROUND] == 1
            assert it.state.layer(one.number).complete
            registry.blobs.clear()
            for path, data in built.files.items():
                assert await it.read(one, path) == data

    run(main)


def test_what_is_here_already_is_not_fetched_again(tmp_path: Path) -> None:
    registry, built = MemoryRegistry(), a_layer()

    async def main() -> None:
        async with world(tmp_path / "root", registry) as it:
            (one,) = await it.pull(built)
            await it.read(one, "big")
        async with world(tmp_path / "root", registry, BACKGROUND) as it:
            await settled(it)
            assert sum(it.room.counters.fetched.values()) < 100_000

    run(main)


def test_a_reader_joins_the_stream_that_brings_its_member(tmp_path: Path) -> None:
    registry, built = MemoryRegistry(), a_layer(prefetch=["a/05"])

    async def main() -> None:
        async with world(tmp_path / "root", registry, PREFETCH) as it:
            registry.requests.clear()
            (one,) = await it.pull(built)
            assert await it.read(one, "a/05") == built.files["a/05"]
            await settled(it)

    run(main)


def test_fill_comes_back_after_a_fault(tmp_path: Path) -> None:
    registry, built = MemoryRegistry(), a_layer(prefetch=["a/05"])

    async def main() -> int:
        async with world(tmp_path / "root", registry, PREFETCH) as it:
            manifest = registry.add_image("1", [(built.blob, dict(built.annotations))])
            it.room.fill.retry_pauses_s = (0.01,)
            resolved = await it.room.resolve(request(built, manifest.digest))
            registry.faults.append(RegistryUnreachable("away"))
            await settled(it)
            return sum(resolved.member_stored(number) for number in range(resolved.index.member_count))

    assert run(main) >= 1


def test_eviction_keeps_the_store_below_its_quota_and_reads_right(tmp_path: Path) -> None:
    built = a_layer()
    config = Config(
        fetch=FetchConfig(on_outage="error", prefetch=False, background=False, demand_window=0),
        cache=replace(QUIET.cache, quota=200_000),
    )

    async def main() -> None:
        async with world(tmp_path / "root", MemoryRegistry(), config) as it:
            (one,) = await it.pull(built)
            for _ in range(2):
                for path, data in built.files.items():
                    assert await it.read(one, path) == data
                    await it.room.housekeeping.evict()
                    assert it.store.usage().used <= 200_000

    run(main)


def test_a_full_disk_while_progress_is_noted_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = a_layer(prefetch=["a/05"])
    config = replace(BACKGROUND, fetch=replace(BACKGROUND.fetch, prefetch=True))

    async def main() -> None:
        async with world(tmp_path / "root", MemoryRegistry(), config) as it:

            def full(*_: object, **__: object) -> None:
                raise StoreFull("the file system is full")

            it.room.fill.retry_pauses_s = (0.01,)
            monkeypatch.setattr(it.state, "set_progress", full)
            (one,) = await it.pull(built)
            await settled(it)
            assert await it.read(one, "a/01") == built.files["a/01"]

    run(main)


def test_a_landmark_is_capped_by_the_admin_too(tmp_path: Path) -> None:
    config = replace(PREFETCH, fetch=replace(PREFETCH.fetch, prefetch_max=10_000))

    async def main() -> None:
        async with world(tmp_path / "root", MemoryRegistry(), config) as it:
            (one,) = await it.pull(a_layer(prefetch=["big"]))
            assert one.index.prefetch_end is not None
            assert one.index.prefetch_end > 10_000
            assert it.room.fill.prefetch_end(one) == 10_000

    run(main)


def test_a_layer_that_two_images_name_is_prefetched_once(tmp_path: Path) -> None:
    registry, built = MemoryRegistry(), a_layer(prefetch=["big"])

    async def main() -> None:
        async with world(tmp_path / "root", registry, PREFETCH) as it:
            (one,) = await it.pull(built)
            registry.hold = trio.Event()
            (same,) = await it.pull(built, tag="2")
            assert same is one
            registry.hold.set()
            registry.hold = None
            await settled(it)
            assert it.room.counters.requests[Priority.PREFETCH] == 1

    run(main)


def test_a_cache_in_which_nothing_can_go_is_said_once_and_not_looked_at_all_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(housekeeping, "TICK_S", 0.01)
    looked = trio.Event()
    looks: list[int] = []

    async def main() -> int:
        async with world(tmp_path / "root", MemoryRegistry()) as it:

            def over_limit() -> int:
                looks.append(1000)
                trio.from_thread.run_sync(looked.set)
                return 1000

            monkeypatch.setattr(it.store, "over_limit", over_limit)
            await looked.wait()
            await trio.sleep(0.3)
            seen = len(looks)
            await it.room.housekeeping.evict()
            return seen

    assert run(main) == 1
    assert [entry.getMessage()[:25] for entry in caplog.records] == ["1000 bytes of the cache m"]


def test_removed_layer_that_waits_to_be_filled_lets_go_of_its_index(tmp_path: Path) -> None:
    """Its file is deleted, but takes space and a descriptor for as long as it is mapped."""
    registry = MemoryRegistry()
    patient = replace(BACKGROUND, fetch=replace(BACKGROUND.fetch, background_delay_s=1000.0))

    async def main() -> None:
        async with world(tmp_path / "root", registry, patient) as it:
            await it.pull(a_layer(), layer(file("other", NOISE[:900])))
            await trio.sleep(0.1)
            assert str(it.root / "index") in mapped()
            for number in [one.number for one in it.room.shelf.all()]:
                await it.room.housekeeping.release(number)
            assert str(it.root / "index") not in mapped()

    run(main)


def test_background_fill_stops_before_anything_would_have_to_leave(tmp_path: Path) -> None:
    built = a_layer()
    config = replace(BACKGROUND, cache=replace(QUIET.cache, quota=300_000))

    async def main() -> None:
        async with world(tmp_path / "root", MemoryRegistry(), config) as it:
            (one,) = await it.pull(built)
            await trio.sleep(0.3)
            assert it.room.counters.evicted_bytes == 0
            assert it.store.usage().used <= 300_000
            assert await it.read(one, "a/03") == built.files["a/03"]

    run(main)


def test_a_layer_that_cannot_be_filled_does_not_hold_up_the_next(tmp_path: Path) -> None:
    registry = MemoryRegistry()
    sick, well = a_layer(), layer(file("other", NOISE[:90_000]))

    async def main() -> None:
        async with world(tmp_path / "root", registry, QUIET) as it:
            await it.pull(sick, well)
        del registry.blobs[sick.digest]
        async with world(tmp_path / "root", registry, BACKGROUND) as it:
            await settled(it)
            complete = {one.record.layer_digest: one.record.complete for one in it.room.shelf.all()}
            assert complete == {sick.digest: False, well.digest: True}

    run(main)


def test_removed_layer_that_waits_for_room_lets_go_of_its_index(tmp_path: Path) -> None:
    full = replace(BACKGROUND, cache=replace(QUIET.cache, quota=300_000))

    async def main() -> None:
        async with world(tmp_path / "root", MemoryRegistry(), full) as it:
            await it.pull(a_layer())
            await settled(it)
            for number in [one.number for one in it.room.shelf.all()]:
                await it.room.housekeeping.release(number)
            assert str(it.root / "index") not in mapped()

    run(main)


def test_a_layer_that_many_images_name_is_queued_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while it waits for another turn: images come and go, and each fault would leave one turn more for ever."""
    registry, built = MemoryRegistry(), a_layer()
    turns = trio.Semaphore(0)

    async def main() -> None:
        async with world(tmp_path / "root", registry, BACKGROUND) as it:
            it.room.fill.retry_pauses_s = (0.05,)
            monkeypatch.setattr(it.room.fill, "_quiet", turns.acquire)
            (one,) = await it.pull(built, tag="0")
            registry.stuck.add(built.digest)
            registry.requests.clear()
            for tag in ("1", "2", "3"):
                await it.pull(built, tag=tag)
            turns.release()
            await until(lambda: len(registry.requests) == 1 and turns.statistics().tasks_waiting)
            registry.stuck.clear()
            turns.release()
            # Whatever had one turn more would wait for it.
            await settled(it)
            assert one.record.complete
            assert it.room.counters.requests[Priority.BACKGROUND] == 2

    run(main)


def test_fill_goes_on_when_the_cache_has_room_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fill, "FULL_PAUSE_S", 0.05)
    looks: list[int] = []

    def sometimes(size: int) -> bool:
        looks.append(size)
        if len(looks) == 2:
            raise StoreError("the disk refused")
        return len(looks) > 4

    async def main() -> None:
        async with world(tmp_path / "root", MemoryRegistry(), BACKGROUND) as it:
            it.room.fill._has_room = sometimes
            (one,) = await it.pull(a_layer())
            await until(lambda: one.record.complete)
            assert it.room.counters.requests[Priority.BACKGROUND] == 1

    run(main)


def test_background_brings_what_a_power_loss_took_from_a_complete_layer_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry, built = MemoryRegistry(), a_layer()

    async def main() -> None:
        async with world(tmp_path / "root", registry, BACKGROUND) as it:
            (one,) = await it.pull(built)
            await settled(it)
            assert it.state.layer(one.number).complete
            lost = content_path(it, content_name(one, "a/05"))
        CacheDB(tmp_path / "root" / "cache.db").begin()
        with sqlite3.connect(tmp_path / "root" / "cache.db") as db:
            db.execute("DELETE FROM covered")
        db.close()
        lost.chmod(0o600)
        os.truncate(lost, 0)
        (tmp_path / "boot_id").write_text("another boot\n")
        monkeypatch.setattr(cache_db, "BOOT_ID", tmp_path / "boot_id")
        registry.requests.clear()
        async with world(tmp_path / "root", registry, BACKGROUND) as it:
            (one,) = it.room.shelf.all()
            assert not one.record.complete
            await settled(it)
            assert it.state.layer(one.number).complete
            assert stored(one) == one.index.member_count
            assert it.store.unproven == 0
        assert sum(asked.length for asked in registry.requests) < 20_000

    run(main)
