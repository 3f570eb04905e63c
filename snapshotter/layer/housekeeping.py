"""Keeps the cache within its bounds, what was written safe from a power cut, and forgets what nobody names.

An object's last use is the last Prepare or Mounts of a chain that names it; what active snapshots name goes last.
"""

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator

import trio

from snapshotter.config import CacheConfig
from snapshotter.errors import SnapshotterError
from snapshotter.layer.counters import Counters
from snapshotter.layer.layer import Layer
from snapshotter.layer.manifests import ManifestStore
from snapshotter.layer.shelf import Shelf
from snapshotter.store.eviction import Evicted
from snapshotter.store.objects import ObjectStore
from snapshotter.store.placement import ObjectInfo
from snapshotter.store.state import State

log = logging.getLogger(__name__)

TICK_S = 2.0
SYNC_EVERY_S = 30.0
TIDY_AFTER_S = 5.0
"""After the start: first come those who wait for it."""

LATE_S = 10.0
"""So long a file that the gate has brought keeps the name by which the kernel finds it at that moment. The kernel looks at
once, but the process may have to wait for a processor; without the name its open would fail."""

FUTILE_PAUSE_S = 30.0
"""After an eviction that freed nothing: each try reads every index, and takes names from files that stay on the disk."""

FUTILE_PAUSE_MOST_S = 960.0
"""The pause doubles up to this while nothing comes of it."""


def unnamed(store: ObjectStore, layers: Iterable[Layer]) -> Iterator[ObjectInfo]:
    """Yield objects and partial files whose content no layer of their domain names. Blocking: for worker threads.

    One pass over each index: looking every file up in every index would be a hundred times the work.
    """
    layers = list(layers)
    for domain in store.domains():
        files = [*store.iterate(domain), *store.iterate_partials(domain)]
        left = {stored.digest for stored in files}
        for layer in layers:
            if layer.domain == domain:
                left.difference_update(digest for digest, _, _ in layer.index.digests())
        yield from (stored for stored in files if stored.digest in left)


class Housekeeping:
    """The node's slow chores. Used on the trio thread; the work itself is done in worker threads."""

    def __init__(
        self,
        store: ObjectStore,
        shelf: Shelf,
        manifests: ManifestStore,
        state: State,
        config: CacheConfig,
        counters: Counters,
        refill: Callable[[Layer], None],
    ) -> None:
        """`refill` is told of complete layers that have lost files."""
        self._store = store
        self._shelf = shelf
        self._manifests = manifests
        self._state = state
        self._config = config
        self._counters = counters
        self._refill = refill
        self._one_at_a_time = trio.Lock()
        self._rest_until = float("-inf")
        self._rest_s = 0.0  # 0 while evictions do what they are for

    def problems(self) -> Iterator[str]:
        """What an admin should know of the disk, a sentence each; from any thread."""
        if (refusal := self._store.health.refusal) is not None:
            yield (
                f"degraded: the cache's disk takes nothing: {refusal}; what is not on the node comes from the registry "
                "each time it is read, until the disk takes it again"
            )
        if (refusal := self._state.health.refusal) is not None:
            yield f"degraded: {refusal}; no image can be pulled and no container started until that works again"

    async def run(self) -> None:
        """Look after the store for ever."""
        synced, said = trio.current_time(), ""
        tidy_at = synced + TIDY_AFTER_S
        while True:
            await trio.sleep(TICK_S)
            try:
                if trio.current_time() >= tidy_at:
                    tidy_at = float("inf") if await self.drop_orphans() else trio.current_time() + TIDY_AFTER_S
                await trio.to_thread.run_sync(self._tend_disk)
                # First: a file that has left the cache keeps its bytes for as long as it has a name there.
                await trio.to_thread.run_sync(self._store.sweep_late, LATE_S)
                # No pause while state.db finds no room: without it no container starts.
                if trio.current_time() >= self._rest_until or self._state.health.refusal is not None:
                    await self.evict()
                if self._store.dirty and trio.current_time() - synced > SYNC_EVERY_S:
                    synced = trio.current_time()
                    await trio.to_thread.run_sync(self._store.sync)
                said = ""
            except (SnapshotterError, OSError) as error:
                self._rest_until = trio.current_time() + FUTILE_PAUSE_S
                if str(error) != said:
                    log.warning("looking after the cache failed: %s", error)
                said = str(error)
            except Exception:
                self._rest_until = trio.current_time() + FUTILE_PAUSE_S
                # A task of the node's nursery: a fault here must not end every mount.
                log.exception("looking after the cache failed")

    def _tend_disk(self) -> None:
        self._state.try_again()
        self._store.tend_disk()

    def _excess(self) -> int:
        """Bytes that must leave the cache; also for state.db, which lies on the same disk."""
        wanted = self._state.health.missing_room
        return max(self._store.over_limit(), min(wanted, self._store.usage().used) if wanted else 0)

    async def evict(self) -> None:
        """Bring the cache below its low-water mark if it is over its bounds. That nothing comes of it is said once."""
        excess = await trio.to_thread.run_sync(self._excess)
        freed = await self.free(excess) if excess else Evicted()
        if freed.bytes:
            log.info("cache over its bounds: %d objects, %d bytes left it", freed.objects, freed.bytes)
        well = not excess or 2 * freed.held < freed.bytes
        if well or (freed.bytes and not await trio.to_thread.run_sync(self._excess)):
            self._rest_s = 0.0
            return
        if not self._rest_s:
            log.warning(
                "%d bytes of the cache must go: %d went, of which the disk did not get %d back since containers hold them, "
                "and all else is in use; make room on its file system or change [cache] quota and min_free; until then "
                "what is fetched may not be kept",
                excess,
                freed.bytes,
                freed.held,
            )
        self._rest_s = min(max(2 * self._rest_s, FUTILE_PAUSE_S), FUTILE_PAUSE_MOST_S)
        self._rest_until = trio.current_time() + self._rest_s

    async def free(self, wanted: int) -> Evicted:
        """Take objects away, least recently used first, until `wanted` bytes are free or nothing is left to take."""
        async with self._one_at_a_time:
            in_use = await trio.to_thread.run_sync(self._state.layers_in_use)
            layers = self._shelf.by_last_use(in_use)
            freed = await trio.to_thread.run_sync(lambda: self._store.evict(self._candidates(layers), wanted))
        self._counters.evicted_bytes += freed.bytes
        self._counters.evicted_objects += freed.objects
        self._counters.evicted_partials += freed.partials
        if freed.objects:
            await self._note_losses()
        return freed

    async def _note_losses(self) -> None:
        lost = self._shelf.note_losses()
        if lost:
            try:
                await trio.to_thread.run_sync(self._state.set_incomplete, [layer.number for layer in lost])
            except SnapshotterError as error:  # the disk is full, and room for it is being made
                log.info("%d layers stay on record as complete: %s", len(lost), error)
        for layer in lost:
            self._refill(layer)

    def _candidates(self, layers: list[Layer]) -> Iterator[tuple[str, bytes, int]]:
        """Objects in the order in which they may leave: named by nobody, then by the layers, longest unused first."""
        left: dict[str, dict[bytes, int]] = {}
        for domain in self._store.domains():
            files = itertools.chain(self._store.iterate(domain), self._store.iterate_partials(domain))
            left[domain] = {stored.digest: stored.size for stored in files}
        # From the last used layer on, so that each file falls to the last that names it: one pass over each index.
        named: list[list[tuple[str, bytes, int]]] = []
        for layer in reversed(layers):
            here = left.get(layer.domain, {})
            mine = [digest for digest, _, _ in layer.index.digests() if digest in here]
            named.append([(layer.domain, digest, here.pop(digest)) for digest in mine])
        for domain, here in left.items():
            yield from ((domain, digest, size) for digest, size in here.items())
        while named:
            yield from named.pop()

    async def drop_orphans(self) -> bool:
        """Delete what a killed daemon left that no layer needs; False if that has to wait until no image is being pulled."""
        async with self._one_at_a_time:
            if not await self._shelf.drop_orphans():
                return False
            await trio.to_thread.run_sync(self._drop_manifests)
            # Of a layer that could not be brought back nobody knows what it names.
            if self._store.interrupted and not self._shelf.broken():
                keep = self._config.keep_unreferenced
                await trio.to_thread.run_sync(self._trim_unnamed, list(self._shelf.all()), keep)
        return True

    async def release(self, number: int) -> None:
        """Forget a layer that no snapshot names, and its content but for `cache.keep_unreferenced` bytes."""
        async with self._one_at_a_time:
            keep = self._config.keep_unreferenced
            await self._shelf.release(number, drop_content=not keep)
            layers = list(self._shelf.all())
            if keep:
                await trio.to_thread.run_sync(self._trim_unnamed, layers, keep)
            await trio.to_thread.run_sync(self._drop_manifests)

    def _trim_unnamed(self, layers: list[Layer], keep: int) -> None:
        left = list(unnamed(self._store, layers))
        excess = sum(stored.disk_bytes for stored in left) - keep
        for stored in left:
            if excess <= 0:
                return
            excess -= self._store.remove(stored.domain, stored.digest)

    def _drop_manifests(self) -> None:
        def named() -> set[str]:
            records = self._state.layers()
            return {str(source.manifest_digest) for record in records for source in self._state.sources(record.number)}

        self._manifests.drop_unnamed(named)
