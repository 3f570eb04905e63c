"""Reading complete objects, and what becomes of those that the disk does not give back."""

import logging
import os

from snapshotter.store.disk import hash_range
from snapshotter.store.handles import HandleCache, OpenObject
from snapshotter.store.intake import StoreCounters
from snapshotter.store.placement import Placement, is_derived
from snapshotter.store.tally import Tally
from snapshotter.store.tree import ObjectTree

log = logging.getLogger(__name__)

# An object that awaits proof is hashed inside a read up to this size: about half a millisecond.
PROVE_INLINE = 1 << 20


class Reading:
    """The part of `ObjectStore` that readers use; the rest of it provides what is declared here."""

    counters: StoreCounters
    _handles: HandleCache
    _objects: ObjectTree
    _placement: Placement
    _tally: Tally
    _unproven: ObjectTree
    _unreadable: set[tuple[str, bytes, int]]
    """Domain, digest and inode of objects that the disk neither gives back nor removes."""

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
            self.drop_unreadable(domain, digest)
            return None
        return data

    def drop_unreadable(self, domain: str, digest: bytes) -> None:
        """The disk does not give an object back: it goes, and counts as absent where the disk refuses that too. Slow."""
        self.counters.add("unreadable")
        found = None
        try:
            found = self._objects.status(domain, digest)
            self._placement.remove(domain, digest)
        except OSError as error:
            log.warning("cached file %s cannot be removed either: %s", digest.hex(), error)
            self._handles.drop((domain, digest))
            if found is not None:
                self._unreadable.add((domain, digest, found.st_ino))

    def has(self, domain: str, digest: bytes, size: int) -> bool:
        """Whether the complete, verified object is here. Quick; opens nothing."""
        try:
            status = self._objects.status(domain, digest)
        except OSError:  # what cannot be looked up cannot be read
            return False
        return status is not None and status.st_size == size and (domain, digest, status.st_ino) not in self._unreadable

    @property
    def unproven(self) -> int:
        """How many objects await their proof; see `prove`."""
        return self._tally.unproven

    def prove(self, domain: str, digest: bytes, size: int, *, wait: bool = True) -> bool:
        """Whether the object is here after all: one that a power loss may have torn is read, and kept if it is good.

        `wait`: for threads that change names beside it; they may wait for the disk, and for what the kernel waits for.

        Returns at once unless objects await proof. One that the disk does not let go of stays where it is, not to be read.
        """
        found = self._find_unproven(domain, digest) if self._tally.unproven else None
        if found is not None:
            fd, status = found
            try:
                good = status.st_size == size and not is_derived(status) and hash_range(fd, 0, size) == digest
            except OSError:
                good = False
            finally:
                os.close(fd)
            if not good:
                self.counters.add("disproved")
            try:
                self._placement.settle(domain, digest, good=good, wait=wait)
            except OSError as error:
                log.warning("cached file %s stays unproven: %s", digest.hex(), error)
        return self.has(domain, digest, size)

    def _find_unproven(self, domain: str, digest: bytes) -> tuple[int, os.stat_result] | None:
        try:
            return self._unproven.open(domain, digest)
        except OSError as error:
            log.warning("cached file %s cannot be opened to prove it: %s", digest.hex(), error)
            return None

    def _open(self, domain: str, digest: bytes, size: int) -> OpenObject | None:
        try:
            found = self._objects.open(domain, digest)
            if found is None:
                if not self._tally.unproven or size > PROVE_INLINE:
                    return None
                if not self.prove(domain, digest, size, wait=False):
                    return None
                found = self._objects.open(domain, digest)
                if found is None:
                    return None
            if (domain, digest, found[1].st_ino) in self._unreadable:
                os.close(found[0])
                return None
            handle = self._handles.add((domain, digest), *found)
            if not self._is_named(domain, digest, handle.fd):
                self._handles.drop((domain, digest))
            return handle
        except OSError as error:
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
