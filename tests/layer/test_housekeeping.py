"""What leaves the cache first, what stays when an image goes, and what a lazy layer counts for."""

import hashlib
import random
import tracemalloc
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from snapshotter.config import Config
from snapshotter.errors import SnapshotterError
from snapshotter.layer.layer import Layer
from snapshotter.store import state_snapshots as rows
from snapshotter.store.state_snapshots import Kind, NewSnapshot
from tests.doubles.layers import BuiltLayer, char, dir, file, hardlink, layer, symlink, whiteout
from tests.doubles.memory_registry import MemoryRegistry
from tests.layer.world import QUIET, World, run, world

NOISE = random.Random(3).randbytes(20_000)


def one_file(number: int) -> BuiltLayer:
    return layer(file("f", NOISE[number * 1000 : number * 1000 + 900]))


def in_world(tmp_path: Path, main: Callable[[World], Awaitable[None]], config: Config = QUIET) -> None:
    async def wrapped() -> None:
        async with world(tmp_path / "root", MemoryRegistry(), config) as it:
            await main(it)

    run(wrapped)


def name(it: World, layer: Layer, kind: Kind) -> None:
    """A snapshot that names a layer; for an active one, of a container on it."""
    with it.state.write() as db:
        committed = rows.insert(
            db, NewSnapshot(f"c{layer.number}", None, Kind.COMMITTED, 1, {}, layer_number=layer.number)
        )
        if kind is Kind.ACTIVE:
            rows.insert(db, NewSnapshot(f"a{layer.number}", committed, Kind.ACTIVE, 1, {}))


def is_here(it: World, layer: Layer) -> bool:
    node = layer.index.lookup(0, b"f")
    assert node is not None
    return it.store.has("node", layer.index.digest(node), 900)


def test_longest_unused_goes_first_and_what_runs_last(tmp_path: Path) -> None:
    async def main(it: World) -> None:
        # The younger number is the one unused for longer.
        running, recent, old = await it.pull(*(one_file(number) for number in range(3)))
        for one in (running, old, recent):
            name(it, one, Kind.ACTIVE if one is running else Kind.COMMITTED)
            await it.read(one, "f")
        # Used in this order: the container's layer is the one that was not named for longest.
        for one in (running, old, recent):
            it.room.touch([one.number])
        order = []
        for _ in range(3):
            await it.room.housekeeping.free(1)
            order.append([is_here(it, one) for one in (running, old, recent)])
        assert order == [[True, False, True], [True, False, False], [False, False, False]]

    in_world(tmp_path, main)


def test_what_nobody_names_goes_before_anything_else(tmp_path: Path) -> None:
    async def main(it: World) -> None:
        gone, stays = await it.pull(one_file(1), one_file(2))
        await it.read(gone, "f")
        await it.read(stays, "f")
        await it.room.release(gone.number)
        assert is_here(it, gone)
        await it.room.housekeeping.free(1)
        assert (is_here(it, gone), is_here(it, stays)) == (False, True)

    in_world(tmp_path, main, replace(QUIET, cache=replace(QUIET.cache, keep_unreferenced=1 << 20)))


def test_content_of_a_removed_image_stays_up_to_the_configured_bytes(tmp_path: Path) -> None:
    async def main(it: World) -> None:
        layers = await it.pull(*(one_file(number) for number in range(4)))
        for one in layers:
            await it.read(one, "f")
        for one in layers:
            await it.room.release(one.number)
        kept = [stored for stored in it.store.iterate("node") if stored.size == 900]
        assert len(kept) == 2
        assert sum(stored.disk_bytes for stored in kept) <= 9000

    in_world(tmp_path, main, replace(QUIET, cache=replace(QUIET.cache, keep_unreferenced=9000)))


def test_a_lazy_layer_counts_as_its_files_do_by_its_toc(tmp_path: Path) -> None:
    built = layer(
        dir("d/"), file("d/one", NOISE[:700]), hardlink("d/two", "d/one"), file("big", NOISE), symlink("s", "big"),
        char("null", 1, 3), whiteout("hidden"), prefetch=["big"], chunk_size=4096,
    )  # fmt: skip

    async def main(it: World) -> None:
        (one,) = await it.pull(built)
        described = it.room.describe(one.number)
        # Root, d, d/one (twice named, one inode), big, s, null and the whiteout; neither landmark nor TOC.
        assert (described.size, described.inodes) == (700 + len(NOISE), 7)

    in_world(tmp_path, main)


@pytest.mark.parametrize("large", [False, True], ids=["one-chunk", "chunks"])
def test_a_member_that_inflates_to_far_more_than_stated_takes_no_memory(tmp_path: Path, large: bool) -> None:
    """Its TOC says 5000 bytes of the many that follow."""
    claimed, real = (300_000 if large else 5000), 96 << 20

    def shrink(toc: dict[str, Any]) -> None:
        (entry,) = [row for row in toc["entries"] if row["name"] == "x"]
        entry["size"] = claimed
        entry["digest"] = entry["chunkDigest"] = "sha256:" + hashlib.sha256(bytes(claimed)).hexdigest()

    built = layer(file("x", bytes(real)), chunk_size=real, edit=shrink)

    async def main(it: World) -> None:
        (one,) = await it.pull(built)
        tracemalloc.start()
        try:
            assert await it.read(one, "x") == bytes(claimed)
        except SnapshotterError:
            pass
        finally:
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        assert peak < 8 << 20

    in_world(tmp_path, main)
