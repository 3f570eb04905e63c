"""How a layer is cut: its tar in the new order, as the plain bytes of one member after the other.

A member begins where the content of a non-empty regular file begins, and at each further chunk of it; what follows the
content (padding, headers of the next entries) is in the same member. With a least size of members, small files go on in
the member before. Where a cut falls depends on plain sizes alone, never on how well something was compressed or by how
many threads.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from snapshotter.format.digest import Digest, from_raw
from snapshotter.format.tar_entries import NO_PREFETCH_LANDMARK, PREFETCH_LANDMARK, TarEntry
from snapshotter.format.tar_headers import encode_header, padding

from .content import read_content, read_header
from .options import WriterOptions
from .tar_split import TarSplit, is_plain_header
from .toc import FileRow, TocBuilder

_LANDMARKS = (PREFETCH_LANDMARK, NO_PREFETCH_LANDMARK)

# Members are handed to the workers in batches of at least this many plain bytes: most files are so small that
# passing each on its own would take longer than compressing it.
_BATCH = 256 << 10

# Behind so many bytes of headers a member ends: a layer may have any number of entries without content in a row.
_HEADERS = 1 << 20


@dataclass(frozen=True, slots=True)
class Place:
    """Where a chunk lies in its member's plain bytes, and which row is to learn where that is in the blob."""

    row: FileRow
    ordinal: int
    inner_offset: int
    size: int
    landmark: bool


@dataclass(frozen=True, slots=True)
class Member:
    """The plain bytes of one member and the chunks in them: none, one, or several that share it."""

    plain: bytes
    places: tuple[Place, ...]


class Plan:
    """Reads the tar in its new order and cuts it into members; hashes the plain stream on the way."""

    def __init__(
        self,
        entries: Sequence[TarEntry],
        tar: BinaryIO,
        toc: TocBuilder,
        options: WriterOptions,
        split: TarSplit | None,
    ) -> None:
        """`split` is told of the whole stream, the end of the archive excepted; headers are then such as it can tell."""
        self._entries = entries
        self._tar = tar
        self._toc = toc
        self._chunk_size = options.chunk_size
        self._least = options.min_chunk_size
        self._split = split
        self._diff_id = hashlib.sha256()
        self._pieces: list[bytes] = []
        self._places: list[Place] = []
        self._size = 0
        self._content_end = 0
        self.plain_size = 0

    @property
    def diff_id(self) -> Digest:
        """The sha256 of the plain stream so far."""
        return from_raw(self._diff_id.digest())

    def count(self, plain: bytes | bytearray) -> None:
        """Take bytes into the plain stream's hash and size."""
        self._diff_id.update(plain)
        self.plain_size += len(plain)

    def batches(self, end: bytes) -> Iterator[list[Member]]:
        """Yield the members in order, `end` behind the last entry, grouped so that a group is worth a worker's while.

        Raises:
            FormatError: the tar ends before an entry does.
        """
        batch: list[Member] = []
        size = 0
        for member in self._members(end):
            self.count(member.plain)
            batch.append(member)
            size += len(member.plain)
            if size >= _BATCH:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch

    def _members(self, end: bytes) -> Iterator[Member]:
        for entry in self._entries:
            if self._size - self._content_end >= _HEADERS:
                yield self._cut()
            self._header(entry)
            row = self._toc.add(entry)
            if row is None:
                continue
            whole = hashlib.sha256() if entry.size > self._chunk_size else None
            for start in range(0, entry.size, self._chunk_size):
                size = min(self._chunk_size, entry.size - start)
                if self._size and self._begins_member(entry, size):
                    yield self._cut()
                payload = read_content(entry, self._tar, start, size)
                if whole is not None:
                    whole.update(payload)
                    if start + size == entry.size:
                        row.set_digest(from_raw(whole.digest()))
                self._chunk(entry, row, start, payload)
            self._padding(entry)
        self._pieces.append(end)
        yield self._cut()

    def _begins_member(self, entry: TarEntry, size: int) -> bool:
        """Whether a chunk of so many bytes begins a new member.

        A large one does, too, if members have a least size: whoever reads a small file must not fetch it along.
        """
        return entry.name in _LANDMARKS or size >= self._least or self._size >= self._least

    def _cut(self) -> Member:
        member = Member(b"".join(self._pieces), tuple(self._places))
        self._pieces, self._places = [], []
        self._size = self._content_end = 0
        return member

    def _add(self, piece: bytes) -> None:
        self._pieces.append(piece)
        self._size += len(piece)

    def _header(self, entry: TarEntry) -> None:
        """The entry's own header as it came, so that it unpacks to the same; a new one where that cannot be."""
        header = read_header(entry, self._tar) if entry.header_size else b""
        if not header or (self._split is not None and not is_plain_header(header, entry)):
            header = encode_header(entry)
        if self._split is not None:
            self._split.header(entry, header)
        self._add(header)

    def _chunk(self, entry: TarEntry, row: FileRow, start: int, payload: bytes) -> None:
        ordinal = row.add_chunk(start, len(payload))
        landmark = entry.name == PREFETCH_LANDMARK
        self._places.append(Place(row, ordinal, self._size, len(payload), landmark))
        self._add(payload)
        self._content_end = self._size
        if self._split is not None:
            self._split.content(payload)

    def _padding(self, entry: TarEntry) -> None:
        zeros = padding(entry.size)
        if self._split is not None:
            self._split.end_of_content(zeros)
        self._add(zeros)
