"""What a plane asks of attached layers besides their images."""

from functools import partial
from pathlib import Path

import pytest

from snapshotter.errors import NotFound
from tests.doubles.memory_registry import MemoryRegistry
from tests.layer.test_metadata_images import pull
from tests.layer.world import find, run, world


def test_the_size_of_a_small_file_is_what_its_layer_says(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path / "root", MemoryRegistry()) as it:
            one = await pull(it)
            domain, size_of = it.room.size_in_layer(one.number)
            assert domain == "node"
            assert size_of(one.index.digest(find(one, "d/small"))) == 4
            # Of a large file the name says the size.
            assert size_of(one.index.digest(find(one, "large"))) is None
            assert size_of(bytes(32)) is None

    run(main)


def test_a_layer_that_is_not_attached_has_no_image(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path / "root", MemoryRegistry()) as it:
            one = await pull(it)
            await it.room.release(one.number)
            for ask in (it.room.image_path, it.room.image_failure, it.room.size_in_layer):
                with pytest.raises(NotFound, match="not attached"):
                    ask(one.number)
            for wish in (it.room.image, partial(it.room.begin_image, anew=False)):
                with pytest.raises(NotFound, match="not attached"):
                    await wish(one.number)

    run(main)
