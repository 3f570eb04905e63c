"""Carries a run of members from a registry into the store: one ranged request, one sink, one priority."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import trio

from snapshotter.errors import BlobMissing, RegistryError, RegistryUnreachable
from snapshotter.layer.breaker import Breaker
from snapshotter.layer.counters import Counters
from snapshotter.layer.origin import Origin
from snapshotter.layer.priority import Bandwidth, Gates, HostGate, Priority, Transfer
from snapshotter.layer.sink import Landed, RangeSink
from snapshotter.store.objects import ObjectStore

if TYPE_CHECKING:
    from snapshotter.registry.blob import Blob

LINE_BYTES_PER_S = 25_000_000
"""What an ordinary line carries: a demand read may ask for as many bytes as cross it in one wait for an answer."""

WINDOW_GROWTH = 8
"""The demand window grows to at most so many times its configured size."""

LATENCY_WEIGHT = 0.25
"""Weight of the newest answer in a host's smoothed latency."""

INLINE_MAX = 4096
"""Pieces up to this size are inflated on the spot: a thread hop costs more than the work."""


class Courier:
    """Used on the trio thread; inflating, hashing and writing happen in worker threads."""

    def __init__(self, store: ObjectStore, gates: Gates, counters: Counters, background_bandwidth: int) -> None:
        self._store = store
        self.gates = gates
        self._counters = counters
        self._bandwidth = Bandwidth(background_bandwidth)
        self._latency_s: dict[str, float] = {}
        self._threads = {
            Priority.DEMAND: trio.CapacityLimiter(8),
            Priority.PREFETCH: trio.CapacityLimiter(2),
            Priority.BACKGROUND: trio.CapacityLimiter(1),
        }

    def window(self, host: str, configured: int) -> int:
        """Bytes of blob that one demand read of `host` asks for.

        `configured`, or more where answers take long: what lies beside a wanted file is likely wanted next, and costs
        less than another wait if it crosses the line in the time of one.
        """
        worth = int(self._latency_s.get(host, 0.0) * LINE_BYTES_PER_S)
        return max(configured, min(worth, WINDOW_GROWTH * configured))

    def refused(self, origin: Origin, member: int) -> bool:
        """Whether the node's disk would not take a member's chunks at this moment."""
        return self._store.refuses(sum(chunk.size for chunk in origin.index.member_chunks(member)))

    def _answered(self, host: str, asked: float | None, priority: Priority) -> None:
        """Note how long the first bytes of an answer took; `asked` is None for those that follow."""
        if asked is not None:
            latency_s = trio.current_time() - asked
            known_s = self._latency_s.get(host, latency_s)
            self._latency_s[host] = known_s + LATENCY_WEIGHT * (latency_s - known_s)
            self._counters.first_byte[priority].observe(latency_s)

    async def carry(
        self,
        origin: Origin,
        members: Sequence[int],
        transfer: Transfer,
        landed: Callable[[Landed], None],
        *,
        arriving: Callable[[int], None] | None = None,
        to_memory: bool = False,
        patient: bool = False,
    ) -> None:
        """Fetch the range from the first to the last of `members` and call `landed` for each, in blob order.

        `arriving` is told the blob offset that each piece reaches, before the piece is inflated. `patient` fetches wait
        while another one asks whether a host that was away is back, unless the layer has another host.

        Raises:
            RegistryError: the bytes cannot be had from any source of the layer; those landed before are kept.
            NotFound: the layer was removed meanwhile.
        """
        start, first_end = origin.index.member(members[0])[1:3]
        length = origin.index.member(members[-1]).blob_end - start
        sink = RangeSink(origin.index, self._store, origin.domain, members, to_memory=to_memory)
        position = start

        async def stream(blob: "Blob") -> None:
            nonlocal position
            gate, breaker = self.gates[blob.host], origin.breaker(blob.host)
            waits = patient and all(source.host == blob.host for source in origin.sources())
            bulk = transfer.priority is not Priority.DEMAND
            async with gate.slot(transfer), self._asking(breaker, patient=waits, bulk=bulk):
                self._counters.of_host(blob.host).requests += 1
                self._counters.requests[transfer.priority] += 1
                began = trio.current_time()
                asked: float | None = began
                async with blob.open_range(position, start + length - position) as body:
                    async for piece in body:
                        self._answered(blob.host, asked, transfer.priority)
                        asked = None
                        breaker.answered()
                        # Of the mirror that sent it, if one did.
                        self._counters.of_host(blob.serving).fetched[transfer.priority] += len(piece)
                        for part in _wanted_first(piece, first_end - position, transfer):
                            position += len(part)
                            if arriving is not None:
                                arriving(position)
                            await self._take(origin, gate, sink, part, transfer, landed)
                self._counters.whole_range[transfer.priority].observe(trio.current_time() - began)

        try:
            with origin.carriage():
                await self._from_sources(origin, stream)
        finally:
            sink.abort()

    @asynccontextmanager
    async def _asking(self, breaker: Breaker, *, patient: bool, bulk: bool) -> AsyncIterator[None]:
        """Ask a host when its breaker lets us, and tell the breaker what came of it."""
        probe = await breaker.admit(patient=patient, bulk=bulk)
        try:
            yield
        except RegistryUnreachable:
            breaker.failed(probe=probe)
            raise
        except RegistryError:
            breaker.answered()
            raise
        except BaseException:
            if probe:
                breaker.given_up()
            raise
        else:
            breaker.answered()

    async def _from_sources(self, origin: Origin, stream: Callable[["Blob"], Awaitable[None]]) -> None:
        """Go on with one source after the other until the stream is through; a host that is away is asked once.

        Raises RegistryError: RegistryUnreachable if asking again may help.
        """
        away: dict[str, RegistryUnreachable] = {}
        failure: RegistryError = BlobMissing(
            f"layer {origin.layer_digest}: no usable reference is known; pull its image again"
        )
        for source in origin.sources():
            if source.host in away:
                continue
            try:
                await stream(await source.blob())
            except RegistryError as error:
                failure = error
                origin.avoid(source)
                self._counters.of_host(source.host).failures += 1
                if isinstance(error, RegistryUnreachable):
                    away[source.host] = error
                    self._counters.hosts[source.host] = str(error)
            else:
                self._counters.hosts[source.host] = ""
                return
        raise next(iter(away.values()), failure)

    async def _take(
        self,
        origin: Origin,
        gate: HostGate,
        sink: RangeSink,
        piece: bytes,
        transfer: Transfer,
        landed: Callable[[Landed], None],
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
            await gate.rest(transfer, self._bandwidth.spend(len(piece)))
        await gate.calm(transfer)


def _wanted_first(piece: bytes, first: int, transfer: Transfer) -> Iterator[bytes]:
    """The piece whole; for a demand read cut behind the first member, whose reader need not wait for its neighbours."""
    if transfer.priority is Priority.DEMAND and 0 < first < len(piece):
        yield piece[:first]
        yield piece[first:]
    else:
        yield piece
