"""Carries a run of members from a registry into the store: one ranged request, one sink, one priority."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import trio

from snapshotter.errors import BlobMissing, RangeUnsupported, RegistryDenied, RegistryUnreachable
from snapshotter.layer.counters import Counters
from snapshotter.layer.origin import Origin
from snapshotter.layer.priority import Bandwidth, Gates, Priority, Transfer
from snapshotter.layer.sink import Landed, RangeSink
from snapshotter.store.objects import ObjectStore

INLINE_MAX = 4096
"""Pieces up to this size are inflated on the spot: a thread hop costs more than the work."""


class Courier:
    """Used on the trio thread; inflating, hashing and writing happen in worker threads."""

    def __init__(self, store: ObjectStore, gates: Gates, counters: Counters, background_bandwidth: int) -> None:
        self._store = store
        self.gates = gates
        self._counters = counters
        self._bandwidth = Bandwidth(background_bandwidth)
        self._threads = {
            Priority.DEMAND: trio.CapacityLimiter(8),
            Priority.PREFETCH: trio.CapacityLimiter(2),
            Priority.BACKGROUND: trio.CapacityLimiter(1),
        }

    async def carry(
        self,
        origin: Origin,
        members: Sequence[int],
        transfer: Transfer,
        landed: Callable[[Landed], None],
        *,
        arriving: Callable[[int], None] | None = None,
        to_memory: bool = False,
    ) -> None:
        """Fetch the range from the first to the last of `members` and call `landed` for each, in blob order.

        `arriving` is told the blob offset that each piece reaches, before the piece is inflated.

        Raises:
            RegistryError: the bytes cannot be had from any source of the layer; those landed before are kept.
        """
        start, first_end = origin.index.member(members[0])[1:3]
        length = origin.index.member(members[-1]).blob_end - start
        sink = RangeSink(origin.index, self._store, origin.domain, members, to_memory=to_memory)
        position = start
        try:
            for attempt in range(origin.source_count):
                host = origin.blob.host
                try:
                    async with self.gates[origin.blob.host].slot(transfer):
                        self._counters.requests[transfer.priority] += 1
                        async with origin.blob.open_range(position, start + length - position) as body:
                            async for piece in body:
                                for part in _wanted_first(piece, first_end - position, transfer):
                                    position += len(part)
                                    if arriving is not None:
                                        arriving(position)
                                    await self._take(origin, sink, part, transfer, landed)
                    self._counters.hosts[host] = ""
                    return
                except RegistryUnreachable as error:
                    self._counters.hosts[host] = str(error)
                    raise
                except (BlobMissing, RegistryDenied, RangeUnsupported):
                    if attempt + 1 == origin.source_count:
                        raise
                    origin.next_source()
        finally:
            sink.abort()

    async def _take(
        self, origin: Origin, sink: RangeSink, piece: bytes, transfer: Transfer, landed: Callable[[Landed], None]
    ) -> None:
        self._counters.fetched[transfer.priority] += len(piece)
        if len(piece) <= INLINE_MAX:
            done = sink.feed(piece)
        else:
            done = await trio.to_thread.run_sync(sink.feed, piece, limiter=self._threads[transfer.priority])
        for member in done:
            landed(member)
        for identity in (identity for member in done for identity in member.whole):
            finish = partial(self._store.finish, origin.domain, identity)
            await trio.to_thread.run_sync(finish, limiter=self._threads[transfer.priority])
        if transfer.priority is Priority.BACKGROUND:
            await self._bandwidth.spend(len(piece))
        await self.gates[origin.blob.host].calm(transfer)


def _wanted_first(piece: bytes, first: int, transfer: Transfer) -> Iterator[bytes]:
    """The piece whole; for a demand read cut behind the first member, whose reader need not wait for its neighbours."""
    if transfer.priority is Priority.DEMAND and 0 < first < len(piece):
        yield piece[:first]
        yield piece[first:]
    else:
        yield piece
