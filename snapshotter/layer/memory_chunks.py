"""Chunks that the disk did not take, kept in memory for a moment: their reader comes back for the rest of them.

A chunk is up to 4 MiB and a read asks for a part of it; without this each part would be fetched with the whole of it.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

import trio

from snapshotter.format.index import Chunk
from snapshotter.layer.sink import ChunkKey

BYTES_MAX = 32 << 20
KEPT_S = 30.0


class MemoryChunks:
    """At most `BYTES_MAX` bytes, the least recently used go first; all go once they are old. On the trio thread only."""

    def __init__(self, clock: Callable[[], float] = trio.current_time) -> None:
        self._clock = clock
        self._chunks: OrderedDict[tuple[int, ChunkKey], bytes] = OrderedDict()
        self._bytes = 0
        self._used = 0.0

    def keep(self, layer: int, chunks: Mapping[ChunkKey, bytes]) -> None:
        """Take verified chunks of a layer; one that is larger than all of this may be is passed over.

        Told of every member that lands, with or without chunks: so nothing stays for long once the disk takes them again.
        """
        self._forget_old()
        if chunks:
            self._used = self._clock()
        for key, data in chunks.items():
            if len(data) <= BYTES_MAX and (layer, key) not in self._chunks:
                self._chunks[layer, key] = data
                self._bytes += len(data)
        while self._bytes > BYTES_MAX:
            self._bytes -= len(self._chunks.popitem(last=False)[1])

    def find(self, layer: int, chunks: Sequence[Chunk]) -> dict[ChunkKey, bytes]:
        """Those of a layer's chunks that are here."""
        if not self._chunks:
            return {}
        self._forget_old()
        self._used = self._clock()
        found = {}
        for key in ((chunk.node, chunk.ordinal) for chunk in chunks):
            if (layer, key) in self._chunks:
                self._chunks.move_to_end((layer, key))
                found[key] = self._chunks[layer, key]
        return found

    def _forget_old(self) -> None:
        """Nobody has asked for so long that whatever is here serves nobody any more."""
        if self._chunks and self._clock() - self._used > KEPT_S:
            self._chunks.clear()
            self._bytes = 0
