"""After a layer was filled, overlays find every file by its name without asking anybody."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import trio

from snapshotter.format.footer import Flavor
from snapshotter.format.index import Kind
from snapshotter.layer.layer import Layer
from tests.doubles.layers import BuiltLayer, dir, file, layer
from tests.doubles.memory_registry import MemoryRegistry
from tests.layer.world import QUIET, World, content_name, content_path, run, world

NOISE = random.Random(5).randbytes(600_000)
BACKGROUND = replace(QUIET, fetch=replace(QUIET.fetch, background=True, background_delay_s=0.0))
CHUNK = 64_000
HOLES = NOISE[:CHUNK] + bytes(2 * CHUNK) + NOISE[: CHUNK // 2]


def filled_layer(**more: Any) -> BuiltLayer:
    """Small files, large ones, and large ones with chunks of zeros, one of them nothing else."""
    return layer(
        dir("d"),
        *(file(f"d/{number}", NOISE[number * 1000 : number * 1000 + 700]) for number in range(10)),
        file("same-as-0", NOISE[:700]),
        file("empty"),
        file("large", NOISE),
        file("holes", HOLES),
        file("zeros", bytes(3 * CHUNK)),
        flavor=Flavor.ZSTD_CHUNKED,
        storage=True,
        chunk_size=CHUNK,
        **more,
    )


async def settled(it: World) -> None:
    """Until nothing is left to fill."""
    with trio.fail_after(20):
        await trio.sleep(0.01)
        while it.room.fill.busy:  # noqa: ASYNC110
            await trio.sleep(0.01)


def missing(it: World, one: Layer, built: BuiltLayer) -> list[str]:
    """The files that an overlay does not find, or not as they were packed."""
    lost = []
    for path, data in built.files.items():
        if data:
            found = content_path(it, content_name(one, path))
            if not found.exists() or found.read_bytes() != data:
                lost.append(path)
    return lost


def test_a_pass_in_the_background_leaves_every_file_where_overlays_look(tmp_path: Path) -> None:
    built = filled_layer()

    async def main() -> None:
        async with world(tmp_path / "root", MemoryRegistry(), BACKGROUND) as it:
            (one,) = await it.pull(built)
            await settled(it)
            assert missing(it, one, built) == []
            assert it.state.layer(one.number).complete
            large = [node for node in range(one.index.node_count) if one.index.kind(node) is Kind.REG]
            assert sum(one.index.chunk_count(node) > 1 for node in large) == 3

    run(main)


def test_a_layer_that_cuts_a_file_otherwise_finds_it_by_its_own_name(tmp_path: Path) -> None:
    built = [
        layer(file("large", NOISE), file(str(chunk), b"x" * chunk), chunk_size=chunk) for chunk in (64_000, 90_000)
    ]

    async def main() -> None:
        async with world(tmp_path / "root", MemoryRegistry(), BACKGROUND) as it:
            for number, one in enumerate(built):
                (pulled,) = await it.pull(one, tag=str(number))
                await settled(it)
                assert missing(it, pulled, one) == []

    run(main)


def test_what_a_power_loss_put_in_doubt_is_found_again_after_the_pass(tmp_path: Path) -> None:
    built, registry = filled_layer(), MemoryRegistry()

    async def main() -> None:
        async with world(tmp_path / "root", registry) as it:
            (one,) = await it.pull(built)
            for path in built.files:
                await it.read(one, path)
        (tmp_path / "root" / "cache.db").unlink()
        async with world(tmp_path / "root", registry, BACKGROUND) as it:
            (one,) = it.room.shelf.all()
            assert it.store.usage().unproven > 0
            await settled(it)
            assert missing(it, one, built) == []

    run(main)


def test_zeros_under_a_digest_that_is_a_lie_keep_no_other_file_from_its_name(tmp_path: Path) -> None:
    def lie(toc: dict[str, Any]) -> None:
        for entry in toc["entries"]:
            if entry["name"] == "zeros" and entry["type"] == "reg":
                # Sorts before all others. Its chunks are what it says; of the whole only a whole file could tell.
                entry["digest"] = "sha256:" + "0" * 63 + "1"

    built = layer(
        file("zeros", bytes(3 * CHUNK)),
        file("true-zeros", bytes(4 * CHUNK)),
        flavor=Flavor.ZSTD_CHUNKED,
        storage=True,
        chunk_size=CHUNK,
        edit=lie,
    )

    async def main() -> None:
        async with world(tmp_path / "root", MemoryRegistry(), BACKGROUND) as it:
            (one,) = await it.pull(built)
            await settled(it)
            assert missing(it, one, built) == ["zeros"]

    run(main)
