"""What the node does about its disk by itself: orphans of a crash, a disk that fails and is well again, room that comes back."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from snapshotter.errors import StoreError, StoreFull
from snapshotter.layer import fill, housekeeping
from snapshotter.layer.priority import Priority
from snapshotter.store import partial_files, writer
from snapshotter.store.cache_db import CacheDB
from snapshotter.store.disk import write_all
from snapshotter.store.objects import ObjectStore
from tests.doubles.layers import file, layer
from tests.doubles.memory_registry import MemoryRegistry
from tests.layer.world import QUIET, content_name, content_path, run, until, world
from tests.store.content import bytes_of, identity_of, part, spoil

DATA = bytes_of(300_000)
GONE = bytes_of(9000, 1)
BUILT = layer(file("small", DATA[:9000]), file("other", DATA[9000:20_000]), file("large", DATA), chunk_size=64_000)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chores come at once."""
    monkeypatch.setattr(housekeeping, "TICK_S", 0.01)
    monkeypatch.setattr(housekeeping, "TIDY_AFTER_S", 0.02)


@contextmanager
def interrupted(root: Path) -> Iterator[ObjectStore]:
    """A store whose daemon is killed."""
    store = ObjectStore(root, CacheDB(root / "cache.db"), QUIET.cache)
    yield store
    for part_of_it in (store._handles, store._partials, store._objects, store._late, store._unproven, store._db):
        part_of_it.close()


def test_orphans_of_a_killed_daemon_go_and_what_layers_need_stays(tmp_path: Path, quick: None) -> None:
    root, registry = tmp_path / "root", MemoryRegistry()

    async def before() -> None:
        async with world(root, registry) as it:
            (one,) = await it.pull(BUILT)
            await it.read(one, "small")

    async def after() -> None:
        async with world(root, registry) as it:
            (one,) = it.room.shelf.all()
            planted = {root / "tocs" / "orphan.json.zst", root / "index" / "a.1.idx", root / "index" / "a.1.idx.77.new"}
            planted.add(root / "manifests" / "orphan.json")
            for path in planted:
                path.write_text("orphan")
            await until(lambda: not any(path.exists() for path in planted))
            await until(lambda: len([*it.store.iterate("node"), *it.store.iterate_partials("node")]) == 1)
            assert await it.read(one, "small") == DATA[:9000]
            assert len(registry.requests) == asked

    run(before)
    with interrupted(root) as store:
        for orphan in (identity_of(GONE), identity_of(GONE + GONE, 9000)):
            with store.writer("node", orphan, 0) as one:
                one.write(part(GONE + GONE, orphan, 0))
                one.commit()
    asked = len(registry.requests)
    run(after)


def test_files_of_a_layer_that_is_just_being_opened_are_no_orphans(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path / "root", MemoryRegistry()) as it:
            new = it.root / "index" / "new.idx"
            new.write_text("just written")
            async with it.room.shelf.opening("sha256:" + "a" * 64):
                assert not await it.room.shelf.drop_orphans()
            assert new.exists()
            assert await it.room.shelf.drop_orphans()
            assert not new.exists()

    run(main)


class SickDisk:
    """Refuses every write of content with one error for as long as it has one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
        self.code = code
        for module in (writer, partial_files):
            monkeypatch.setattr(module, "write_all", self.write)

    def write(self, fd: int, data: bytes | memoryview, offset: int) -> None:
        if self.code:
            raise OSError(self.code, os.strerror(self.code))
        write_all(fd, data, offset)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_reads_go_on_while_the_disk_refuses_and_are_kept_when_it_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None, code: int
) -> None:
    async def main() -> None:
        registry = MemoryRegistry()
        async with world(tmp_path / "root", registry) as it:
            (one,) = await it.pull(BUILT)
            sick = SickDisk(monkeypatch, code)
            monkeypatch.setattr(it.store, "tend_disk", lambda: None)
            assert await it.read(one, "small") == DATA[:9000]
            (problem,) = it.room.housekeeping.problems()
            assert problem.startswith("degraded")
            assert os.strerror(code) in problem
            asked = len(registry.requests)
            # In pieces, as the kernel asks: each chunk crosses the wire once, and without its neighbours.
            for offset in range(0, 128_000, 16_000):
                assert await it.read(one, "large", offset, 16_000) == DATA[offset : offset + 16_000]
            assert len(registry.requests) == asked + 2
            assert it.store.usage().used == 0
            sick.code = 0
            monkeypatch.undo()
            it.store.tend_disk()
            assert list(it.room.housekeeping.problems()) == []
            assert await it.read(one, "large", 0, 16_000) == DATA[:16_000]
            assert await it.read(one, "small") == DATA[:9000]
            assert content_path(it, content_name(one, "small")).exists()

    run(main)


def test_state_that_finds_no_room_is_said_and_makes_the_cache_give_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    async def main() -> None:
        async with world(tmp_path / "root", MemoryRegistry()) as it:
            (one,) = await it.pull(BUILT)
            await it.read(one, "small")
            full = StoreFull("no room to write state.db")
            full.__cause__ = OSError(errno.ENOSPC, "full")
            monkeypatch.setattr(it.state, "try_again", lambda: None)
            it.state.health.refused(full)
            assert any("state.db" in problem for problem in it.room.housekeeping.problems())
            await until(lambda: it.store.usage().used == 0)
            it.state.health.worked(1 << 30)
            await until(lambda: list(it.room.housekeeping.problems()) == [])

    run(main)


def test_files_that_containers_hold_are_not_taken_from_others_all_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # The test alone evicts.
    monkeypatch.setattr(housekeeping, "TICK_S", 3600.0)

    async def main() -> None:
        config = replace(QUIET, cache=replace(QUIET.cache, min_free=1 << 60))
        async with world(tmp_path / "root", MemoryRegistry()) as it:
            (one,) = await it.pull(BUILT)
            await it.read(one, "small")
            await it.read(one, "other")
            monkeypatch.setattr(it.store._bounds, "_limits", config.cache)
            holders = [os.open(content_path(it, content_name(one, name)), os.O_PATH) for name in ("small", "other")]
            monkeypatch.setattr(it.store._bounds, "excess", lambda: 1)
            await it.room.housekeeping.evict()
            assert len(list(it.store.iterate("node"))) == 1
            assert it.room.housekeeping._rest_until > trio.current_time()
            for holder in holders:
                os.close(holder)

    run(main)
    assert "containers hold" in caplog.text


def test_disk_that_cannot_be_counted_does_not_silence_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        error = StoreError("cannot count the cache: Input/output error")
        error.__cause__ = OSError(errno.EIO, "Input/output error")
        raise error

    async def main() -> None:
        async with world(tmp_path / "root", MemoryRegistry()) as it:
            monkeypatch.setattr(it.store, "_count", lambda: fail(0))
            assert it.store.usage().used == 0
            assert any("Input/output error" in problem for problem in it.room.housekeeping.problems())
            monkeypatch.undo()

    run(main)


FILLING = replace(QUIET, fetch=replace(QUIET.fetch, background=True, background_delay_s=0.0))


def test_layers_are_filled_again_when_there_is_room_for_what_has_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fill, "REFILL_PAUSE_S", 0.05)
    monkeypatch.setattr(fill, "FULL_PAUSE_S", 0.05)
    room = False

    async def main() -> None:
        nonlocal room
        async with world(tmp_path / "root", MemoryRegistry(), FILLING) as it:
            (one,) = await it.pull(BUILT)
            await until(lambda: one.record.complete)
            it.room.fill._has_room = lambda _: room
            await it.room.housekeeping.free(1 << 40)
            assert not one.record.complete
            assert not it.state.layer(one.number).complete
            await trio.sleep(0.2)
            assert it.store.usage().used == 0
            room = True
            # On disk a moment after it is so in memory.
            await until(lambda: one.record.complete and it.state.layer(one.number).complete)
            assert content_path(it, content_name(one, "large")).exists()

    run(main)


def in_doubt(root: Path) -> None:
    """As after a power loss that took cache.db along: nothing is believed."""
    for path in root.glob("cache.db*"):
        path.unlink()


def test_complete_layers_are_settled_after_an_unclean_boot_without_the_network(tmp_path: Path) -> None:
    root, registry = tmp_path / "root", MemoryRegistry()

    async def before() -> None:
        async with world(root, registry, FILLING) as it:
            (one,) = await it.pull(BUILT)
            await until(lambda: one.record.complete)

    async def after() -> None:
        async with world(root, registry, FILLING) as it:
            (one,) = it.room.shelf.all()
            names = [content_name(one, path) for path in ("small", "other", "large")]
            # Counted a moment after it has its name.
            await until(lambda: it.store.unproven == 0 and one.record.complete)
            assert all(content_path(it, name).exists() for name in names)

    run(before)
    in_doubt(root)
    asked = len(registry.requests)
    run(after)
    assert len(registry.requests) == asked


def test_layer_that_a_power_loss_tore_is_not_complete_and_gets_what_it_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    monkeypatch.setattr(fill, "REFILL_PAUSE_S", 0.05)
    root, registry = tmp_path / "root", MemoryRegistry()

    async def before() -> Path:
        async with world(root, registry, FILLING) as it:
            (one,) = await it.pull(BUILT)
            await until(lambda: one.record.complete)
            return content_path(it, content_name(one, "small"))

    async def after() -> None:
        async with world(root, registry, FILLING) as it:
            (one,) = it.room.shelf.all()
            await until(lambda: it.room.counters.requests[Priority.BACKGROUND])
            await until(lambda: one.record.complete)
            assert torn.read_bytes() == DATA[:9000]
            # The one file, not all.
            assert it.room.counters.fetched[Priority.BACKGROUND] < 20_000

    torn = run(before)
    spoil(torn)
    in_doubt(root)
    run(after)


def test_what_awaits_proof_is_proven_and_not_fetched_by_a_fill(tmp_path: Path) -> None:
    root, registry = tmp_path / "root", MemoryRegistry()

    async def before() -> None:
        async with world(root, registry) as it:
            (one,) = await it.pull(BUILT)
            for path, data in BUILT.files.items():
                assert await it.read(one, path) == data

    async def after() -> None:
        async with world(root, registry, FILLING) as it:
            (one,) = it.room.shelf.all()
            await until(lambda: one.record.complete)
            assert it.room.counters.requests[Priority.BACKGROUND] == 0

    run(before)
    in_doubt(root)
    run(after)
