"""The eStargz writer: a layer's tar in, a blob out that is both an ordinary gzip layer and readable piece by piece.

    [gzip member]*  [TOC member]  [footer]

A member begins where the content of a non-empty regular file begins, and at each further chunk of it; what follows the
content (padding, headers of the next entries) is in the same member. Members are compressed independently by worker
threads and written in order, so the blob does not depend on how many threads there are.

libdeflate compresses whole buffers three to four times as fast as zlib at level 9 and to slightly less; it releases the
GIL meanwhile [measured].

Source: estargz.md of the eStargz specification; RFC 1952.
"""

import hashlib
import struct
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import BinaryIO

import deflate

from snapshotter.errors import FormatError
from snapshotter.format.digest import Digest, from_raw
from snapshotter.format.plain_tar import unheard
from snapshotter.format.tar_entries import PREFETCH_LANDMARK, TOC_NAME, EntryType, TarEntry
from snapshotter.format.tar_headers import END_OF_TAR, encode_header, padding

from .options import Compression, WriterOptions
from .order import arrange
from .toc import FileRow, TocBuilder

TOC_DIGEST = "containerd.io/snapshot/stargz/toc.digest"
UNCOMPRESSED_SIZE = "io.containers.estargz.uncompressed-size"

# ID1 ID2, CM deflate, no flags, no time, no extra flags, OS unknown: 10 bytes (RFC 1952, section 2.3).
_GZIP_HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"

# Members are handed to the workers in batches of at least this many plain bytes: most files are so small that
# passing each on its own would take longer than compressing it.
_BATCH = 256 << 10


@dataclass(frozen=True, slots=True)
class WrittenLayer:
    """What an image has to say of a blob. Sizes are bytes; `prefetch_size` is 0 when nothing was prioritised.

    `annotations` is all that the layer's descriptor must say. `external_toc` is the gzip tar with the TOC, if the blob
    does not hold it.
    """

    digest: Digest
    size: int
    diff_id: Digest
    plain_size: int
    toc_digest: Digest
    entries: int
    prefetch_size: int
    compression: Compression
    annotations: Mapping[str, str]
    external_toc: bytes | None


def write_layer(
    entries: Sequence[TarEntry],
    tar: BinaryIO,
    blob: BinaryIO,
    pool: Executor,
    options: WriterOptions,
    prioritised: Sequence[str] = (),
    on_progress: Callable[[int], None] = unheard,
) -> WrittenLayer:
    """Write the layer whose `entries` were scanned from `tar` (seekable) to `blob` (appended to, never read).

    `on_progress` is told how many plain bytes went on their way since it was last called; what it raises ends the
    work. Holds about `parallelism` + 2 chunks in memory, beside the entries and the TOC.

    Raises:
        FormatError: the tar ends before an entry does.
    """
    toc = TocBuilder()
    plan = _Plan(entries=arrange(entries, prioritised), tar=tar, toc=toc, chunk_size=options.chunk_size)
    out = _Blob(blob)
    under_way: deque[tuple[list[_Member], Future[list[_Packed]]]] = deque()
    try:
        for batch in plan.batches():
            under_way.append((batch, pool.submit(_pack_all, batch, options.used_level)))
            on_progress(sum(member.plain_size for member in batch))
            if len(under_way) > options.parallelism + 1:
                out.add(*under_way.popleft())
        while under_way:
            out.add(*under_way.popleft())
    finally:
        for _, future in under_way:
            future.cancel()
    document = toc.finish()
    header = encode_header(TarEntry(TOC_NAME, EntryType.REG, 0o444, size=len(document)))
    member = _Member(b"", [header, document, padding(len(document)), END_OF_TAR])
    plan.count(member)
    toc_offset = out.size
    out.write(_pack(member, options.used_level).data)
    out.write(footer(toc_offset))
    return WrittenLayer(
        digest=from_raw(out.hash.digest()),
        size=out.size,
        diff_id=from_raw(plan.diff_id.digest()),
        plain_size=plan.plain_size,
        toc_digest=_digest(document),
        entries=len(toc),
        prefetch_size=out.landmark_offset,
        compression=Compression.GZIP,
        annotations={TOC_DIGEST: _digest(document), UNCOMPRESSED_SIZE: str(plan.plain_size)},
        external_toc=None,
    )


def footer(toc_offset: int) -> bytes:
    """Return the blob's last 51 bytes: an empty gzip member whose extra field says where the TOC member begins.

    10 header + 2 XLEN (26) + 2 "SG" + 2 length (22) + 16 offset in hex + 6 "STARGZ" + 5 empty block + 8 CRC and size.
    """
    extra = b"SG" + struct.pack("<H", 22) + b"%016xSTARGZ" % toc_offset
    return b"\x1f\x8b\x08\x04\x00\x00\x00\x00\x00\xff" + struct.pack("<H", len(extra)) + extra + _EMPTY_DEFLATE


# A final stored block of length 0, then CRC-32 and size of nothing.
_EMPTY_DEFLATE = b"\x01\x00\x00\xff\xff" + bytes(8)


@dataclass(frozen=True, slots=True)
class _Place:
    """Which row learns where a member begins; `landmark`: its file is the prefetch landmark."""

    row: FileRow
    ordinal: int
    landmark: bool


@dataclass(slots=True)
class _Member:
    """Plain bytes of one gzip member: a chunk of a file (none in the first member), then what follows it."""

    payload: bytes
    tail: list[bytes]
    place: _Place | None = None

    @property
    def plain_size(self) -> int:
        return len(self.payload) + sum(map(len, self.tail))


@dataclass(frozen=True, slots=True)
class _Packed:
    data: bytes
    payload_digest: Digest


def _digest(data: bytes) -> Digest:
    return from_raw(hashlib.sha256(data).digest())


def _pack(member: _Member, level: int) -> _Packed:
    plain = b"".join((member.payload, *member.tail))
    trailer = struct.pack("<LL", zlib.crc32(plain), len(plain) & 0xFFFFFFFF)
    data = b"".join((_GZIP_HEADER, deflate.deflate_compress(plain, level), trailer))
    return _Packed(data, _digest(member.payload))


def _pack_all(batch: list[_Member], level: int) -> list[_Packed]:
    """One worker's job."""
    return [_pack(member, level) for member in batch]


class _Plan:
    """Reads the tar in its new order and cuts it into members; hashes the plain stream on the way."""

    def __init__(self, entries: Sequence[TarEntry], tar: BinaryIO, toc: TocBuilder, chunk_size: int) -> None:
        self._entries = entries
        self._tar = tar
        self._toc = toc
        self._chunk_size = chunk_size
        self.diff_id = hashlib.sha256()
        self.plain_size = 0

    def batches(self) -> Iterator[list[_Member]]:
        """Yield the members in order, grouped so that a group is worth a worker's while."""
        batch: list[_Member] = []
        size = 0
        for member in self._members():
            self.count(member)
            batch.append(member)
            size += member.plain_size
            if size >= _BATCH:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch

    def count(self, member: _Member) -> None:
        """Take a member into the plain stream's hash and size."""
        for piece in (member.payload, *member.tail):
            self.diff_id.update(piece)
            self.plain_size += len(piece)

    def _members(self) -> Iterator[_Member]:
        member = _Member(b"", [])
        for entry in self._entries:
            member.tail.append(self._header(entry))
            row = self._toc.add(entry)
            if row is None:
                continue
            for chunk in self._chunks(entry, row):
                yield member
                member = chunk
            member.tail.append(padding(entry.size))
        yield member

    def _chunks(self, entry: TarEntry, row: FileRow) -> Iterator[_Member]:
        """Yield a member for each chunk of a file, its content read and nothing behind it yet."""
        whole = hashlib.sha256()
        landmark = entry.name == PREFETCH_LANDMARK
        for start in range(0, entry.size, self._chunk_size):
            size = min(self._chunk_size, entry.size - start)
            payload = read_content(entry, self._tar, start, size)
            whole.update(payload)
            if start + size == entry.size:
                row.set_digest(from_raw(whole.digest()))
            ordinal = row.add_chunk(start, size, whole=size == self._chunk_size)
            yield _Member(payload, [], _Place(row, ordinal, landmark))

    def _header(self, entry: TarEntry) -> bytes:
        """The entry's own header as it came, so that it unpacks to the same; a new one where that cannot be."""
        if not entry.header_size:
            return encode_header(entry)
        return _read_at(self._tar, entry.header_offset, entry.header_size, entry.name)


class _Blob:
    """The blob as far as it is written."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self.size = 0
        self.hash = hashlib.sha256()
        self.landmark_offset = 0

    def add(self, batch: list[_Member], future: "Future[list[_Packed]]") -> None:
        """Wait for a batch, write it and tell the TOC where its chunks are."""
        for member, packed in zip(batch, future.result(), strict=True):
            if member.place is not None:
                member.place.row.place_chunk(member.place.ordinal, self.size, packed.payload_digest)
                if member.place.landmark:
                    self.landmark_offset = self.size
            self.write(packed.data)

    def write(self, data: bytes) -> None:
        self._out.write(data)
        self.hash.update(data)
        self.size += len(data)


def read_content(entry: TarEntry, tar: BinaryIO, start: int, size: int) -> bytes:
    """Return `size` bytes of a regular file from `start`, its holes filled with zeros.

    Raises:
        FormatError: the tar ends before.
    """
    if entry.content is not None:
        return entry.content[start : start + size]
    end = start + size
    pieces: list[bytes] = []
    at = start
    for extent in entry.extents:
        low, high = max(at, extent.file_offset), min(end, extent.file_offset + extent.size)
        if low < high:
            pieces.append(bytes(low - at))
            tar_offset = extent.tar_offset + low - extent.file_offset
            pieces.append(_read_at(tar, tar_offset, high - low, entry.name))
            at = high
    pieces.append(bytes(end - at))
    return b"".join(pieces) if len(pieces) > 1 else pieces[0]


def _read_at(tar: BinaryIO, offset: int, size: int, name: str) -> bytes:
    tar.seek(offset)
    data = tar.read(size)
    if len(data) != size:
        raise FormatError(f"the layer's tar ends within {name!r}")
    return data
