"""A large file that is on its way: a sparse data file whose recorded chunks are verified and readable."""

import errno
import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress

from snapshotter.errors import FormatError
from snapshotter.store.disk import BLOCK, hash_range, write_all, zero_range
from snapshotter.store.identity import FileIdentity, encode_identity, partial_name
from snapshotter.store.partial_files import (
    CREATE_FLAGS,
    OPEN_FLAGS,
    read_map,
    remove_files,
    write_map,
    write_pieces,
)
from snapshotter.store.partial_map import MapState, Record, header, parse_map, record

MapMark = tuple[int, int]
"""(how often the map file was written anew, its bytes)"""

# How much already present data one commit may hash to keep the running whole-file hash going.
CATCH_UP = 16 << 20


class PartialFile:
    """The chunks of one file of two or more chunks that are here; shared by all who read or fill it.

    Keep the instance while the file is in use: finding it again costs a hash over the whole chunk list. It holds no
    descriptor of its own for long; `read` opens the file when needed, and the store closes the idle ones.
    """

    def __init__(self, directory: int, name: str, identity: FileIdentity, boot: int, state: MapState) -> None:
        self.identity = identity
        self.name = name
        # Told each time the descriptor was opened, so that the store can bound how many are.
        self.on_open: Callable[[PartialFile], None] | None = None
        self._directory = directory
        self._boot = boot
        self._lock = threading.Lock()  # guards everything below but the hash
        self._state = state
        self._rewrites = 0
        self._left = len(state.present) - sum(state.present)
        self._fd = -1
        self._users = 0
        self._gone = False
        self._close_when_idle = False
        self.finish_lock = threading.Lock()  # one whole-file check at a time
        self._hash_lock = threading.Lock()  # guards the two below; taken before _lock
        self._hash = hashlib.sha256()
        self._hashed = 0  # chunks that _hash has seen

    @classmethod
    def create(cls, directory: int, identity: FileIdentity, boot: int) -> "PartialFile":
        """Make the two files, empty.

        Raises:
            OSError: the disk refused; nothing is left behind.
        """
        encoded = encode_identity(identity)
        name = partial_name(encoded)
        try:
            fd = os.open(f"{name}.data", CREATE_FLAGS, 0o600, dir_fd=directory)
            try:
                os.ftruncate(fd, identity.size)
            finally:
                os.close(fd)
            write_map(directory, f"{name}.map", header(encoded))
        except OSError:
            remove_files(directory, name)
            raise
        state = parse_map(header(encoded), name, boot)
        return cls(directory, name, identity, boot, state)

    @classmethod
    def load(cls, directory: int, name: str, boot: int) -> "PartialFile":
        """Open what an earlier daemon left. Chunks that a power loss may have harmed are checked now, once.

        Raises:
            FormatError: the files are not a partial file.
            OSError: the disk refused.
        """
        state = parse_map(read_map(directory, f"{name}.map"), name, boot)
        partial = cls(directory, name, state.identity, boot, state)
        with partial.borrow() as fd:
            if fd is None or os.fstat(fd).st_size != state.identity.size:
                raise FormatError(f"partial file {name}: data file missing or of another size")
            if state.doubtful:
                partial._recheck(fd, state.doubtful)
        return partial

    def present(self, ordinal: int) -> bool:
        """Whether `read` can serve the chunk. No I/O."""
        return not self._gone and self._state.present[ordinal] == 1

    def missing(self) -> list[int]:
        """The chunks that are not here, in order. No I/O."""
        present = self._state.present
        return [ordinal for ordinal in range(len(present)) if not present[ordinal]]

    @property
    def complete(self) -> bool:
        """All chunks are here; `ObjectStore.finish` makes it an object unless `mismatch` says why not."""
        return self._left == 0 and not self._gone

    @property
    def mismatch(self) -> bool:
        """All chunks are good and the whole does not have the file's digest: it stays a partial file for ever."""
        return self._state.mismatch

    @property
    def gone(self) -> bool:
        """It became an object or was removed; look in the store again."""
        return self._gone

    @property
    def busy(self) -> bool:
        """Somebody is reading or writing at this moment."""
        return self._users > 0

    @property
    def unhashed(self) -> int:
        """Bytes that the whole-file check still has to read."""
        done = self._hashed
        return self.identity.size - self.identity.chunks[done][0] if done < len(self.identity.chunks) else 0

    def read(self, ordinal: int, file_offset: int, length: int) -> bytes | None:
        """`length` bytes at `file_offset`, which lie in chunk `ordinal`; None if the chunk is not here (any more).

        After None ask the store for the object first (the file may have become one), then fetch. A disk that cannot
        read is None as well: the chunk is dropped and the network serves.
        """
        try:
            with self.borrow() as fd:
                if fd is None or not self._state.present[ordinal]:
                    return None
                data = os.pread(fd, length, file_offset)
            if len(data) == length:
                return data
        except OSError as error:
            if error.errno != errno.EIO:
                return None
        # Should the map not be written either, the next start finds the chunk bad again.
        with suppress(OSError):
            self.forget([ordinal])
        return None

    @contextmanager
    def borrow(self) -> Iterator[int | None]:
        """The data file's descriptor for the length of the with block; None when the file is gone."""
        opened = False
        with self._lock:
            if self._fd < 0 and not self._gone:
                try:
                    self._fd = os.open(f"{self.name}.data", OPEN_FLAGS, dir_fd=self._directory)
                    opened = True
                except FileNotFoundError:
                    self._gone = True
            fd = None if self._gone else self._fd
            self._users += 1
        try:
            if opened and self.on_open is not None:
                self.on_open(self)
            yield fd
        finally:
            with self._lock:
                self._users -= 1
                if self._users == 0 and (self._gone or self._close_when_idle):
                    self._close()

    def store(self, ordinal: int, pieces: Iterable[bytes]) -> bool:
        """Write a verified chunk and record it; False if the file is gone. Twice the same chunk is harmless.

        Raises:
            OSError: the disk refused; the chunk is not on record then.
        """
        with self.borrow() as fd:
            if fd is None:
                return False
            offset, _, digest = self.identity.chunks[ordinal]
            if digest:
                if not self._state.present[ordinal]:
                    write_pieces(fd, pieces, offset)
                return self._record(ordinal)
            # Without a digest two writers may bring different bytes: the first one's stay.
            with self._lock:
                if not self._gone and not self._state.present[ordinal]:
                    write_pieces(fd, pieces, offset)
                    self._append(Record.PRESENT, ordinal)
                    self._mark(ordinal)
                return not self._gone

    def store_zeros(self, ordinal: int) -> bool:
        """Record a chunk of zeros as a hole; False if the file is gone.

        Raises:
            OSError: the disk refused.
        """
        with self.borrow() as fd:
            if fd is None:
                return False
            offset, size, _ = self.identity.chunks[ordinal]
            if not self._state.present[ordinal]:
                zero_range(fd, offset, size)
            return self._record(ordinal)

    def advance_hash(self, limit: int = CATCH_UP) -> None:
        """Let the running hash take what follows it and is present, at most about `limit` bytes.

        Chunks that were just written come from the page cache, so that a file filled in order is not read again at
        its end.

        Raises:
            OSError: the disk refused.
        """
        chunks = self.identity.chunks
        with self._hash_lock, self.borrow() as fd:
            while fd is not None and limit > 0 and self._hashed < len(chunks) and self._state.present[self._hashed]:
                offset, size, _ = chunks[self._hashed]
                if hash_range(fd, offset, size, self._hash) is None:
                    self._hash, self._hashed = hashlib.sha256(), 0
                    return
                self._hashed += 1
                limit -= size

    def whole_digest(self) -> bytes | None:
        """sha256 of the whole file; None unless every chunk is here and the disk gives all of them back.

        Raises:
            OSError: the disk refused.
        """
        self.advance_hash(self.identity.size + 1)
        with self._hash_lock:
            return self._hash.digest() if self._hashed == len(self.identity.chunks) else None

    def record_mismatch(self) -> None:
        """Remember over restarts that the whole-file check failed.

        Raises:
            OSError: the disk refused.
        """
        with self._lock:
            if not self._gone:
                self._append(Record.MISMATCH, 0)
            self._state.mismatch = True

    def record_synced(self, mark: MapMark) -> None:
        """A syncfs began after the map file had reached `mark` and has ended: what was recorded up to there is safe.

        Raises:
            OSError: the disk refused.
        """
        rewrites, end = mark
        with self._lock:
            # In a map that was written anew meanwhile, the position may be behind a chunk that came after the syncfs.
            if self._gone or not self._state.unsynced or rewrites != self._rewrites:
                return
            newer = self._state.end > end
            self._append(Record.SYNCED, end)
            self._state.unsynced = newer

    @property
    def map_mark(self) -> MapMark:
        """How far the map file has come; see `record_synced`. Takes no lock."""
        # No lock, which may be held while the disk is written: `_rewrites` changes last, and is read first.
        return self._rewrites, self._state.end

    @property
    def unsynced(self) -> bool:
        """Chunks are on record that no syncfs covered yet."""
        return self._state.unsynced and not self._gone

    def forget(self, ordinals: Iterable[int]) -> None:
        """Chunks turned out to be bad: they are missing from now on, here and after a restart.

        Raises:
            OSError: the disk refused.
        """
        with self._hash_lock, self._lock:
            for ordinal in ordinals:
                self._state.present[ordinal] = 0
            self._hash, self._hashed = hashlib.sha256(), 0
            self._left = self._state.present.count(0)
            self._state.mismatch = False
            if not self._gone:
                self._rewrite()

    def check(self, ordinals: Iterable[int]) -> list[int]:
        """Which of these chunks do not have their digest on disk; those without a digest pass if they can be read."""
        with self.borrow() as fd:
            return [] if fd is None else self._bad(fd, ordinals)

    def disk_bytes(self) -> int:
        """Bytes on disk of data and map; 0 when the file is gone. Opens nothing and takes no lock."""
        try:
            status = os.stat(f"{self.name}.data", dir_fd=self._directory, follow_symlinks=False)
        except FileNotFoundError:
            return 0
        return status.st_blocks * 512 + -(-self._state.end // BLOCK) * BLOCK

    def retire(self) -> None:
        """The files are renamed or removed: nobody finds chunks here any more; readers at work end in peace."""
        with self._lock:
            self._gone = True
            if self._users == 0:
                self._close()

    def close_idle(self) -> None:
        """Close the descriptor now, or with its last user; the next one opens it again."""
        with self._lock:
            self._close_when_idle = True
            if self._users == 0:
                self._close()

    def _close(self) -> None:
        self._close_when_idle = False
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _bad(self, fd: int, ordinals: Iterable[int]) -> list[int]:
        bad = []
        for ordinal in ordinals:
            offset, size, digest = self.identity.chunks[ordinal]
            try:
                found = hash_range(fd, offset, size)
            except OSError:
                found = None
            if found is None or (digest and found != digest):
                bad.append(ordinal)
        return bad

    def _recheck(self, fd: int, doubtful: list[int]) -> None:
        """Drop the doubtful chunks that do not have their digest; one without a digest cannot be checked and goes."""
        checkable = [ordinal for ordinal in doubtful if self.identity.chunks[ordinal][2]]
        bad = set(self._bad(fd, checkable)) | (set(doubtful) - set(checkable))
        self.forget(bad)

    def _record(self, ordinal: int) -> bool:
        with self._lock:
            if not self._gone and not self._state.present[ordinal]:
                self._append(Record.PRESENT, ordinal)
                self._mark(ordinal)
            return not self._gone

    def _mark(self, ordinal: int) -> None:
        self._state.present[ordinal] = 1
        self._state.unsynced = True
        self._left -= 1

    def _append(self, kind: Record, value: int) -> None:
        """Write at a position that is kept here, not with O_APPEND: a record torn by a full disk is written over."""
        records = b""
        end = self._state.end
        if self._state.session != self._boot:
            records = record(Record.SESSION, self._boot, end)
        records += record(kind, value, end + len(records))
        fd = os.open(f"{self.name}.map", OPEN_FLAGS, dir_fd=self._directory)
        try:
            write_all(fd, records, end)
        finally:
            os.close(fd)
        self._state.end += len(records)
        self._state.session = self._boot

    def _rewrite(self) -> None:
        """The map file anew, with what is present now and all of it unsynced."""
        data = bytearray(header(encode_identity(self.identity)))
        data += record(Record.SESSION, self._boot, len(data))
        for ordinal, present in enumerate(self._state.present):
            if present:
                data += record(Record.PRESENT, ordinal, len(data))
        write_map(self._directory, f"{self.name}.map", bytes(data))
        self._state.end = len(data)
        self._state.session = self._boot
        self._state.unsynced = True
        self._rewrites += 1
