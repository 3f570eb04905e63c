"""Where a layer's bytes come from when one of its sources fails, and what happens when the layer goes."""

from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing

from snapshotter.config import Config
from snapshotter.errors import RegistryUnreachable
from snapshotter.layer.layer import Layer
from tests.doubles.layers import BuiltLayer, file, layer
from tests.doubles.memory_registry import MemoryRegistry
from tests.layer.world import QUIET, World, request, run, until, world

NOISE = bytes(range(251)) * 4000
WAITING = replace(QUIET, fetch=replace(QUIET.fetch, on_outage="wait:3600s"))
BACKGROUND = replace(QUIET, fetch=replace(QUIET.fetch, background=True, background_delay_s=0.0))


def a_layer(*more: str) -> BuiltLayer:
    return layer(*(file(name, NOISE[ord(name[0]) :][:9000]) for name in ("a", "b", "c", *more)))


async def pulled_as(it: World, built: BuiltLayer, *names: str) -> Layer:
    """The layer, pulled under these repositories; the last is the first source."""
    digest = it.registry.add_image("1", [(built.blob, dict(built.annotations))]).digest
    layers = [await it.room.resolve(request(built, digest, name=name)) for name in names]
    it.registry.requests.clear()
    return layers[-1]


def test_readers_side_by_side_all_find_the_source_that_is_left(tmp_path: Path) -> None:
    registry, built = MemoryRegistry(), a_layer()

    async def main() -> None:
        async with world(tmp_path / "root", registry) as it:
            one = await pulled_as(it, built, "registry.test/good", "registry.test/gone")
            registry.removed.add("registry.test/gone")
            registry.hold = trio.Event()
            async with trio.open_nursery() as nursery:
                for path in ("a", "b"):
                    nursery.start_soon(it.read, one, path)
                await trio.testing.wait_all_tasks_blocked(0.01)
                registry.hold.set()
            asked = len(registry.requests)
            await it.read(one, "b", 0, 10)
            assert len(registry.requests) == asked

    run(main)


def test_a_host_that_is_away_is_passed_over_for_another_that_has_the_layer(tmp_path: Path) -> None:
    registry, built = MemoryRegistry(), a_layer()

    async def main() -> None:
        async with world(tmp_path / "root", registry, WAITING) as it:
            one = await pulled_as(it, built, "other.test/app", "registry.test/app", "registry.test/again")
            registry.away.add("registry.test")
            assert await it.read(one, "b") == built.files["b"]
            assert [asked.name for asked in registry.requests] == ["registry.test/again", "other.test/app"]

    run(main)


def test_an_outage_is_not_waited_out_once_for_each_layer_of_the_dead_host(tmp_path: Path) -> None:
    registry, built = MemoryRegistry(), [a_layer(more) for more in ("d", "e", "f")]

    async def main() -> None:
        async with world(tmp_path / "root", registry) as it:
            one, *_ = await it.pull(*built)
            registry.requests.clear()
            registry.away.add("registry.test")
            with pytest.raises(RegistryUnreachable):
                await it.read(one, "a")
            assert len(registry.requests) == 1

    run(main)


def test_tags_of_one_repository_are_one_source(tmp_path: Path) -> None:
    registry, built = MemoryRegistry(), a_layer()

    async def main() -> None:
        async with world(tmp_path / "root", registry) as it:
            one = await pulled_as(it, built, "registry.test/first")
            for tag in range(12):
                await it.pull(built, tag=str(tag))
            assert [blob.name for blob in one.origin.sources()] == ["registry.test/app", "registry.test/first"]

    run(main)


def test_damaged_bytes_are_fetched_from_another_source_without_the_remembered_redirect(tmp_path: Path) -> None:
    registry, built = MemoryRegistry(), a_layer()

    async def main() -> None:
        async with world(tmp_path / "root", registry) as it:
            one = await pulled_as(it, built, "registry.test/good", "registry.test/bad")
            registry.faults.append(lambda blob: bytes(len(blob)))
            assert await it.read(one, "a") == built.files["a"]
            assert [asked.name for asked in registry.requests] == ["registry.test/bad", "registry.test/good"]
            assert registry.distrusted == ["registry.test/bad"]

    run(main)


@pytest.mark.parametrize("config", [QUIET, BACKGROUND], ids=["demand", "background"])
def test_what_was_on_its_way_leaves_nothing_behind_a_removed_layer(tmp_path: Path, config: Config) -> None:
    registry, built = MemoryRegistry(), a_layer()

    async def main() -> None:
        async with world(tmp_path / "root", registry, config) as it:
            (one,) = await it.pull(built)
            registry.hold = trio.Event()
            async with trio.open_nursery() as nursery:

                async def read() -> None:
                    with pytest.raises(Exception, match="removed"):
                        await it.read(one, "a")

                nursery.start_soon(read)
                await until(lambda: it.room.waits.reads)
                await trio.testing.wait_all_tasks_blocked(0.02)
                await it.room.release(one.number)
                registry.hold.set()
            await until(lambda: not it.room.fill.busy and not sum(it.room.gates.under_way().values()))
            assert list(it.store.iterate("node")) == []

    run(main)
