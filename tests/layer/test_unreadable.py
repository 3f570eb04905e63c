"""A disk that does not give back what was stored on it."""

from pathlib import Path

import pytest

from snapshotter.errors import StoreError
from snapshotter.layer.disk_reads import DiskReads
from tests.doubles.layers import file, layer
from tests.doubles.memory_registry import MemoryRegistry
from tests.layer.world import run, world

NOISE = bytes(range(251)) * 2000


@pytest.mark.parametrize(("path", "size"), [("small", 5000), ("large", 100)], ids=["object", "partial"])
def test_what_the_disk_does_not_give_back_is_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, size: int
) -> None:
    built, registry = layer(file("small", NOISE[:5000]), file("large", NOISE), chunk_size=64_000), MemoryRegistry()
    real, bad = DiskReads.read, 1

    async def sick(disk: DiskReads, fd: int, offset: int, length: int) -> bytes:
        nonlocal bad
        if bad:
            bad -= 1
            raise StoreError("reading a file of the cache failed: Input/output error")
        return await real(disk, fd, offset, length)

    async def main() -> None:
        async with world(tmp_path / "root", registry) as it:
            (one,) = await it.pull(built)
            expected = built.files[path][:size]
            assert await it.read(one, path, 0, size) == expected
            asked = len(registry.requests)
            monkeypatch.setattr(DiskReads, "read", sick)
            assert await it.read(one, path, 0, size) == expected
            assert bad == 0
            assert len(registry.requests) > asked
            again = len(registry.requests)
            assert await it.read(one, path, 0, size) == expected
            assert len(registry.requests) == again

    run(main)
