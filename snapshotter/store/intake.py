"""What becomes of a verified chunk: an object at once, or a part of a partial file that becomes one when it is whole."""

import logging
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from snapshotter.errors import IntegrityError, StoreError
from snapshotter.store.disk import hash_zeros
from snapshotter.store.identity import FileIdentity
from snapshotter.store.partial import PartialFile
from snapshotter.store.partials import PartialSet
from snapshotter.store.placement import Placement
from snapshotter.store.writer import Spool

log = logging.getLogger(__name__)

# Reading that a commit does for the whole-file check itself, instead of asking for `finish`.
FINISH_INLINE = 16 << 20


@dataclass(slots=True)
class StoreCounters:
    """What the store has seen since it was opened."""

    mismatches: int = 0  # complete files that do not have the digest their TOC gives
    unreadable: int = 0  # objects that the disk did not give back
    disproved: int = 0  # objects that did not survive a power loss
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)  # guards the numbers

    def add(self, name: str) -> None:
        """Count one more of `name`."""
        with self._lock:
            setattr(self, name, getattr(self, name) + 1)


class Intake:
    """The way of verified bytes into the store. Disk errors come out as `OSError`; the store's door maps them."""

    def __init__(self, placement: Placement, partials: PartialSet, counters: StoreCounters) -> None:
        self._placement = placement
        self._partials = partials
        self._counters = counters

    def spool(self, domain: str) -> Spool:
        """A place for bytes that are not verified yet, on the file system where they will stay."""
        return Spool(self._partials.directory(domain), self._partials.temporary(), [])

    def accept(self, domain: str, identity: FileIdentity, ordinal: int, spool: Spool) -> bool:
        """Take a verified chunk from a writer; see `ChunkWriter.commit` for the answer."""
        if len(identity.chunks) == 1:
            spool.to_file()
            self._place_spool(domain, identity, spool)
            return False
        return self._store(domain, identity, lambda partial: partial.store(ordinal, spool))

    def zeros(self, domain: str, identity: FileIdentity, ordinal: int) -> bool:
        """Take a chunk of zeros; see `ObjectStore.mark_zeros`."""
        _, size, digest = identity.chunks[ordinal]
        whole = len(identity.chunks) == 1
        expected = {digest} - {b""} | ({identity.digest} if whole and not identity.derived else set())
        if expected and expected != {hash_zeros(size)}:
            raise IntegrityError(f"chunk {ordinal} of file {identity.digest.hex()}: the TOC says zeros, its digest not")
        if not whole:
            return self._store(domain, identity, lambda partial: partial.store_zeros(ordinal))
        spool = self.spool(domain)
        try:
            spool.to_file()
            os.ftruncate(spool.fd, size)
            self._place_spool(domain, identity, spool)
        finally:
            spool.discard()
        return False

    def finish(self, domain: str, identity: FileIdentity) -> bool:
        """Make a complete partial file an object; see `ObjectStore.finish`."""
        partial = self._partials.get(domain, identity)
        if partial is not None:
            with partial.finish_lock, suppress(FileNotFoundError):  # removed meanwhile: nothing to complete
                self._finish(domain, identity, partial)
        return self._is_object(domain, identity)

    def drop_partials(self, domain: str, digest: bytes) -> int:
        """Remove all partial files of a digest, also those of TOCs that cut it otherwise; bytes on disk that this frees."""
        return sum(self._partials.remove(entry) for entry in self._partials.of_digest(domain, digest))

    def _is_object(self, domain: str, identity: FileIdentity) -> bool:
        status = self._placement.objects.status(domain, identity.digest)
        return status is not None and status.st_size == identity.size

    def _place_spool(self, domain: str, identity: FileIdentity, spool: Spool) -> None:
        self._placement.place(domain, identity, spool.directory, spool.name, spool.fd)
        spool.given_away()
        self.drop_partials(domain, identity.digest)

    def _store(self, domain: str, identity: FileIdentity, store: Callable[[PartialFile], bool]) -> bool:
        """Add a chunk to the partial file, to a new one if it is removed at this moment."""
        while not self._is_object(domain, identity):
            partial = self._partials.obtain(domain, identity)
            if self._is_object(domain, identity):
                # It was completed between the two looks, and `obtain` may have begun it anew.
                self.drop_partials(domain, identity.digest)
                break
            if store(partial):
                return self._stored(domain, identity, partial)
        return False

    def _stored(self, domain: str, identity: FileIdentity, partial: PartialFile) -> bool:
        """A chunk is on record, so nothing that fails from here on may fail its commit."""
        try:
            self._partials.changed(domain, partial)
            if not identity.derived:
                partial.advance_hash()
            if not partial.complete or partial.mismatch:
                return False
            if not identity.derived and partial.unhashed > FINISH_INLINE:
                return True
            self.finish(domain, identity)
        except (OSError, StoreError) as error:
            log.warning("file %s stays partial for now: %s", identity.digest.hex(), error)
        return False

    def _finish(self, domain: str, identity: FileIdentity, partial: PartialFile) -> None:
        if not partial.complete or partial.mismatch:
            return
        if not identity.derived:
            found = partial.whole_digest()
            if found is None:
                return
            if found != identity.digest:
                self._counters.add("mismatches")
                log.warning("file %s: all chunks verify, the whole has sha256 %s", identity.digest.hex(), found.hex())
                partial.record_mismatch()
                return
        with partial.borrow() as fd:
            if fd is not None:
                self._placement.place(domain, identity, self._partials.directory(domain), f"{partial.name}.data", fd)
                self.drop_partials(domain, identity.digest)
