"""Reads of one layer: from the store, over the wire, and what faults become."""

import hashlib
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from snapshotter.config import Config
from snapshotter.errors import (
    BlobMissing,
    IntegrityError,
    RegistryUnreachable,
    SnapshotterError,
    StoreFull,
)
from snapshotter.format.footer import Flavor
from tests.doubles.layers import BuiltLayer, dir, file, layer
from tests.doubles.memory_registry import MemoryRegistry
from tests.layer.world import QUIET, World, find, request, run, world

NOISE = random.Random(1).randbytes(300_000)
"""Does not compress, so that blob offsets follow file offsets."""


def small_layer(**more: object) -> BuiltLayer:
    files = [file(f"a/{number}", NOISE[number * 1000 : number * 1000 + 700]) for number in range(20)]
    return layer(dir("a/"), *files, file("big", NOISE, mode=0o600), chunk_size=64_000, **more)  # type: ignore[arg-type]


def in_world(
    tmp_path: Path, registry: MemoryRegistry, config: Config = QUIET
) -> Callable[[Callable[[World], Awaitable[None]]], None]:
    """Run the decorated function at once, in a world."""

    def decorate(main: Callable[[World], Awaitable[None]]) -> None:
        async def wrapped() -> None:
            async with world(tmp_path / "root", registry, config) as it:
                await main(it)

        run(wrapped)

    return decorate


@pytest.mark.parametrize("flavor", [Flavor.ESTARGZ, Flavor.ZSTD_CHUNKED])
def test_every_file_reads_as_it_was_packed(tmp_path: Path, flavor: Flavor) -> None:
    built = small_layer(flavor=flavor)

    @in_world(tmp_path, MemoryRegistry())
    async def _(it: World) -> None:
        (one,) = await it.pull(built)
        for path, data in built.files.items():
            assert await it.read(one, path) == data, path


def test_only_the_members_that_a_read_touches_cross_the_wire(tmp_path: Path) -> None:
    built, registry = small_layer(), MemoryRegistry()

    @in_world(tmp_path, registry)
    async def _(it: World) -> None:
        (one,) = await it.pull(built)
        registry.requests.clear()
        assert await it.read(one, "a/3", 10, 50) == built.files["a/3"][10:60]
        (asked,) = registry.requests
        assert asked.length < 2000


def test_what_was_read_once_is_read_again_without_the_registry(tmp_path: Path) -> None:
    built, registry = small_layer(), MemoryRegistry()

    @in_world(tmp_path, registry)
    async def _(it: World) -> None:
        (one,) = await it.pull(built)
        first = await it.read(one, "a/1")
        middle = await it.read(one, "big", 70_000, 10)
        registry.requests.clear()
        assert await it.read(one, "a/1") == first
        assert await it.read(one, "big", 64_000, 64_000) == NOISE[64_000:128_000]
        assert middle == NOISE[70_000:70_010]
        assert registry.requests == []


def test_reads_survive_a_restart_without_any_network(tmp_path: Path) -> None:
    built, registry = small_layer(), MemoryRegistry()

    @in_world(tmp_path, registry)
    async def _(it: World) -> None:
        (one,) = await it.pull(built)
        await it.read(one, "a/5")
        await it.read(one, "big")

    registry.blobs.clear()
    registry.manifests.clear()
    asked = len(registry.requests)

    @in_world(tmp_path, registry)
    async def _(it: World) -> None:
        (one,) = it.room.shelf.all()
        assert await it.read(one, "a/5") == built.files["a/5"]
        assert await it.read(one, "big") == NOISE
        with pytest.raises(BlobMissing):
            await it.read(one, "a/6")

    assert len(registry.requests) == asked + 1


def test_many_readers_of_one_file_cause_one_fetch(tmp_path: Path) -> None:
    built, registry = small_layer(), MemoryRegistry()

    @in_world(tmp_path, registry)
    async def _(it: World) -> None:
        (one,) = await it.pull(built)
        registry.requests.clear()
        registry.hold = trio.Event()
        seen: list[bytes] = []

        async def reader() -> None:
            seen.append(await it.read(one, "a/7"))

        async with trio.open_nursery() as nursery:
            for _ in range(200):
                nursery.start_soon(reader)
            await trio.testing.wait_all_tasks_blocked()
            registry.hold.set()
        assert seen == [built.files["a/7"]] * 200
        assert len(registry.requests) == 1


def test_a_reader_who_gives_up_takes_the_fetch_from_nobody(tmp_path: Path) -> None:
    built, registry = small_layer(), MemoryRegistry()

    @in_world(tmp_path, registry)
    async def _(it: World) -> None:
        (one,) = await it.pull(built)
        registry.hold = trio.Event()
        seen: list[bytes] = []

        async def reader() -> None:
            seen.append(await it.read(one, "a/7"))

        async with trio.open_nursery() as patient:
            async with trio.open_nursery() as impatient:
                impatient.start_soon(reader)
                patient.start_soon(reader)
                await trio.testing.wait_all_tasks_blocked()
                impatient.cancel_scope.cancel()
            registry.hold.set()
        assert seen == [built.files["a/7"]]


def test_the_demand_window_brings_the_neighbours(tmp_path: Path) -> None:
    built, registry = small_layer(), MemoryRegistry()
    config = replace(QUIET, fetch=replace(QUIET.fetch, demand_window=8000))

    @in_world(tmp_path, registry, config)
    async def _(it: World) -> None:
        (one,) = await it.pull(built)
        await it.read(one, "a/0")
        registry.requests.clear()
        assert await it.read(one, "a/1") == built.files["a/1"]
        assert registry.requests == []


def flipped(start: int, stop: int) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        broken = bytearray(data)
        for at in range(start, stop):
            broken[at] ^= 0xFF
        return bytes(broken)

    return change


def test_damaged_bytes_are_fetched_once_more(tmp_path: Path) -> None:
    built, registry = small_layer(), MemoryRegistry()

    @in_world(tmp_path, registry)
    async def _(it: World) -> None:
        (one,) = await it.pull(built)
        registry.faults.append(flipped(0, built.size))
        assert await it.read(one, "a/2") == built.files["a/2"]
        assert it.room.counters.verification_failures == 1


def test_damaged_twice_is_an_error_and_nothing_is_kept(tmp_path: Path) -> None:
    built, registry = small_layer(), MemoryRegistry()

    @in_world(tmp_path, registry)
    async def _(it: World) -> None:
        (one,) = await it.pull(built)
        for _ in range(2):
            registry.faults.append(flipped(0, built.size))
        with pytest.raises(SnapshotterError):
            await it.read(one, "a/2")
        assert not it.store.has(one.domain, one.index.digest(find(one, "a/2")), 700)
        assert await it.read(one, "a/2") == built.files["a/2"]


def test_another_layer_with_the_same_file_helps_out(tmp_path: Path) -> None:
    registry = MemoryRegistry()
    good, sick = layer(file("x", NOISE[:5000])), layer(file("y", NOISE[:5000]), file("z", b"other"))

    @in_world(tmp_path, registry)
    async def _(it: World) -> None:
        _, one = await it.pull(good, sick)
        for _ in range(2):
            registry.faults.append(flipped(0, sick.size))
        assert await it.read(one, "y") == NOISE[:5000]


def test_equal_files_of_different_layers_are_fetched_once(tmp_path: Path) -> None:
    registry = MemoryRegistry()
    one_built, other_built = layer(file("x", NOISE[:5000])), layer(file("y", NOISE[:5000]), file("z", b"other"))

    @in_world(tmp_path, registry)
    async def _(it: World) -> None:
        one, other = await it.pull(one_built, other_built)
        await it.read(one, "x")
        registry.requests.clear()
        assert await it.read(other, "y") == NOISE[:5000]
        assert registry.requests == []


def test_with_share_image_another_repository_fetches_for_itself(tmp_path: Path) -> None:
    assert QUIET.cache.share == "node"
    registry = MemoryRegistry()
    built = layer(file("x", NOISE[:5000]))
    config = replace(QUIET, cache=replace(QUIET.cache, share="image"))

    @in_world(tmp_path, registry, config)
    async def _(it: World) -> None:
        (one,) = await it.pull(built)
        await it.read(one, "x")
        asked = replace(request(built, registry.manifests["1"].digest), reference="registry.test/stranger:1")
        other = await it.room.images.resolve(asked)
        assert other.domain != one.domain
        registry.requests.clear()
        assert await it.read(other, "x") == NOISE[:5000]
        assert len(registry.requests) == 1


def test_an_outage_ends_in_an_error_when_so_configured(tmp_path: Path) -> None:
    built, registry = small_layer(), MemoryRegistry()

    @in_world(tmp_path, registry)
    async def _(it: World) -> None:
        (one,) = await it.pull(built)
        registry.faults.append(RegistryUnreachable("registry.test does not answer"))
        with pytest.raises(RegistryUnreachable):
            await it.read(one, "a/2")
        assert await it.read(one, "a/2") == built.files["a/2"]


def test_an_outage_is_waited_out_when_so_configured(tmp_path: Path) -> None:
    built, registry = small_layer(), MemoryRegistry()
    config = replace(QUIET, fetch=replace(QUIET.fetch, on_outage="wait:60s"))

    @in_world(tmp_path, registry, config)
    async def _(it: World) -> None:
        (one,) = await it.pull(built)
        registry.faults.append(RegistryUnreachable("registry.test does not answer"))
        assert await it.read(one, "a/2") == built.files["a/2"]


def test_a_full_disk_does_not_fail_what_the_network_can_serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built, registry = small_layer(), MemoryRegistry()

    @in_world(tmp_path, registry)
    async def _(it: World) -> None:
        (one,) = await it.pull(built)

        def full(*_: object) -> None:
            raise StoreFull("the file system is full")

        monkeypatch.setattr(it.store, "writer", full)
        assert await it.read(one, "a/2") == built.files["a/2"]
        assert await it.read(one, "big", 60_000, 100_000) == NOISE[60_000:160_000]
        assert it.room.counters.served_from_memory >= 2


def test_an_evicted_file_is_fetched_again(tmp_path: Path) -> None:
    built, registry = small_layer(), MemoryRegistry()

    @in_world(tmp_path, registry)
    async def _(it: World) -> None:
        (one,) = await it.pull(built)
        await it.read(one, "a/2")
        await it.room.housekeeping.free(1 << 40)
        assert it.store.usage().used == 0
        assert await it.read(one, "a/2") == built.files["a/2"]


def test_a_released_layer_leaves_nothing(tmp_path: Path) -> None:
    built, other_built, registry = small_layer(), layer(file("other", NOISE[:900])), MemoryRegistry()

    @in_world(tmp_path, registry)
    async def _(it: World) -> None:
        one, other = await it.pull(built, other_built)
        await it.read(one, "big")
        await it.read(other, "other")
        await it.room.housekeeping.release(one.number)
        assert [found.number for found in it.room.shelf.all()] == [other.number]
        assert [stored.size for stored in it.store.iterate("node")] == [900]
        await it.room.housekeeping.release(other.number)
        left = [
            path for path in it.root.rglob("*") if path.is_file() and not path.name.startswith(("state.db", "cache.db"))
        ]
        assert left == []


def test_two_layers_that_name_one_digest_with_different_chunks_do_not_mix(tmp_path: Path) -> None:
    """A TOC that lies about a file's digest gets only its own bytes, and its lie never becomes an object."""
    registry = MemoryRegistry()
    honest = layer(file("x", NOISE[:100_000]), chunk_size=40_000)
    digest = "sha256:" + hashlib.sha256(NOISE[:100_000]).hexdigest()

    def lie(toc: dict[str, Any]) -> None:
        for entry in toc["entries"]:
            if entry["name"] == "x" and entry["type"] == "reg":
                entry["digest"] = digest

    liar = layer(file("x", NOISE[100_000:200_000]), chunk_size=40_000, edit=lie)

    @in_world(tmp_path, registry)
    async def _(it: World) -> None:
        one, other = await it.pull(honest, liar)
        assert await it.read(other, "x") == NOISE[100_000:200_000]
        assert not it.store.has("node", bytes.fromhex(digest[7:]), 100_000)
        assert await it.read(one, "x") == NOISE[:100_000]
        assert await it.read(one, "x", 50_000, 10) == NOISE[50_000:50_010]


def test_a_member_that_inflates_to_less_is_an_error(tmp_path: Path) -> None:
    registry = MemoryRegistry()

    def grow(toc: dict[str, Any]) -> None:
        for entry in toc["entries"]:
            if entry["name"] == "x":
                entry["size"] = 6000

    built = layer(file("x", NOISE[:5000]), edit=grow)

    @in_world(tmp_path, registry)
    async def _(it: World) -> None:
        (one,) = await it.pull(built)
        with pytest.raises(SnapshotterError):
            await it.read(one, "x")


def test_mismatch_of_the_chunk_digest_is_integrity_error(tmp_path: Path) -> None:
    def change(toc: dict[str, Any]) -> None:
        for entry in toc["entries"]:
            if entry["name"] == "x":
                entry["chunkDigest"] = entry["digest"] = "sha256:" + "1" * 64

    built = layer(file("x", NOISE[:5000]), edit=change)

    @in_world(tmp_path, MemoryRegistry())
    async def _(it: World) -> None:
        (one,) = await it.pull(built)
        with pytest.raises(IntegrityError):
            await it.read(one, "x")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    ranges=st.lists(st.tuples(st.integers(0, 300_010), st.integers(0, 200_000)), min_size=1, max_size=6),
    share=st.sampled_from([0, 30_000]),
    chunk_size=st.sampled_from([1000, 64_000, 1 << 20]),
)
def test_any_range_of_a_large_file_reads_right(
    tmp_path_factory: pytest.TempPathFactory, ranges: list[tuple[int, int]], share: int, chunk_size: int
) -> None:
    built = layer(
        file("a", NOISE[:5000]), file("big", NOISE), file("b", NOISE[:99]), chunk_size=chunk_size, share=share
    )

    @in_world(tmp_path_factory.mktemp("w"), MemoryRegistry())
    async def _(it: World) -> None:
        (one,) = await it.pull(built)
        for offset, size in ranges:
            assert await it.read(one, "big", offset, size) == NOISE[offset : offset + size]
