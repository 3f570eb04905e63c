"""Filling a layer before anybody asks: prefetch up to its landmark first, then the rest in the background.

Both stream in blob order and store each member as it arrives. A member that a reader fetches at the same moment is
left to the reader; a reader who wants what a stream is just bringing joins it, and the stream is not paused then.
"""

import logging
import weakref
from collections.abc import Callable, Iterator
from typing import Protocol

import trio

from snapshotter.config import FetchConfig
from snapshotter.errors import FormatError, SnapshotterError, StoreError
from snapshotter.layer.counters import Counters
from snapshotter.layer.courier import Courier
from snapshotter.layer.flights import Flights
from snapshotter.layer.layer import Layer
from snapshotter.layer.priority import Priority, Transfer
from snapshotter.layer.sink import Landed

log = logging.getLogger(__name__)

BACKGROUND_RANGE = 16 << 20
"""Bytes that background fill asks for in one request."""

GAP_MAX = 64 << 10
"""Members already present are fetched again rather than split a range, if no more than this lies between, …"""

GAP_SHARE = 32
"""… and if one byte in so many is fetched twice at most: of a new version of an image few files are missing, and all of
them lie between others."""

QUEUE_MAX = 4096

PREFETCH_RETRIES = 2
"""After so many more attempts a prefetch is left to the reads and to background fill."""

PATIENCE = 15
"""A node that always reads something gets its layers filled all the same, after so many delays."""

RETRY_PAUSES_S = (5.0, 30.0, 120.0, 600.0)
"""Before a layer that could not be filled is tried again; the last one for ever after."""

REFILL_PAUSE_S = 10.0
"""So long after files have left the cache its layers are filled again at the earliest: more may be about to leave."""

FULL_PAUSE_S = 60.0
"""So long a layer that the cache had no room for waits for its next turn."""


class Progress(Protocol):
    """Told when a layer's prefetch, or the whole layer, is on the node."""

    async def __call__(self, number: int, *, complete: bool) -> None:
        """Note it for the layer with this number; `complete`: the whole layer."""


class Fill:
    """Prefetch for each layer at once; background for one layer at a time, oldest first."""

    def __init__(
        self,
        nursery: trio.Nursery,
        courier: Courier,
        flights: Flights,
        counters: Counters,
        config: FetchConfig,
        progress: Progress,
        has_room: Callable[[int], bool],
    ) -> None:
        self._nursery = nursery
        self._courier = courier
        self._flights = flights
        self._counters = counters
        self._config = config
        self._progress = progress
        self._has_room = has_room
        self._failures: dict[int, int] = {}
        self.retry_pauses_s: tuple[float, ...] = RETRY_PAUSES_S
        self._at_work = 0
        self._prefetching: set[int] = set()
        # One sweep over an index at a time: each holds the GIL a good part of its time, and readers need threads too.
        self._sweeps = trio.CapacityLimiter(1)
        # A layer that is removed while it waits must not keep its index, a descriptor and space on the disk.
        self._send, self._receive = trio.open_memory_channel[tuple[int, weakref.ref[Layer]]](QUEUE_MAX)
        self._queued: set[int] = set()
        self._later: set[int] = set()

    @property
    def busy(self) -> bool:
        """Whether layers are being filled, or wait for it."""
        return bool(self._at_work or self._queued)

    def begin(self, layer: Layer) -> None:
        """Prefetch a layer that was attached just now, then queue it for background fill.

        Nothing happens if that is under way: two images that share a layer are often pulled at once.
        """
        if layer.number in self._prefetching:
            return
        self._prefetching.add(layer.number)
        self._at_work += 1
        self._nursery.start_soon(self._prefetch, layer)

    def queue(self, layer: Layer) -> None:
        """Queue a layer for background fill, if that is on and the layer is not in the queue already."""
        if not self._config.background or layer.record.complete or layer.released or layer.number in self._queued:
            return
        try:
            self._send.send_nowait((layer.number, weakref.ref(layer)))
        except trio.WouldBlock:
            log.warning("layer %s: too many layers wait for background fill", layer.record.layer_digest)
        else:
            self._queued.add(layer.number)

    def refill(self, layer: Layer) -> None:
        """Queue a layer that has lost files, when there is room for them again."""
        if self._config.background:
            self._again(layer.number, weakref.ref(layer), REFILL_PAUSE_S, for_room=True)

    async def run(self) -> None:
        """Fill queued layers for ever."""
        async for number, queued in self._receive:
            self._at_work += 1
            await self._next(number, queued)
            self._at_work -= 1

    async def _next(self, number: int, queued: weakref.ref[Layer]) -> None:
        """Fill one layer of the queue, unless it was removed meanwhile; one that fails waits for its next turn."""
        if queued() is not None:
            await self._quiet()
        self._queued.discard(number)
        layer = queued()
        if layer is None or layer.released:
            self._failures.pop(number, None)
            return
        filled = await self._fill(layer, layer.index.payload_end, Priority.BACKGROUND, BACKGROUND_RANGE)
        if filled or layer.released:
            self._failures.pop(number, None)
            return
        if not await self._room_for(BACKGROUND_RANGE):
            self._again(number, queued, FULL_PAUSE_S, for_room=True)
            return
        failures = self._failures.get(number, 0)
        self._failures[number] = failures + 1
        self._again(number, queued, self.retry_pauses_s[min(failures, len(self.retry_pauses_s) - 1)])

    def _again(self, number: int, queued: weakref.ref[Layer], pause_s: float, *, for_room: bool = False) -> None:
        """Queue a layer once more after a pause, and when there is room, unless that is on its way."""
        if number not in self._later:
            self._later.add(number)
            self._nursery.start_soon(self._queue_later, number, queued, pause_s, for_room)

    async def _queue_later(self, number: int, queued: weakref.ref[Layer], pause_s: float, for_room: bool) -> None:  # noqa: FBT001
        await trio.sleep(pause_s)
        # Asked before the layer has its turn, which begins with a look at all its files.
        while for_room and queued() is not None and not await self._room_for(BACKGROUND_RANGE):  # noqa: ASYNC110
            await trio.sleep(FULL_PAUSE_S)
        self._later.discard(number)
        layer = queued()
        if layer is None or layer.released:
            self._failures.pop(number, None)
        else:
            self.queue(layer)

    async def _quiet(self) -> None:
        """Wait until no read has had to wait for `background_delay_s`; at most `PATIENCE` times that long."""
        delay_s = self._config.background_delay_s
        with trio.move_on_after(PATIENCE * delay_s):
            await trio.sleep(delay_s)
            while (quiet_at := self._counters.last_demand + delay_s) > trio.current_time():  # noqa: ASYNC110 (time passes)
                await trio.sleep_until(quiet_at)

    def prefetch_end(self, layer: Layer) -> int:
        """The blob offset up to which a layer is prefetched; 0 = nothing.

        A landmark says it, else the label's size, else the configured one; all of them capped by the admin.
        """
        if not self._config.prefetch:
            return 0
        landmark = layer.index.prefetch_end
        wanted = landmark if landmark is not None else layer.record.prefetch_size
        if wanted is None:
            wanted = self._config.prefetch_size
        return min(wanted, self._config.prefetch_max, layer.index.payload_end)

    async def _prefetch(self, layer: Layer) -> None:
        try:
            end = self.prefetch_end(layer)
            if end and not layer.record.prefetched:
                for pause_s in (*self.retry_pauses_s[:PREFETCH_RETRIES], None):
                    if await self._fill(layer, end, Priority.PREFETCH, self._config.prefetch_max) or pause_s is None:
                        break
                    await trio.sleep(pause_s)
        finally:
            self._prefetching.discard(layer.number)
            self._at_work -= 1
        self.queue(layer)

    async def _fill(self, layer: Layer, end: int, priority: Priority, range_max: int) -> bool:
        """Fetch what is missing below blob offset `end`; False if something is missing still, which reads can fetch."""
        try:
            whole = await self._pass(layer, end, priority, range_max)
            if whole and not layer.released:
                await self._progress(layer.number, complete=end == layer.index.payload_end)
        except SnapshotterError as error:
            log.info("layer %s: %s stopped: %s", layer.record.layer_digest, priority.name.lower(), error)
            return False
        except Exception:
            # A task of the node's nursery: a fault here must not end every mount.
            log.exception("layer %s: %s failed", layer.record.layer_digest, priority.name.lower())
            return False
        return whole

    async def _pass(self, layer: Layer, end: int, priority: Priority, range_max: int) -> bool:
        """One pass over the missing ranges; True if nothing is missing afterwards."""
        if priority is Priority.BACKGROUND:
            await trio.to_thread.run_sync(layer.prove_all, limiter=self._sweeps)
        runs = await trio.to_thread.run_sync(
            lambda: list(self._missing_runs(layer, end, range_max)), limiter=self._sweeps
        )
        whole = True
        for run in runs:
            if layer.released:
                return False
            if priority is Priority.BACKGROUND and not await self._room_for(range_max):
                log.info("layer %s: the rest of it waits until the cache has room", layer.record.layer_digest)
                return False
            whole &= await self._carry(layer, run, Transfer(priority))
        if whole and end == layer.index.payload_end:
            await trio.to_thread.run_sync(layer.settle_all, limiter=self._sweeps)
        return whole

    async def _room_for(self, size: int) -> bool:
        """Whether the cache takes `size` more without anything having to leave: filling must not evict."""
        try:
            return await trio.to_thread.run_sync(self._has_room, size, limiter=self._sweeps)
        except StoreError as error:
            log.info("background fill cannot tell whether the cache has room: %s", error)
            return False

    def _missing_runs(self, layer: Layer, end: int, range_max: int) -> Iterator[list[int]]:
        """Runs of members with something missing, each at most `range_max` bytes of blob; few small gaps are bridged."""
        run: list[int] = []
        start = reach = wanted = bridged = 0
        for number in layer.index.members_between(0, end):
            if layer.member_stored(number):
                continue
            member = layer.index.member(number)
            gap = member.blob_offset - reach if run else 0
            wanted += member.blob_end - member.blob_offset
            if run and (gap > GAP_MAX or (bridged + gap) * GAP_SHARE > wanted or member.blob_end - start > range_max):
                yield run
                run, gap = [], 0
            if not run:
                start = member.blob_offset
            bridged += gap
            run.append(number)
            reach = member.blob_end
        if run:
            yield run

    async def _carry(self, layer: Layer, run: list[int], transfer: Transfer) -> bool:
        """Stream one run; True if every member of it landed."""
        announced = 0
        failed: list[SnapshotterError] = []
        mine: set[int] = set()

        def arriving(position: int) -> None:
            nonlocal announced
            while announced < len(run) and layer.index.member(run[announced]).blob_offset < position:
                member = run[announced]
                if self._flights.find(layer.origin, member) is None:
                    self._flights.announce(layer.origin, member, transfer)
                    mine.add(member)
                announced += 1

        def landed(one: Landed) -> None:
            if one.error is not None:
                failed.append(one.error)
                self._counters.verification_failures += isinstance(one.error, FormatError)
            if one.member in mine:
                mine.discard(one.member)
                self._flights.land(layer.origin, one.member, transfer, one.error)

        try:
            await self._courier.carry(layer.origin, run, transfer, landed, arriving=arriving)
        finally:
            for member in mine:
                self._flights.land(layer.origin, member, transfer, StoreError("the stream that brought this ended"))
        for error in failed:
            log.warning("layer %s: %s", layer.record.layer_digest, error)
            if isinstance(error, StoreError):
                raise error
        return not failed
