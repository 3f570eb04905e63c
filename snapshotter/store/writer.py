"""From fetched bytes to verified content: collect, check length and digest, and only then let the store have it."""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from snapshotter.errors import FormatError, IntegrityError, StoreError
from snapshotter.store.disk import READ_SIZE, as_store_error, write_all
from snapshotter.store.health import DiskHealth
from snapshotter.store.identity import FileIdentity

# Memory that a chunk may take before it is written aside: the usual chunk of a large file fits, and goes to its place
# in one piece when it is verified, so that unverified bytes never lie in a file that others read.
MEMORY_LIMIT = 4 << 20
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(slots=True)
class Spool:
    """Bytes of one chunk: in memory while they are few, else in a temporary file of `directory`."""

    directory: int
    name: str
    pieces: list[bytes]
    length: int = 0
    fd: int = -1

    def append(self, data: bytes, limit: int) -> None:
        """Take the next bytes; with more than `limit` in all they go to the file.

        Raises:
            OSError: the disk refused.
        """
        if self.fd < 0 and self.length + len(data) > limit:
            self.to_file()
        if self.fd >= 0:
            write_all(self.fd, data, self.length)
        else:
            self.pieces.append(data)
        self.length += len(data)

    def to_file(self) -> None:
        """Have everything in the file, created with the mode that an object has.

        Raises:
            OSError: the disk refused.
        """
        if self.fd >= 0:
            return
        self.fd = os.open(self.name, _FLAGS, 0o400, dir_fd=self.directory)
        offset = 0
        for piece in self.pieces:
            write_all(self.fd, piece, offset)
            offset += len(piece)
        self.pieces = []

    def __iter__(self) -> Iterator[bytes]:
        """The bytes in pieces, from the beginning."""
        if self.fd < 0:
            yield from self.pieces
            return
        offset = 0
        while offset < self.length:
            data = os.pread(self.fd, READ_SIZE, offset)
            if not data:
                raise FormatError(f"temporary file {self.name} lost its end")
            yield data
            offset += len(data)

    def given_away(self) -> None:
        """The file got another name, or none: it is no longer this spool's to remove."""
        os.close(self.fd)
        self.fd = -1

    def discard(self) -> None:
        """Throw everything away."""
        self.pieces = []
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
            # A disk that refuses even this keeps the file until the next start.
            with suppress(OSError):
                os.unlink(self.name, dir_fd=self.directory)


class ChunkWriter:
    """Takes the bytes of one chunk, in order; nothing is visible before `commit` returns.

    Two writers of one chunk do not disturb each other. As a context manager it aborts unless it was committed.
    Blocking; of one thread at a time.
    """

    def __init__(
        self,
        identity: FileIdentity,
        ordinal: int,
        spool: Spool,
        accept: Callable[[FileIdentity, int, Spool], bool],
        health: DiskHealth,
    ) -> None:
        """`accept` gets verified bytes: of a chunk, or of the whole file where the file is one chunk.

        `health` hears what the disk refused, and what it took.
        """
        self._identity = identity
        self._ordinal = ordinal
        self._size = identity.chunks[ordinal][1]
        self._spool = spool
        self._accept = accept
        self._health = health
        self._hash = hashlib.sha256()
        self._done = False

    def write(self, data: bytes | memoryview) -> None:
        """Take the next bytes. After an error the writer is aborted.

        Raises:
            FormatError: more bytes than the chunk has.
            StoreFull: no room on the disk.
            StoreError: the disk refused, or the writer is at its end already.
        """
        if self._done:
            raise FormatError(f"{self._what()}: written after its end")
        if self._spool.length + len(data) > self._size:
            self.abort()
            raise FormatError(f"{self._what()}: the blob holds more than the {self._size} bytes that the TOC says")
        try:
            self._hash.update(data)
            self._spool.append(bytes(data), MEMORY_LIMIT)
        except OSError as error:
            self.abort()
            raise self._refused(error, "write") from error

    def commit(self) -> bool:
        """Verify the chunk and make it readable.

        Returns True when this completed a large file whose whole-file check has much to read: call
        `ObjectStore.finish` from a worker thread then; who waited for the chunk need not wait for that.

        Raises:
            FormatError: fewer bytes than the chunk has.
            IntegrityError: the bytes do not have the chunk's or the file's digest.
            StoreFull: no room on the disk.
            StoreError: the disk refused.
        """
        if self._done:
            raise FormatError(f"{self._what()}: committed after its end")
        try:
            self._verify()
            left_to_do = self._accept(self._identity, self._ordinal, self._spool)
        except OSError as error:
            raise self._refused(error, "store") from error
        finally:
            self.abort()
        self._health.worked(self._size)
        return left_to_do

    def abort(self) -> None:
        """Throw the bytes away; harmless after the end."""
        self._done = True
        self._spool.discard()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()

    def _verify(self) -> None:
        if self._spool.length != self._size:
            raise FormatError(
                f"{self._what()}: the blob holds {self._spool.length} bytes where the TOC says {self._size}"
            )
        identity, found = self._identity, self._hash.digest()
        expected = identity.chunks[self._ordinal][2]
        if expected and found != expected:
            raise IntegrityError(f"{self._what()}: sha256 is {found.hex()}, the TOC says {expected.hex()}")
        if len(identity.chunks) == 1 and not identity.derived and found != identity.digest:
            raise IntegrityError(f"{self._what()}: sha256 of the whole is {found.hex()}, not the file's digest")

    def _refused(self, error: OSError, what: str) -> StoreError:
        made = as_store_error(error, f"{what} {self._what()}")
        made.__cause__ = error
        self._health.refused(made, self._size)
        return made

    def _what(self) -> str:
        kind = "unverified file" if self._identity.derived else "file"
        return f"chunk {self._ordinal} of {kind} {self._identity.digest.hex()}"
