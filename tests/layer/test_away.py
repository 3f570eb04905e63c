"""What an outage must not reach: other layers, and sources that answer."""

from dataclasses import replace
from pathlib import Path

import pytest
import trio

from snapshotter.errors import RegistryUnreachable
from snapshotter.layer.breaker import FAILURES, PROBE_EVERY_S
from snapshotter.layer.layer import Layer
from tests.doubles.layers import file, layer
from tests.doubles.memory_registry import MemoryRegistry
from tests.layer.world import QUIET, World, find, request, run, until, world

HOPEFUL = replace(QUIET, fetch=replace(QUIET.fetch, on_outage="wait"))


async def fail(it: World, of: Layer, paths: list[str]) -> None:
    for path in paths:
        with pytest.raises(RegistryUnreachable):
            await it.read(of, path)


def test_a_blob_that_is_never_answered_does_not_fail_the_other_layers_of_its_host(tmp_path: Path) -> None:
    names = [f"f{number}" for number in range(FAILURES)]
    sick = layer(*(file(name, name.encode()) for name in names))
    sound, registry = layer(file("x", b"text")), MemoryRegistry()

    async def main() -> None:
        async with world(tmp_path / "root", registry) as it:
            one, two = await it.pull(sick, sound)
            registry.stuck.add(sick.digest)
            await fail(it, one, names)
            with pytest.raises(RegistryUnreachable, match="in a row"):
                await it.read(one, names[0])
            assert await it.read(two, "x") == b"text"

    run(main)


def test_a_blob_that_hangs_does_not_hold_up_patient_reads_of_other_layers(tmp_path: Path) -> None:
    names = [f"f{number}" for number in range(FAILURES)]
    sick = layer(*(file(name, name.encode()) for name in names))
    sound, registry = layer(file("x", b"text")), MemoryRegistry()

    async def main() -> None:
        async with world(tmp_path / "root", registry, HOPEFUL) as it:
            one, two = await it.pull(sick, sound)
            registry.stuck.add(sick.digest)
            for name in names:
                it.nursery.start_soon(one.read, find(one, name), 0, 9)
            await until(lambda: one.origin.breaker("registry.test").open)
            registry.hold, asked = trio.Event(), len(registry.requests)
            await until(lambda: len(registry.requests) > asked)
            # The probe is never answered.
            registry.hold = None
            with trio.fail_after(20):
                assert await it.read(two, "x") == b"text"

    run(main)


def test_a_probe_that_hangs_does_not_hold_up_those_who_have_another_host(tmp_path: Path) -> None:
    names = [f"f{number}" for number in range(FAILURES)]
    built = layer(*(file(name, name.encode()) for name in (*names, "x", "y")))
    registry = MemoryRegistry()

    async def main() -> None:
        async with world(tmp_path / "root", registry, HOPEFUL) as it:
            digest = registry.add_image("1", [(built.blob, dict(built.annotations))]).digest
            await it.room.resolve(request(built, digest, name="there.test/app"))
            one = await it.room.resolve(request(built, digest, name="away.test/app"))
            registry.away.add("away.test")
            registry.hold = trio.Event()
            async with trio.open_nursery() as nursery:
                for name in names:
                    nursery.start_soon(it.read, one, name)
                # All at the same host: one that comes later would be sent to the other at once.
                await until(lambda: sum(asked.name == "away.test/app" for asked in registry.requests) == FAILURES)
                registry.hold.set()
            assert one.origin.breaker("away.test").open
            one.origin.avoid(one.origin.sources()[0])
            assert one.origin.host == "away.test"
            await trio.sleep(PROBE_EVERY_S)
            registry.hold, asked = trio.Event(), len(registry.requests)
            it.nursery.start_soon(it.read, one, "x")
            await until(lambda: len(registry.requests) > asked)
            registry.hold = None
            with trio.fail_after(20):
                assert await it.read(one, "y") == b"y"

    run(main)
