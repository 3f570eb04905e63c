"""Files by the names that overlays ask for: brought by whichever layer can, and never by another's word."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from snapshotter.errors import BlobMissing, FormatError, RegistryUnreachable, SnapshotterError, StoreError, StoreFull
from snapshotter.format.footer import Flavor
from snapshotter.layer import contents
from snapshotter.layer.layer import Layer
from tests.doubles.layers import BuiltLayer, file, layer
from tests.doubles.memory_registry import MemoryRegistry
from tests.layer.world import QUIET, World, content_name, content_path, request, run, world

NOISE = random.Random(3).randbytes(300_000)
SMALL, LARGE = NOISE[:5000], NOISE
DOMAIN = "node"


def both(**more: Any) -> BuiltLayer:
    """A small file, and a large one of eight chunks."""
    return layer(file("small", SMALL), file("large", LARGE), chunk_size=40_000, **more)


def small(other: bytes) -> BuiltLayer:
    """The small file, beside one that tells the layers apart."""
    return layer(file(f"small-{other.hex()}", SMALL), file(f"other-{other.hex()}", other * 700))


async def pull(it: World, *built: BuiltLayer) -> list[Layer]:
    """Pull them one after another: layers that came first are asked first."""
    return [(await it.pull(one, tag=str(number)))[0] for number, one in enumerate(built)]


def damage(it: World, built: BuiltLayer) -> None:
    """The registry has other bytes."""
    it.registry.blobs[built.digest] = bytes(byte ^ 0xFF for byte in built.blob)


def lose(it: World, built: BuiltLayer) -> None:
    """The registry has lost the blob."""
    del it.registry.blobs[built.digest]


def stop(it: World, built: BuiltLayer) -> None:
    """The registry does not answer for the blob."""
    it.registry.stuck.add(built.digest)


Fault = Callable[[World, BuiltLayer], None]
each_fault = pytest.mark.parametrize("fault", [damage, lose])


# --- what is known of a name


def test_sizes_are_known_of_what_a_layer_names_and_of_nothing_else(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path / "root", MemoryRegistry()) as it:
            (one,) = await it.pull(both())
            contents = it.room.contents
            name, large = content_name(one, "small"), content_name(one, "large")
            assert (await contents.size(DOMAIN, name), await contents.size(DOMAIN, large)) == (5000, 300_000)
            assert await contents.size("other", name) is None
            digest, _, chunks = large.partition("-")
            strangers = ["", "x", "\udcff", "0" * 64, name[:-2], f"{name}-{chunks}", digest, f"{digest}-{'0' * 32}"]
            for stranger in strangers:
                assert await contents.size(DOMAIN, stranger) is None
                with pytest.raises(StoreError):
                    await contents.bring(DOMAIN, stranger)
                with pytest.raises(StoreError):
                    await contents.read(DOMAIN, stranger, 10, 0, 10)

    run(main)


def test_a_size_on_which_layers_disagree_is_disputed(tmp_path: Path) -> None:
    def shrink(toc: dict[str, Any]) -> None:
        for entry in toc["entries"]:
            if entry["name"] == "small":
                entry["size"] = 4000

    async def main() -> None:
        async with world(tmp_path / "root", MemoryRegistry()) as it:
            one, _ = await pull(it, both(), small(b"a"))
            name = content_name(one, "small")
            assert not await it.room.contents.disputed(DOMAIN, name)
            (liar,) = await it.pull(both(edit=shrink), tag="liar")
            assert await it.room.contents.disputed(DOMAIN, name)
            assert not await it.room.contents.disputed(DOMAIN, content_name(one, "large"))
            await it.room.release(liar.number)
            assert not await it.room.contents.disputed(DOMAIN, name)

    run(main)


# --- bringing


def test_a_small_file_is_stored_and_lies_where_the_kernel_looks_next(tmp_path: Path) -> None:
    registry = MemoryRegistry()

    async def main() -> None:
        async with world(tmp_path / "root", registry) as it:
            (one,) = await it.pull(both())
            name = content_name(one, "small")
            assert await it.room.contents.bring(DOMAIN, name)
            found, late = content_path(it, name), content_path(it, name, "late")
            assert found.read_bytes() == SMALL
            assert found.stat().st_ino == late.stat().st_ino
            registry.requests.clear()
            late.unlink()
            assert await it.room.contents.bring(DOMAIN, name)
            assert late.read_bytes() == SMALL
            assert registry.requests == []

    run(main)


def test_a_large_file_lies_there_once_it_is_whole_and_bringing_fetches_nothing(tmp_path: Path) -> None:
    registry = MemoryRegistry()

    async def main() -> None:
        async with world(tmp_path / "root", registry) as it:
            (one,) = await it.pull(both())
            name = content_name(one, "large")
            registry.requests.clear()
            assert not await it.room.contents.bring(DOMAIN, name)
            assert registry.requests == []
            assert await it.room.contents.read(DOMAIN, name, len(LARGE), 39_000, 2000) == LARGE[39_000:41_000]
            assert not await it.room.contents.bring(DOMAIN, name)
            assert await it.room.contents.read(DOMAIN, name, len(LARGE), 0, 1 << 20) == LARGE
            assert await it.room.contents.bring(DOMAIN, name)
            for top in ("objects", "late"):
                assert content_path(it, name, top).read_bytes() == LARGE

    run(main)


def test_a_large_file_of_zeros_is_whole_without_any_network(tmp_path: Path) -> None:
    built = layer(file("zeros", bytes(200_000)), flavor=Flavor.ZSTD_CHUNKED, storage=True, chunk_size=64_000)
    registry = MemoryRegistry()

    async def main() -> None:
        async with world(tmp_path / "root", registry) as it:
            (one,) = await it.pull(built)
            registry.requests.clear()
            name = content_name(one, "zeros")
            assert "-" in name
            assert await it.room.contents.bring(DOMAIN, name)
            assert content_path(it, name, "late").read_bytes() == bytes(200_000)
            assert registry.requests == []

    run(main)


def test_a_file_that_is_evicted_before_it_has_its_late_name_is_brought_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with world(tmp_path / "root", MemoryRegistry()) as it:
            (one,) = await it.pull(both())
            name, link, evicted = content_name(one, "small"), it.store.link_late, list[bytes]()

            def evict_first(domain: str, digest: bytes, size: int, as_name: str = "") -> bool:
                if not evicted:
                    evicted.append(digest)
                    it.store.remove(domain, digest)
                return link(domain, digest, size, as_name)

            monkeypatch.setattr(it.store, "link_late", evict_first)
            assert await it.room.contents.bring(DOMAIN, name)
            assert content_path(it, name, "late").read_bytes() == SMALL
            assert evicted

    run(main)


# --- layers that cannot deliver


@each_fault
@pytest.mark.parametrize("sick", [0, 1])
def test_where_one_layer_cannot_deliver_another_does(tmp_path: Path, fault: Fault, sick: int) -> None:
    built = [small(b"a"), small(b"b")]

    async def main() -> None:
        async with world(tmp_path / "root", MemoryRegistry()) as it:
            one, _ = await pull(it, *built)
            fault(it, built[sick])
            name = content_name(one, "small-61")
            assert await it.room.contents.bring(DOMAIN, name)
            assert content_path(it, name, "late").read_bytes() == SMALL

    run(main)


@pytest.mark.parametrize(("fault", "raised"), [(damage, FormatError), (lose, BlobMissing), (stop, RegistryUnreachable)])
def test_where_no_layer_can_deliver_it_is_an_error_until_one_can(
    tmp_path: Path, fault: Fault, raised: type[SnapshotterError]
) -> None:
    built = [small(b"a"), small(b"b")]

    async def main() -> None:
        async with world(tmp_path / "root", MemoryRegistry()) as it:
            one, _ = await pull(it, *built)
            for each in built:
                fault(it, each)
            name = content_name(one, "small-61")
            with pytest.raises(raised):
                await it.room.contents.bring(DOMAIN, name)
            assert not content_path(it, name).exists()
            it.registry.blobs[built[1].digest] = built[1].blob
            it.registry.stuck.clear()
            assert await it.room.contents.bring(DOMAIN, name)

    run(main)


def test_a_host_that_is_away_is_not_asked_for_another_of_its_layers(tmp_path: Path) -> None:
    built = [small(b"a"), small(b"b"), small(b"c")]
    names = ["away.test/app", "away.test/app", "there.test/app"]

    async def main() -> None:
        async with world(tmp_path / "root", MemoryRegistry()) as it:
            layers = []
            for number, (one, name) in enumerate(zip(built, names, strict=True)):
                digest = it.registry.add_image(str(number), [(one.blob, dict(one.annotations))]).digest
                layers.append(await it.room.resolve(request(one, digest, tag=str(number), name=name)))
            it.registry.away.add("away.test")
            it.registry.requests.clear()
            assert await it.room.contents.bring(DOMAIN, content_name(layers[0], "small-61"))
            asked = [asked.digest for asked in it.registry.requests]
            assert built[0].digest in asked
            assert built[1].digest not in asked
            assert asked[-1] == built[2].digest

    run(main)


def test_a_registry_that_is_away_holds_up_no_file_that_another_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody knows whose container asks: the older image's registry may be the one that is gone."""
    built = [small(b"a"), small(b"b")]
    patient = replace(QUIET, fetch=replace(QUIET.fetch, on_outage="wait"))

    async def main() -> None:
        async with world(tmp_path / "root", MemoryRegistry(), patient) as it:
            layers = []
            for number, (one, host) in enumerate(zip(built, ("away.test", "there.test"), strict=True)):
                digest = it.registry.add_image(str(number), [(one.blob, dict(one.annotations))]).digest
                layers.append(await it.room.resolve(request(one, digest, tag=str(number), name=f"{host}/app")))
            it.registry.away.add("away.test")
            name = content_name(layers[0], "small-61")
            with trio.fail_after(10):
                assert await it.room.contents.bring(DOMAIN, name)
                it.store.remove(DOMAIN, bytes.fromhex(name))
                it.store.sweep_late(0)
                assert await it.room.contents.read(DOMAIN, name, len(SMALL), 0, 5000) == SMALL
            # From now on that registry is asked last.
            it.store.remove(DOMAIN, bytes.fromhex(name))
            asked, bring = list[int](), Layer.bring_chunks

            async def noted(layer: Layer, node: int) -> bool:
                asked.append(layer.number)
                return await bring(layer, node)

            monkeypatch.setattr(Layer, "bring_chunks", noted)
            monkeypatch.setattr(contents, "HEDGE_S", 3600.0)
            assert await it.room.contents.bring(DOMAIN, name)
            assert asked == [layers[1].number]

    run(main)


def test_a_layer_in_use_meanwhile_is_still_asked_when_another_fails(tmp_path: Path) -> None:
    """Which layers were asked lately changes while one is waited for."""
    built = [small(b"a"), small(b"b")]

    async def main() -> None:
        async with world(tmp_path / "root", MemoryRegistry()) as it:
            one, other = await pull(it, *built)
            name, brought = content_name(one, "small-61"), list[bool]()
            lose(it, built[0])
            it.registry.hold = trio.Event()

            async def bring() -> None:
                brought.append(await it.room.contents.bring(DOMAIN, name))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(bring)
                await trio.testing.wait_all_tasks_blocked(0.05)
                assert await it.room.contents.size(DOMAIN, content_name(other, "other-62")) == 700
                it.registry.hold.set()
            assert brought == [True]

    run(main)


# --- a disk that takes nothing


def test_what_the_disk_does_not_take_is_not_whole_and_is_read_from_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise StoreFull("the file system is full")

    async def main() -> None:
        async with world(tmp_path / "root", MemoryRegistry()) as it:
            (one,) = await it.pull(both())
            monkeypatch.setattr(it.store, "writer", full)
            for path, data in (("small", SMALL), ("large", LARGE)):
                name = content_name(one, path)
                it.registry.requests.clear()
                assert not await it.room.contents.bring(DOMAIN, name)
                # Once for the disk, once for memory.
                assert len(it.registry.requests) <= 2
                assert await it.room.contents.read(DOMAIN, name, len(data), 0, 1 << 20) == data
                assert not content_path(it, name).exists()

    run(main)


def test_a_file_that_gets_no_late_name_is_not_whole_and_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise StoreError("too many links")

    async def main() -> None:
        async with world(tmp_path / "root", MemoryRegistry()) as it:
            (one,) = await it.pull(both())
            monkeypatch.setattr(it.store, "link_late", refuse)
            name = content_name(one, "small")
            assert not await it.room.contents.bring(DOMAIN, name)
            assert await it.room.contents.read(DOMAIN, name, len(SMALL), 4990, 100) == SMALL[4990:]

    run(main)


# --- layers that go, and domains


def test_a_layer_that_was_released_holds_nothing(tmp_path: Path) -> None:
    built = [small(b"a"), small(b"b")]
    config = replace(QUIET, cache=replace(QUIET.cache, keep_unreferenced=1 << 30))

    async def main() -> None:
        async with world(tmp_path / "root", MemoryRegistry(), config) as it:
            one, other = await pull(it, *built)
            name = content_name(one, "small-61")
            assert await it.room.contents.read(DOMAIN, name, len(SMALL), 0, 5000) == SMALL
            await it.room.release(one.number)
            # By the other layer, although the first is remembered.
            assert await it.room.contents.read(DOMAIN, name, len(SMALL), 10, 5) == SMALL[10:15]
            assert await it.room.contents.bring(DOMAIN, name)
            await it.room.release(other.number)
            assert await it.room.contents.size(DOMAIN, name) is None
            for _ in range(2):
                with pytest.raises(StoreError, match="no layer"):
                    await it.room.contents.read(DOMAIN, name, len(SMALL), 0, 5000)
            with pytest.raises(StoreError, match="no layer"):
                await it.room.contents.bring(DOMAIN, name)

    run(main)


def test_layers_of_another_domain_bring_nothing(tmp_path: Path) -> None:
    built, config = [small(b"a"), small(b"b")], replace(QUIET, cache=replace(QUIET.cache, share="image"))

    async def main() -> None:
        async with world(tmp_path / "root", MemoryRegistry(), config) as it:
            layers = []
            for number, one in enumerate(built):
                digest = it.registry.add_image(str(number), [(one.blob, dict(one.annotations))]).digest
                asked = request(one, digest, tag=str(number), name=f"registry.test/app{number}")
                layers.append(await it.room.resolve(asked))
            lose(it, built[0])
            name = content_name(layers[0], "small-61")
            with pytest.raises(BlobMissing):
                await it.room.contents.bring(layers[0].domain, name)
            assert await it.room.contents.bring(layers[1].domain, name)
            assert not content_path(it, name, domain=layers[0].domain).exists()
            assert content_path(it, name, domain=layers[1].domain).read_bytes() == SMALL

    run(main)
