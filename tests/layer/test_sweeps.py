"""Sweeps over indexes: the order in which content leaves, and what finding it costs."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from snapshotter.format.index import Index
from snapshotter.layer.layer import Layer
from tests.doubles.layers import file, layer
from tests.doubles.memory_registry import MemoryRegistry
from tests.layer.world import find, run, world

NOISE = bytes(range(256)) * 40


def test_content_leaves_by_the_last_use_of_the_last_layer_that_names_it(tmp_path: Path) -> None:
    old, new = (
        layer(file("shared", NOISE), file(own, NOISE[number + 1 :])) for number, own in enumerate(("old", "new"))
    )

    async def main() -> None:
        async with world(tmp_path / "root", MemoryRegistry()) as it:
            first, second = await it.pull(old, new)
            for one, path in ((first, "old"), (first, "shared"), (second, "new")):
                await it.read(one, path)

            def here(one: Layer, path: str) -> bool:
                node = find(one, path)
                return it.store.has(one.domain, one.index.digest(node), one.index.attributes(node).size)

            it.room.touch([second.number])
            await it.room.housekeeping.free(1)
            assert (here(first, "old"), here(first, "shared"), here(second, "new")) == (False, True, True)
            await it.room.housekeeping.free(1 << 40)
            assert list(it.store.iterate("node")) == []

    run(main)


def test_what_nobody_names_leaves_first_and_a_small_need_takes_no_more(tmp_path: Path) -> None:
    kept, gone = layer(file("kept", NOISE)), layer(file("gone", NOISE[5:]))

    async def main() -> None:
        async with world(tmp_path / "root", MemoryRegistry()) as it:
            first, second = await it.pull(kept, gone)
            await it.read(first, "kept")
            await it.read(second, "gone")
            await it.room.shelf.release(second.number, drop_content=False)
            await it.room.housekeeping.free(1)
            (left,) = it.store.iterate("node")
            assert left.digest == first.index.digest(find(first, "kept"))

    run(main)


def test_a_sweep_passes_over_each_index_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looked up one by one, the files of 100 layers of 100 000 entries kept a thread busy for minutes."""
    built = [layer(file("shared", NOISE), file("own", NOISE[number:])) for number in range(1, 5)]
    passes: list[Index] = []
    digests = Index.digests

    def counted(index: Index) -> Iterator[tuple[bytes, int, int]]:
        passes.append(index)
        return digests(index)

    def find_one(*_: object) -> None:
        raise AssertionError("one lookup for each file")

    async def main() -> None:
        async with world(tmp_path / "root", MemoryRegistry()) as it:
            layers = await it.pull(*built)
            for one in layers:
                await it.read(one, "own")
            monkeypatch.setattr(Index, "find", find_one)
            monkeypatch.setattr(Index, "digests", counted)
            await it.room.housekeeping.free(1)
            assert len(passes) == len(layers)
            passes.clear()
            await it.room.release(layers[0].number)
            assert len(passes) == len(layers)

    run(main)
