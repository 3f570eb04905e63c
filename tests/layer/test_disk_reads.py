"""Reads of cached files: right bytes either way, and threads while the disk is slow."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from snapshotter.errors import StoreError
from snapshotter.layer import disk_reads
from snapshotter.layer.disk_reads import AVOID_FOR_S, SLOW_S, DiskReads

DATA = bytes(range(256)) * 1000


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "file").write_bytes(DATA)
    number = os.open(tmp_path / "file", os.O_RDONLY)
    yield number
    os.close(number)


class Clock:
    """A clock on which each read takes as long as it is told."""

    def __init__(self, read_s: float) -> None:
        self.now = 100.0
        self.read_s = read_s

    def __call__(self) -> float:
        self.now += self.read_s / 2
        return self.now


def hops(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Notes each hop to a thread from now on."""
    seen: list[int] = []
    real = trio.to_thread.run_sync

    async def noted(function: Callable[..., bytes], *args: int) -> bytes:
        seen.append(1)
        return await real(function, *args)

    monkeypatch.setattr(trio.to_thread, "run_sync", noted)
    return seen


def test_a_quick_disk_is_read_on_the_loop(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = hops(monkeypatch)
    assert trio.run(DiskReads(Clock(SLOW_S / 2)).read, fd, 300, 5000) == DATA[300:5300]
    assert seen == []


def test_after_a_slow_read_what_is_not_cached_goes_to_threads_for_a_while(
    fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_reads, "cached", lambda *_: False)
    seen, clock = hops(monkeypatch), Clock(4 * SLOW_S)
    disk = DiskReads(clock)

    async def main() -> None:
        await disk.read(fd, 0, 10)
        assert seen == []
        assert await disk.read(fd, 20, 10) == DATA[20:30]
        assert seen == [1]
        clock.now += AVOID_FOR_S
        clock.read_s = 0.0
        await disk.read(fd, 0, 10)
        assert seen == [1]

    trio.run(main)


def test_what_is_cached_is_read_on_the_loop_even_then(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_reads, "cached", lambda *_: True)
    seen, disk = hops(monkeypatch), DiskReads(Clock(4 * SLOW_S))

    async def main() -> None:
        for _ in range(3):
            assert await disk.read(fd, 20, 10) == DATA[20:30]

    trio.run(main)
    assert seen == []


def test_a_file_that_is_shorter_than_it_should_be_is_a_store_error(fd: int) -> None:
    with pytest.raises(StoreError, match="cache verify"):
        trio.run(DiskReads().read, fd, len(DATA) - 10, 20)


def test_a_range_behind_the_end_is_not_cached(fd: int) -> None:
    assert not disk_reads.cached(fd, len(DATA), 10)
