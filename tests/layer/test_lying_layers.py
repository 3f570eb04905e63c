"""A TOC that lies about another image's file reaches its own readers, and nobody else's."""

import hashlib
import random
from pathlib import Path
from typing import Any

import pytest

from snapshotter.errors import SnapshotterError
from snapshotter.layer.layer import Layer
from tests.doubles.layers import BuiltLayer, file, layer
from tests.doubles.memory_registry import MemoryRegistry
from tests.layer.world import World, content_name, content_path, find, run, world

NOISE = random.Random(4).randbytes(600_000)
TRUE, FALSE = NOISE[:300_000], NOISE[300_000:]
DIGEST = hashlib.sha256(TRUE).digest()
CHUNK = 40_000
DOMAIN = "node"


def digests(data: bytes) -> dict[int, str]:
    """By file offset."""
    return {at: "sha256:" + hashlib.sha256(data[at : at + CHUNK]).hexdigest() for at in range(0, len(data), CHUNK)}


def honest() -> BuiltLayer:
    return layer(file("x", TRUE), file("honest", b"honest"), chunk_size=CHUNK)


def liar(*, with_true_chunks: bool = False) -> BuiltLayer:
    """The same size and digest, and bytes of its own; its chunk digests are those of its bytes, or the true ones."""

    def lie(toc: dict[str, Any]) -> None:
        for entry in toc["entries"]:
            if entry["name"] != "x":
                continue
            if entry["type"] == "reg":
                entry["digest"] = f"sha256:{DIGEST.hex()}"
            if with_true_chunks:
                entry["chunkDigest"] = digests(TRUE)[entry.get("chunkOffset", 0)]

    return layer(file("x", FALSE), file("liar", b"liar"), chunk_size=CHUNK, edit=lie)


async def pull(it: World, *built: BuiltLayer) -> list[Layer]:
    """One after another: layers that came first are asked first."""
    return [(await it.pull(one, tag=str(number)))[0] for number, one in enumerate(built)]


async def both(it: World, *, liar_first: bool) -> tuple[Layer, Layer]:
    """The honest layer and the liar, pulled in either order."""
    if liar_first:
        other, one = await pull(it, liar(), honest())
    else:
        one, other = await pull(it, honest(), liar())
    return one, other


either_first = pytest.mark.parametrize("liar_first", [False, True])


@either_first
def test_the_two_files_have_two_names(tmp_path: Path, liar_first: bool) -> None:
    async def main() -> None:
        async with world(tmp_path / "root", MemoryRegistry()) as it:
            one, other = await both(it, liar_first=liar_first)
            assert one.index.digest(find(one, "x")) == other.index.digest(find(other, "x")) == DIGEST
            assert content_name(one, "x") != content_name(other, "x")

    run(main)


@either_first
def test_each_name_gives_the_bytes_of_its_own_layer(tmp_path: Path, liar_first: bool) -> None:
    async def main() -> None:
        async with world(tmp_path / "root", MemoryRegistry()) as it:
            one, other = await both(it, liar_first=liar_first)
            contents, truth, lie = it.room.contents, content_name(one, "x"), content_name(other, "x")
            # By turns, so that parts of both are on the disk.
            for offset in range(0, len(TRUE) - CHUNK, CHUNK):
                assert await contents.read(DOMAIN, lie, len(TRUE), offset, CHUNK) == FALSE[offset : offset + CHUNK]
                assert await contents.read(DOMAIN, truth, len(TRUE), offset, CHUNK) == TRUE[offset : offset + CHUNK]

    run(main)


@either_first
@pytest.mark.parametrize("read_first", [0, 100_000])
def test_where_the_honest_registry_fails_its_file_is_an_error_and_never_the_other_bytes(
    tmp_path: Path, liar_first: bool, read_first: int
) -> None:
    async def main() -> None:
        async with world(tmp_path / "root", MemoryRegistry()) as it:
            one, other = await both(it, liar_first=liar_first)
            contents, truth, lie = it.room.contents, content_name(one, "x"), content_name(other, "x")
            assert await contents.read(DOMAIN, lie, len(TRUE), 0, len(FALSE)) == FALSE
            if read_first:
                await contents.read(DOMAIN, truth, len(TRUE), 0, read_first)
            del it.registry.blobs[one.record.layer_digest]
            for offset in range(200_000, len(TRUE), CHUNK):
                with pytest.raises(SnapshotterError):
                    await contents.read(DOMAIN, truth, len(TRUE), offset, CHUNK)
                with pytest.raises(SnapshotterError):
                    await it.read(one, "x", offset, CHUNK)
            assert await contents.read(DOMAIN, truth, len(TRUE), 0, read_first) == TRUE[:read_first]
            assert not await contents.bring(DOMAIN, truth)
            assert await contents.read(DOMAIN, lie, len(TRUE), 0, len(FALSE)) == FALSE

    run(main)


@either_first
def test_a_lie_never_becomes_a_file_that_the_kernel_finds(tmp_path: Path, liar_first: bool) -> None:
    async def main() -> None:
        async with world(tmp_path / "root", MemoryRegistry()) as it:
            one, other = await both(it, liar_first=liar_first)
            contents, truth, lie = it.room.contents, content_name(one, "x"), content_name(other, "x")
            await contents.read(DOMAIN, lie, len(TRUE), 0, len(FALSE))
            assert not await contents.bring(DOMAIN, lie)
            assert it.store.counters.mismatches == 1
            for name in (truth, lie, DIGEST.hex()):
                assert not content_path(it, name).exists()

    run(main)


@either_first
def test_once_the_true_file_is_whole_both_names_lead_to_it(tmp_path: Path, liar_first: bool) -> None:
    """Its digest is proven, and the liar has named it."""

    async def main() -> None:
        async with world(tmp_path / "root", MemoryRegistry()) as it:
            one, other = await both(it, liar_first=liar_first)
            contents, truth, lie = it.room.contents, content_name(one, "x"), content_name(other, "x")
            await contents.read(DOMAIN, lie, len(TRUE), 0, 100_000)
            await contents.read(DOMAIN, truth, len(TRUE), 0, len(TRUE))
            for name in (truth, lie):
                assert await contents.bring(DOMAIN, name)
                assert content_path(it, name).read_bytes() == TRUE
                assert await contents.read(DOMAIN, name, len(TRUE), 50_000, 10) == TRUE[50_000:50_010]

    run(main)


@either_first
def test_a_layer_that_promises_the_true_chunks_and_has_others_harms_nobody(tmp_path: Path, liar_first: bool) -> None:
    built = [honest(), liar(with_true_chunks=True)]

    async def main() -> None:
        async with world(tmp_path / "root", MemoryRegistry()) as it:
            layers = await pull(it, *(reversed(built) if liar_first else built))
            names = {content_name(each, "x") for each in layers}
            assert len(names) == 1
            for each in layers:
                assert await it.read(each, "x") == TRUE
            assert await it.room.contents.bring(DOMAIN, names.pop())

    run(main)


def test_a_small_file_of_other_bytes_is_never_kept_under_the_digest_that_a_layer_gives(tmp_path: Path) -> None:
    digest = hashlib.sha256(TRUE[:1000]).hexdigest()

    def lie(toc: dict[str, Any]) -> None:
        for entry in toc["entries"]:
            if entry["name"] == "x":
                entry["digest"] = entry["chunkDigest"] = f"sha256:{digest}"

    async def main() -> None:
        async with world(tmp_path / "root", MemoryRegistry()) as it:
            await pull(it, layer(file("x", FALSE[:1000]), edit=lie))
            with pytest.raises(SnapshotterError):
                await it.room.contents.bring(DOMAIN, digest)
            assert not content_path(it, digest).exists()
            await pull(it, layer(file("y", TRUE[:1000])))
            assert await it.room.contents.bring(DOMAIN, digest)
            assert content_path(it, digest, "late").read_bytes() == TRUE[:1000]

    run(main)
