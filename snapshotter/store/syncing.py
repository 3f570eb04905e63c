"""What was written made safe from a power loss: one syncfs for all of it, then on record what it covered."""

import threading

from snapshotter.errors import StoreError
from snapshotter.store.cache_db import CacheDB
from snapshotter.store.disk import disk_errors, syncfs
from snapshotter.store.health import DiskHealth
from snapshotter.store.partials import PartialSet
from snapshotter.store.placement import Placement


class Syncing:
    """Safe from any thread. `lock` is held by a sync: one at a time, and none while rows and files are compared."""

    def __init__(self, placement: Placement, partials: PartialSet, db: CacheDB, health: DiskHealth) -> None:
        self._placement = placement
        self._partials = partials
        self._db = db
        self._health = health
        self.lock = threading.Lock()

    @property
    def due(self) -> bool:
        """Something changed since the last sync."""
        return self._placement.dirty or self._partials.unsynced

    def sync(self) -> None:
        """See `ObjectStore.sync`."""
        with self.lock:
            came, went = self._placement.begin_sync()
            chunks = self._partials.begin_sync()
            try:
                syncfs(self._placement.objects.fd)
                self._db.record(came, went, self._placement.tally.used())
                with disk_errors("mark partial files as synced"):
                    self._partials.end_sync(chunks)
            except BaseException as error:
                self._placement.sync_failed(came, went)
                if isinstance(error, StoreError):
                    self._health.refused(error)
                raise
