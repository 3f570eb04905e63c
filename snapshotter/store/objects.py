"""Content of the node's lazy layers: verified objects, partial large files, and what they may take up.

Every method is plain blocking code and safe from any thread. Reading, cheapest first:

    data = store.read(domain, digest, size, offset, length)        # complete: one pread; may run on the trio thread
    if data is None and partial := store.partial(domain, identity):  # keep it while the file is in use
        data = partial.read(ordinal, file_offset, length)
    if data is None: in a worker thread store.prove(…), then fetch into store.writer(…)

What is not said to be quick here belongs into a worker thread.
"""

import functools
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from snapshotter.config import CacheConfig
from snapshotter.errors import StoreError
from snapshotter.store.bounds import Bounds
from snapshotter.store.cache_db import CacheDB, Trust
from snapshotter.store.disk import disk_errors
from snapshotter.store.eviction import Evicted
from snapshotter.store.full_disk import MADE_ROOM
from snapshotter.store.handles import HandleCache
from snapshotter.store.health import DiskHealth
from snapshotter.store.identity import FileIdentity
from snapshotter.store.intake import Intake, StoreCounters
from snapshotter.store.late import LateLinks
from snapshotter.store.leaving import evict
from snapshotter.store.partial import PartialFile
from snapshotter.store.partials import PartialSet
from snapshotter.store.place import content_place
from snapshotter.store.placement import ObjectInfo, Placement
from snapshotter.store.reading import Reading
from snapshotter.store.recovery import count_unproven, distrust
from snapshotter.store.syncing import Syncing
from snapshotter.store.tally import Tally, Usage
from snapshotter.store.tree import ObjectTree
from snapshotter.store.verification import Progress, Verified, forget_lost, verify
from snapshotter.store.writer import ChunkWriter

log = logging.getLogger(__name__)

OPEN_OBJECTS = 1024
HELD_AT_A_TIME = 2000


class ObjectStore(Reading):
    """The directories `objects`, `late`, `unproven` and `partial` of one root. The caller holds the root's lock."""

    interrupted: bool
    """The daemon before this one did not end in order."""

    def __init__(
        self,
        root: Path,
        db: CacheDB,
        limits: CacheConfig,
        counters: StoreCounters | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open the store; after an unclean boot this looks at every object once. `clock` is that of late links.

        Raises:
            StoreError: the directories or the database cannot be used.
        """
        self._db = db
        self.counters = counters if counters is not None else StoreCounters()
        self.health = DiskHealth()
        self._tally = Tally(db.used_estimate)
        self._handles = HandleCache(OPEN_OBJECTS, self._tally.deleted_open)
        with disk_errors(f"open the cache in {root}"):
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Directory of `objects` and of `late` in which all domains lie; only root may know its 14 characters.
            self.place = content_place(root)
            objects, unproven = ObjectTree(root / "objects" / self.place), ObjectTree(root / "unproven")
            self.interrupted = not db.ended
            self._exact = db.exact and not (root / MADE_ROOM).exists()
            # The machine stopped without a shutdown since the last daemon, or nothing is known of that.
            self.after_power_loss = db.trust is not Trust.ALL
            distrust(objects, unproven, db)
            (root / MADE_ROOM).unlink(missing_ok=True)
            self._late = LateLinks(
                root / "late", self.place, objects, self._tally.lock_of, clock, keep=not self.after_power_loss
            )
            self._tally.change_unproven(count_unproven(unproven))
            self._placement = Placement(objects, unproven, self._tally, self._handles)
            self._partials = PartialSet(root / "partial", db.boot_id, self._tally.partial)
        self._objects, self._unproven = objects, unproven
        self._bounds = Bounds(limits, self._tally, self.health, objects.fd)
        self._unreadable = set()
        self._syncing = Syncing(self._placement, self._partials, db, self.health)
        self._intake = Intake(self._placement, self._partials, self.counters)

    # reading: see `Reading`

    def partial(self, domain: str, identity: FileIdentity) -> PartialFile | None:
        """The file's chunks that are here; None if there are none. The first call for a file does I/O."""
        try:
            return self._partials.get(domain, identity)
        except OSError as error:
            log.warning("partial file of %s cannot be opened: %s", identity.digest.hex(), error)
            return None

    # writing

    def writer(self, domain: str, identity: FileIdentity, ordinal: int) -> ChunkWriter:
        """Where the bytes of one chunk go.

        Raises:
            StoreFull: quota or free-space floor are reached; serve from memory, and evict.
            StoreError: the disk refused.
        """
        self._bounds.check(identity.chunks[ordinal][1])
        with disk_errors(f"write into domain {domain}"):
            spool = self._intake.spool(domain)
        accept = functools.partial(self._intake.accept, domain)
        return ChunkWriter(identity, ordinal, spool, accept, self.health)

    def refuses(self, size: int) -> bool:
        """Whether `size` bytes more would find no room now, or a disk that takes nothing. Quick."""
        try:
            self._bounds.check(size)
        except StoreError:
            return True
        return False

    def mark_zeros(self, domain: str, identity: FileIdentity, ordinal: int) -> bool:
        """Have a chunk that the blob does not carry because it is all zeros, as a hole. Returns what `commit` returns.

        Raises:
            IntegrityError: the TOC's digests say that it is not all zeros.
            StoreFull: no room on the disk.
            StoreError: the disk refused.
        """
        with disk_errors(f"store chunk {ordinal} of file {identity.digest.hex()}"):
            return self._intake.zeros(domain, identity, ordinal)

    def finish(self, domain: str, identity: FileIdentity) -> bool:
        """Check a large file whose chunks are all here as a whole, and make it an object. Reads up to all of it.

        False: not complete, or its digest is not the TOC's: that is remembered and counted, and reads go on from
        the verified chunks.

        Raises:
            StoreFull: no room on the disk.
            StoreError: the disk refused.
        """
        with disk_errors(f"complete file {identity.digest.hex()}"):
            return self._intake.finish(domain, identity)

    def name_large(self, domain: str, identity: FileIdentity) -> bool:
        """Whether the complete object is here; one of several chunks then has the name by which an overlay finds it.

        Raises:
            StoreFull: no room on the disk.
            StoreError: the disk refused.
        """
        with disk_errors(f"name file {identity.digest.hex()}"):
            return self._placement.name_large(domain, identity)

    def link_late(self, domain: str, digest: bytes, size: int, name: str = "") -> bool:
        """Give a complete object a name in `late`, or the one it has more time; False if it is not here with that size.

        The name is that of the object, or `name`, that of a large file.

        For the gate, after it fetched what the kernel did not find in `objects`. Worker threads only.

        Raises:
            StoreFull: no room on the disk.
            StoreError: the disk refused; the object itself is good.
        """
        with disk_errors(f"link object {digest.hex()}"):
            return self._late.link(domain, digest, size, name)

    def sweep_late(self, older_than_s: float) -> None:
        """Remove the names in `late` that were last linked `older_than_s` ago or longer. Call it every few seconds.

        Raises:
            StoreError: the disk refused.
        """
        with disk_errors("remove names of late objects"):
            self._late.sweep(older_than_s)

    # upkeep

    @property
    def dirty(self) -> bool:
        """Something changed since the last `sync`."""
        return self._syncing.due

    def sync(self) -> None:
        """Have all content so far survive a power loss; call it every half minute or so while `dirty`. Slow.

        Raises:
            StoreError: the disk refused; nothing is vouched for that was not safe before.
        """
        self._syncing.sync()

    def tend_disk(self) -> None:
        """See whether a disk that refused something takes it now, and which deleted files have gone. Every few seconds."""
        self.health.try_again(self._objects.fd)
        self._placement.held.sweep(HELD_AT_A_TIME)

    def close(self) -> None:
        """Sync, and leave word that the end was in order. Nothing may be called afterwards, but handles may be released.

        Raises:
            StoreError: the disk refused the sync; the next start checks what is not vouched for if the machine stops meanwhile.
        """
        try:
            self.sync()
            if not self.dirty:
                self._db.end(exact=self._exact)
        finally:
            self._handles.close()
            self._partials.close()
            self._objects.close()
            self._late.close()
            self._unproven.close()
            self._db.close()

    def usage(self) -> Usage:
        """What the cache takes up, exactly; the first call counts all files. An estimate where the disk refuses that."""
        try:
            self._count()
        except StoreError as error:
            self.health.refused(error)
        self._placement.held.sweep()
        return self._tally.usage(self._placement.held.bytes)

    def over_limit(self) -> int:
        """Bytes that must leave for quota and free-space floor; 0 if none. The first call counts all files.

        Raises:
            StoreError: the disk refused.
        """
        self._count()
        return self._bounds.excess()

    def has_room(self, size: int) -> bool:
        """Whether the cache would be no fuller than its low-water mark with `size` bytes more.

        Raises:
            StoreError: the disk refused.
        """
        self._count()
        return self._bounds.has_room(size)

    def evict(self, candidates: Iterable[tuple[str, bytes, int]], bytes_to_free: int) -> Evicted:
        """Remove (domain, digest, size) after (domain, digest, size) with their partial files until enough is free.

        Partial files that somebody reads or writes at this moment stay. `candidates` is read no further than needed.

        Raises:
            StoreError: the disk refused.
        """
        with disk_errors("evict from the cache"):
            evicted = evict(self._placement, self._partials, candidates, bytes_to_free)
        self.health.try_again(self._objects.fd)
        return evicted

    def remove(self, domain: str, digest: bytes) -> int:
        """Remove an object and its partial files, in use or not; bytes on disk that this frees.

        Raises:
            StoreError: the disk refused.
        """
        with disk_errors(f"remove object {digest.hex()}"):
            freed = self._placement.remove(domain, digest) or 0
            return freed + self._intake.drop_partials(domain, digest)

    def domains(self) -> list[str]:
        """Sharing domains that have content."""
        return sorted(self._placement.domains() | set(self._partials.domains()))

    def iterate(self, domain: str) -> Iterator[ObjectInfo]:
        """The domain's objects; one that comes or goes meanwhile may be missed."""
        return self._placement.iterate(domain)

    def iterate_partials(self, domain: str) -> Iterator[ObjectInfo]:
        """The domain's partial files; one digest may come more than once."""
        for entry in self._partials.entries(domain):
            yield ObjectInfo(domain, entry.digest, entry.size, entry.disk_bytes)

    def verify(self, progress: Progress) -> Verified:
        """Read everything again, and look for what is missing; see `verification`. Very slow.

        Raises:
            StoreError: the disk refused.
        """
        self._count()
        return verify(self._placement, self._partials, self._db, self._syncing.lock, progress)

    def _count(self) -> None:
        with disk_errors("count the cache"):
            if not self._exact:
                # A daemon that was killed between a removal and the next sync left rows without files. Nobody can tell
                # those from losses any more, so they are not reported as such.
                forget_lost(self._placement, self._db, self._syncing.lock)
                self._exact = True
            self._tally.recount(self._placement.scan)
