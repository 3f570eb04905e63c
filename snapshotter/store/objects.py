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
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from snapshotter.config import CacheConfig
from snapshotter.errors import StoreError
from snapshotter.store.bounds import Bounds
from snapshotter.store.cache_db import CacheDB
from snapshotter.store.disk import disk_errors, hash_range, syncfs
from snapshotter.store.eviction import Evicted
from snapshotter.store.full_disk import MADE_ROOM
from snapshotter.store.handles import HandleCache, OpenObject
from snapshotter.store.identity import FileIdentity
from snapshotter.store.intake import Intake, StoreCounters
from snapshotter.store.late import LateLinks
from snapshotter.store.partial import PartialFile
from snapshotter.store.partials import PartialSet
from snapshotter.store.place import content_place
from snapshotter.store.placement import ObjectInfo, Placement, is_derived
from snapshotter.store.recovery import count_unproven, distrust
from snapshotter.store.tally import Tally, Usage
from snapshotter.store.tree import ObjectTree
from snapshotter.store.verification import Progress, Verified, forget_lost, verify
from snapshotter.store.writer import ChunkWriter

log = logging.getLogger(__name__)

OPEN_OBJECTS = 1024
# An object that awaits proof is hashed inside a read up to this size: about half a millisecond.
PROVE_INLINE = 1 << 20


class ObjectStore:
    """The directories `objects`, `late`, `unproven` and `partial` of one root. The caller holds the root's lock."""

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
        self._tally = Tally(db.used_estimate)
        self._handles = HandleCache(OPEN_OBJECTS, self._tally.deleted_open)
        self._sync_lock = threading.Lock()  # one sync at a time
        with disk_errors(f"open the cache in {root}"):
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Directory of `objects` and of `late` in which all domains lie; only root may know its 14 characters.
            self.place = content_place(root)
            objects, unproven = ObjectTree(root / "objects" / self.place), ObjectTree(root / "unproven")
            self._exact = db.exact and not (root / MADE_ROOM).exists()
            distrust(objects, unproven, db)
            (root / MADE_ROOM).unlink(missing_ok=True)
            self._late = LateLinks(root / "late", self.place, objects, self._tally.lock_of, clock)
            self._tally.change_unproven(count_unproven(unproven))
            self._placement = Placement(objects, unproven, self._tally, self._handles)
            self._partials = PartialSet(root / "partial", db.boot_id, self._tally.partial)
        self._objects, self._unproven = objects, unproven
        self._bounds = Bounds(limits, self._tally, objects.fd)
        self._intake = Intake(self._placement, self._partials, self.counters)

    # reading

    def acquire(self, domain: str, digest: bytes, size: int) -> OpenObject | None:
        """The complete, verified object, open; None if it is not here with that size. Quick.

        Its `fd` stays good until `release()` whatever is evicted meanwhile.
        """
        handle = self._handles.get((domain, digest))
        if handle is None:
            handle = self._open(domain, digest, size)
            if handle is None:
                return None
        if handle.size != size:
            handle.release()
            return None
        return handle

    def read(self, domain: str, digest: bytes, size: int, offset: int, length: int) -> bytes | None:
        """Up to `length` bytes at `offset` (fewer at the end of the object); None if it is not here. Quick when cached.

        An object that the disk does not give back is removed and counts as absent: the network can serve it.
        """
        handle = self.acquire(domain, digest, size)
        if handle is None:
            return None
        try:
            data = os.pread(handle.fd, length, offset)
        except OSError as error:
            log.warning("cached file %s cannot be read and is fetched again: %s", digest.hex(), error)
            data = b""
        finally:
            handle.release()
        if len(data) < min(length, size - offset):
            self.counters.add("unreadable")
            self.remove(domain, digest)
            return None
        return data

    def has(self, domain: str, digest: bytes, size: int) -> bool:
        """Whether the complete, verified object is here. Quick; opens nothing."""
        status = self._objects.status(domain, digest)
        return status is not None and status.st_size == size

    @property
    def unproven(self) -> int:
        """How many objects await their proof; see `prove`."""
        return self._tally.unproven

    def prove(self, domain: str, digest: bytes, size: int) -> bool:
        """Whether the object is here after all: one that a power loss may have torn is read, and kept if it is good.

        Returns at once unless objects await proof.

        Raises:
            StoreError: the disk refused.
        """
        if self._tally.unproven and (found := self._unproven.open(domain, digest)) is not None:
            fd, status = found
            try:
                good = status.st_size == size and not is_derived(status) and hash_range(fd, 0, size) == digest
            except OSError:
                good = False
            finally:
                os.close(fd)
            if not good:
                self.counters.add("disproved")
            with disk_errors(f"keep object {digest.hex()}"):
                self._placement.settle(domain, digest, good=good)
        return self.has(domain, digest, size)

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
        return ChunkWriter(identity, ordinal, spool, functools.partial(self._intake.accept, domain))

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

    def _open(self, domain: str, digest: bytes, size: int) -> OpenObject | None:
        try:
            found = self._objects.open(domain, digest)
            if found is None:
                if not self._tally.unproven or size > PROVE_INLINE or not self.prove(domain, digest, size):
                    return None
                found = self._objects.open(domain, digest)
                if found is None:
                    return None
            handle = self._handles.add((domain, digest), *found)
            if not self._is_named(domain, digest, handle.fd):
                self._handles.drop((domain, digest))
            return handle
        except (OSError, StoreError) as error:
            log.warning("cached file %s cannot be opened and is fetched again: %s", digest.hex(), error)
            self.counters.add("unreadable")
            return None

    def _is_named(self, domain: str, digest: bytes, fd: int) -> bool:
        """False if it was removed between open and add, when there was no handle to drop.

        Its link count does not say so: the file may have names in other domains and in `late`.
        """
        try:
            named = self._objects.status(domain, digest)
        except OSError:
            return False
        return named is not None and named.st_ino == os.fstat(fd).st_ino

    # upkeep

    @property
    def dirty(self) -> bool:
        """Something changed since the last `sync`."""
        return self._placement.dirty or self._partials.unsynced

    def sync(self) -> None:
        """Have all content so far survive a power loss; call it every half minute or so while `dirty`. Slow.

        Raises:
            StoreError: the disk refused; nothing is vouched for that was not safe before.
        """
        with self._sync_lock:
            came, went = self._placement.begin_sync()
            chunks = self._partials.begin_sync()
            try:
                syncfs(self._objects.fd)
                self._db.record(came, went, self._tally.used())
                with disk_errors("mark partial files as synced"):
                    self._partials.end_sync(chunks)
            except BaseException:
                self._placement.sync_failed(came, went)
                raise

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
        """What the cache takes up, exactly; the first call counts all files.

        Raises:
            StoreError: the disk refused.
        """
        self._count()
        return self._tally.usage()

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
        freed = objects = partials = 0
        with disk_errors("evict from the cache"):
            for domain, digest, _ in candidates:
                if freed >= bytes_to_free:
                    break
                removed = self._placement.remove(domain, digest)
                if removed is not None:
                    objects += 1
                    freed += removed
                for entry in self._partials.of_digest(domain, digest):
                    size = self._partials.remove(entry, unless_busy=True)
                    partials += size > 0
                    freed += size
        return Evicted(freed, objects, partials)

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
        return verify(self._placement, self._partials, self._db, self._sync_lock, progress)

    def _count(self) -> None:
        with disk_errors("count the cache"):
            if not self._exact:
                # A daemon that was killed between a removal and the next sync left rows without files. Nobody can tell
                # those from losses any more, so they are not reported as such.
                forget_lost(self._placement, self._db, self._sync_lock)
                self._exact = True
            self._tally.recount(self._placement.scan)
