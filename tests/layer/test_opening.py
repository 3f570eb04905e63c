"""A TOC whose bytes are wrong on the way is fetched once more: a layer that is unpacked instead stays so."""

from collections.abc import Callable
from pathlib import Path

import pytest

from snapshotter.errors import NotLazy, Reason
from tests.doubles.layers import dir, file, layer
from tests.doubles.memory_registry import MemoryRegistry
from tests.layer.world import run, world

BUILT = layer(dir("d"), file("d/f", b"x" * 1000))
WRONG: dict[str, Callable[[bytes], bytes]] = {
    "zeros": lambda blob: bytes(len(blob)),
    "flipped in the TOC": lambda blob: blob[:-200] + bytes([blob[-200] ^ 1]) + blob[-199:],
    "of another layer": lambda blob: layer(dir("e"), file("e/f", b"y" * 999)).blob[: len(blob)].rjust(len(blob), b"."),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_wrong_bytes_of_a_tail_are_fetched_once_more(tmp_path: Path, wrong: Callable[[bytes], bytes]) -> None:
    registry = MemoryRegistry()

    async def main() -> None:
        async with world(tmp_path / "root", registry) as it:
            registry.faults.append(wrong)
            (one,) = await it.pull(BUILT)
            assert await it.read(one, "d/f") == b"x" * 1000

    run(main)
    assert registry.distrusted == ["registry.test/app"]


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_bytes_that_stay_wrong_are_refused_after_two_requests(tmp_path: Path, wrong: Callable[[bytes], bytes]) -> None:
    registry = MemoryRegistry()

    async def main() -> Reason:
        async with world(tmp_path / "root", registry) as it:
            registry.faults.extend([wrong, wrong, wrong])
            with pytest.raises(NotLazy) as caught:
                await it.pull(BUILT)
            assert it.room.shelf.all() == ()
            return caught.value.reason

    assert run(main) in {Reason.NOT_LAZY_FORMAT, Reason.TOC_INVALID, Reason.TOC_MISMATCH}
    assert len(registry.requests) == 2
