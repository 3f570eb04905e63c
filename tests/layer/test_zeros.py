"""A layer that calls another image's bytes zeros does not get in, and the other image keeps its bytes."""

import hashlib
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio.testing

from snapshotter.errors import NotLazy, Reason, SnapshotterError
from snapshotter.format.footer import Flavor
from snapshotter.layer.layer import Layer
from tests.doubles.layers import BuiltLayer, file, layer
from tests.doubles.memory_registry import MemoryRegistry
from tests.layer.world import QUIET, World, content_name, find, run, world

CHUNK = 40_000
DATA = random.Random(6).randbytes(2 * CHUNK + 30_000)
ZEROS = bytes(CHUNK)
HOLES = DATA[:CHUNK] + ZEROS + DATA[2 * CHUNK :]
DOMAIN = "node"
UNVERIFIED = replace(QUIET, lazy=replace(QUIET.lazy, allow_unverified=True))

READ_FIRST = ((CHUNK, 2 * CHUNK), (2 * CHUNK,), (0,))
"""For each chunk, reads of others that fetch it not ahead."""

each_chunk = pytest.mark.parametrize("lied", range(3))


def honest(flavor: Flavor = Flavor.ESTARGZ, data: bytes = DATA) -> BuiltLayer:
    return layer(file("x", data), file("honest", b"honest"), chunk_size=CHUNK, flavor=flavor)


def attacker(lied: int, flavor: Flavor = Flavor.ESTARGZ) -> BuiltLayer:
    """The entry of `honest` to the letter, digests included, but that one chunk is called zeros."""

    def lie(toc: dict[str, Any]) -> None:
        rows = [row for row in toc["entries"] if row["name"] == "x"]
        rows[lied]["chunkType"] = "zeros"

    return layer(file("x", DATA), file("attacker", b"attacker"), chunk_size=CHUNK, flavor=flavor, edit=lie)


async def refused(it: World, lied: int) -> None:
    """The attacker's layer does not get in."""
    with pytest.raises(NotLazy, match="gives it another digest") as caught:
        await it.pull(attacker(lied), tag="attacker")
    assert caught.value.reason is Reason.TOC_INVALID
    assert not any(one.index.lookup(0, b"attacker") for one in it.room.shelf.all())


async def check(it: World, one: Layer, data: bytes = DATA) -> None:
    """Every way to read the file gives its own bytes."""
    name = content_name(one, "x")
    for offset in range(0, len(data), CHUNK):
        expected = data[offset : offset + CHUNK]
        assert await it.room.contents.read(DOMAIN, name, len(data), offset, CHUNK) == expected
        assert await it.read(one, "x", offset, CHUNK) == expected
    assert await it.room.contents.bring(DOMAIN, name)


@each_chunk
def test_the_attacker_is_refused_and_the_other_image_reads_its_own_bytes(tmp_path: Path, lied: int) -> None:
    async def main() -> None:
        async with world(tmp_path / "root", MemoryRegistry()) as it:
            await refused(it, lied)
            (one,) = await it.pull(honest())
            await refused(it, lied)
            await check(it, one)

    run(main)


def test_the_attacker_is_refused_where_unverified_layers_are_let_in(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path / "root", MemoryRegistry(), UNVERIFIED) as it:
            await refused(it, 1)
            (one,) = await it.pull(honest())
            await check(it, one)

    run(main)


@each_chunk
@pytest.mark.parametrize("attack_first", [False, True])
def test_a_chunk_whose_registry_is_away_is_an_error_and_never_zeros(
    tmp_path: Path, lied: int, attack_first: bool
) -> None:
    async def main() -> None:
        async with world(tmp_path / "root", MemoryRegistry()) as it:
            if attack_first:
                await refused(it, lied)
            (one,) = await it.pull(honest())
            if not attack_first:
                await refused(it, lied)
            name, at = content_name(one, "x"), lied * CHUNK
            (chunk,) = one.index.chunks(find(one, "x"), at, 1)
            for offset in READ_FIRST[lied]:
                assert await it.read(one, "x", offset, 10) == DATA[offset : offset + 10]
            await trio.testing.wait_all_tasks_blocked()
            assert not one.chunk_stored(chunk)
            it.registry.away.add("registry.test")
            with pytest.raises(SnapshotterError):
                await it.read(one, "x", at, chunk.size)
            with pytest.raises(SnapshotterError):
                await it.room.contents.read(DOMAIN, name, len(DATA), at, chunk.size)
            assert not await it.room.contents.bring(DOMAIN, name)
            for offset in READ_FIRST[lied]:
                assert await it.read(one, "x", offset, 10) == DATA[offset : offset + 10]
            it.registry.away.clear()
            await check(it, one)

    run(main)


def test_honest_zeros_are_shared_with_an_image_that_stores_them(tmp_path: Path) -> None:
    """One file, of which one image has every byte and the other leaves the zeros out: its bytes are the same."""

    async def main() -> None:
        async with world(tmp_path / "root", MemoryRegistry()) as it:
            (stored,) = await it.pull(honest(data=HOLES))
            sparse = layer(
                file("x", HOLES), file("y"), chunk_size=CHUNK, flavor=Flavor.ZSTD_CHUNKED, storage=True, edit=forget
            )
            (left_out,) = await it.pull(sparse, tag="2")
            assert content_name(stored, "x") == content_name(left_out, "x")
            assert left_out.index.chunks(find(left_out, "x"), CHUNK, 1)[0].digest == hashlib.sha256(ZEROS).digest()
            for one in (stored, left_out):
                await check(it, one, HOLES)

    run(main)


def forget(toc: dict[str, Any]) -> None:
    """Leave out the digests of zeros."""
    for row in toc["entries"]:
        if row.get("chunkType") == "zeros":
            del row["chunkDigest"]
