"""Chunks in memory: found by those who come back for them, bounded, and gone when nobody does."""

from snapshotter.format.index import Chunk
from snapshotter.layer.memory_chunks import BYTES_MAX, KEPT_S, MemoryChunks


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def chunk(node: int, ordinal: int = 0) -> Chunk:
    return Chunk(node=node, ordinal=ordinal, file_offset=0, size=1, digest=b"", member=0, inner_offset=0)


def test_kept_chunks_are_found_by_their_layer_only() -> None:
    kept = MemoryChunks(Clock())
    kept.keep(1, {(7, 0): b"a", (7, 1): b"b"})
    assert kept.find(1, [chunk(7, 1), chunk(7, 2)]) == {(7, 1): b"b"}
    assert kept.find(2, [chunk(7)]) == {}


def test_bytes_are_bounded_and_the_longest_unused_go_first() -> None:
    kept = MemoryChunks(Clock())
    third = bytes(BYTES_MAX // 3)
    for node in range(3):
        kept.keep(1, {(node, 0): third})
    kept.find(1, [chunk(0)])
    kept.keep(1, {(3, 0): third, (4, 0): bytes(BYTES_MAX + 1)})
    here = [node for node in range(5) if kept.find(1, [chunk(node)])]
    assert here == [0, 2, 3]


def test_nothing_stays_when_nobody_asks() -> None:
    clock = Clock()
    kept = MemoryChunks(clock)
    kept.keep(1, {(1, 0): b"a"})
    clock.now = KEPT_S
    assert kept.find(1, [chunk(1)])
    kept.keep(1, {})
    clock.now += KEPT_S + 1
    kept.keep(1, {})
    assert kept._bytes == 0
    assert kept.find(1, [chunk(1)]) == {}
