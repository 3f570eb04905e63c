"""Chunks of regular files while a TOC is read: coverage, positions, digests; then their members.

Rows are packed as they come: 60 bytes each instead of several hundred as objects.
"""

import hashlib
import struct
from array import array
from bisect import bisect_right
from collections.abc import Sequence

from snapshotter.errors import FormatError

from .attributes import check_digest
from .codec import Codec
from .digest import RAW_SIZE, raw
from .layout import MEMBER, NO_DIGEST, WORD, ZEROS, BuildOptions
from .limits import CHUNK_SIZE, FILE_SIZE, INFLATE_GZIP, INFLATE_SLACK, INFLATE_ZSTD, INNER_OFFSET
from .toc import Entry

DRAFT = struct.Struct("<QIQQ32s")
"""file offset 8, size 4, blob offset 8 (NOWHERE: zeros), inner offset 8, sha256 32 = 60"""

NOWHERE = (1 << 64) - 1

_SOME_ZEROS = memoryview(bytes(1 << 20))
_INNER_BITS = 34
"""Bits that an inner offset within its limit needs, with room."""

_DERIVED = b"no file digest"
"""Personalisation of the hash behind derived names (BLAKE2b: at most 16 bytes). Another hash than sha256, so that no
file's content can have such a name as its digest."""


class ChunkTable:
    """The chunks of all files; one file at a time is open."""

    __slots__ = ("_bounds", "_end", "_first", "_name", "_options", "_size", "_whole", "count", "rows", "verified")

    def __init__(self, options: BuildOptions) -> None:
        self._options = options
        self._bounds: list[int] = []
        self._name: str | None = None
        self._size = self._end = self._first = 0
        self._whole = b""
        self.rows = bytearray()
        self.count = 0
        self.verified = True

    def begin(self, entry: Entry) -> int:
        """Open the file that a `reg` entry describes and return the row of its first chunk.

        Raises:
            FormatError: a size, position or digest that cannot be.
        """
        size = entry.size
        if not 0 <= size <= FILE_SIZE:
            raise FormatError(f"{entry.name[:100]!r} has a size of {size} bytes; the limit is {FILE_SIZE}")
        self._name = entry.name
        self._size, self._end, self._first = size, 0, self.count
        if size:
            self._whole = check_digest(entry.digest, entry.name) if entry.digest else b""
            self._add(entry)
        return self._first

    def more(self, entry: Entry) -> None:
        """Add a `chunk` entry to the open file.

        Raises:
            FormatError: no file is open, or the chunk is not the file's next one.
        """
        if self._name is None or (entry.name and entry.name != self._name):
            raise FormatError(f"the TOC has a chunk of {entry.name[:100]!r} that does not follow its file")
        self._add(entry)

    def _add(self, entry: Entry) -> None:
        offset, size = entry.chunk_offset, entry.chunk_size
        if offset != self._end:
            found = "overlap" if offset < self._end else "leave a gap"
            raise FormatError(f"the chunks of {self._name!r:.100} {found} at byte {self._end}")
        size = size or self._size - offset
        if not 0 < size <= self._size - offset:
            raise FormatError(f"a chunk of {self._name!r:.100} has {size} bytes at {offset}, the file {self._size}")
        if size > CHUNK_SIZE:
            raise FormatError(f"a chunk of {self._name!r:.100} has {size} bytes; the limit is {CHUNK_SIZE}")
        self._end = offset + size
        digest = check_digest(entry.chunk_digest, entry.name) if entry.chunk_digest else self._digest_of(size)
        self.rows += DRAFT.pack(offset, size, *self._position(entry), digest)
        self.count += 1
        if digest == NO_DIGEST and entry.chunk_type != "zeros":
            self.verified = False

    def _digest_of(self, size: int) -> bytes:
        """The whole file's digest, for a chunk that is the whole file."""
        return self._whole if self._whole and size == self._size else NO_DIGEST

    def _position(self, entry: Entry) -> tuple[int, int]:
        """Return blob offset and inner offset; member ends that the entry knows are remembered."""
        offset, inner, end = entry.offset, entry.inner_offset, entry.end_offset
        limit = self._options.payload_end
        if entry.chunk_type == "zeros":
            self._bounds.append(offset)
            return NOWHERE, 0
        if entry.chunk_type:
            raise FormatError(f"{self._name!r:.100} has a chunk of the unknown type {entry.chunk_type[:100]!r}")
        if not 0 <= offset < limit:
            raise FormatError(f"a chunk of {self._name!r:.100} lies at byte {offset} of a blob with {limit}")
        if not 0 <= inner <= INNER_OFFSET:
            raise FormatError(f"a chunk of {self._name!r:.100} lies {inner} bytes deep in its member")
        if end:
            if not offset < end <= limit:
                raise FormatError(f"{self._name!r:.100} lies in the blob from byte {offset} to {end}")
            self._bounds.append(end)
        return offset, inner

    def finish(self, path: bytes) -> tuple[int, bytes, bool]:
        """Close the open file, called `path`; return its number of chunks, its digest, and whether that is derived.

        Raises:
            FormatError: bytes are missing, digests contradict each other, or there are none.
        """
        if self._end != self._size:
            raise FormatError(f"the chunks of {self._name!r:.100} end at byte {self._end} of {self._size}")
        count = self.count - self._first
        self._name = None
        if not count:
            return 0, NO_DIGEST, False
        if count == 1:
            only: bytes = DRAFT.unpack_from(self.rows, self._first * DRAFT.size)[4]
            if self._whole and only != self._whole:
                raise FormatError(f"the file {path!r:.100} has one chunk, but its digest and the chunk's differ")
            if only != NO_DIGEST:
                return 1, only, False
        if not self.verified and not self._options.allow_unverified:
            raise FormatError(
                f"the TOC has no digest for a chunk of {path!r:.100}, so that its content cannot be verified "
                "(legacy stargz); convert the image to eStargz, or pull it whole"
            )
        if self._whole:
            return count, self._whole, False
        seed = raw(self._options.layer_digest) + path
        name = hashlib.blake2b(seed, digest_size=RAW_SIZE, person=_DERIVED).digest()
        return count, name, True

    def settle_zeros(self) -> None:
        """Compare what the TOC says of chunks of zeros with what zeros have, and give a digest to those without one.

        Nothing is fetched for such a chunk, so nobody would notice later; and a chunk that differs from another image's
        in nothing but this word would have its zeros taken for that one's bytes.

        Raises:
            FormatError: a digest that zeros do not have.
        """
        drafts = [
            (row, size, digest)
            for row, (_, size, at, _, digest) in enumerate(DRAFT.iter_unpack(self.rows))
            if at == NOWHERE
        ]
        known = _digests_of_zeros({size for _, size, _ in drafts})
        for row, size, digest in drafts:
            if digest not in (NO_DIGEST, known[size]):
                raise FormatError(f"the TOC says of a chunk that it is {size} zeros, and gives it another digest")
            at = (row + 1) * DRAFT.size - RAW_SIZE
            self.rows[at : at + RAW_SIZE] = known[size]

    def members(self, visible: Sequence[int]) -> "Members":
        """Lay out the members; `visible[row]` is the final number of a chunk, or -1 for one that nobody can see.

        Raises:
            FormatError: chunks overlap in a member, or claim more than its bytes can unfold to.
        """
        return Members(self.rows, visible, self._bounds, self._options)


def _digests_of_zeros(sizes: set[int]) -> dict[int, bytes]:
    """The sha256 of so many zeros, for each size: one pass up to the largest, however many there are."""
    hasher, done = hashlib.sha256(), 0
    found = {}
    for size in sorted(sizes):
        while done < size:
            step = min(len(_SOME_ZEROS), size - done)
            hasher.update(_SOME_ZEROS[:step])
            done += step
        found[size] = hasher.copy().digest()
    return found


class Members:
    """Members by blob offset: their packed table, the order of chunks in them, and each final chunk's member."""

    __slots__ = ("_ratio", "count", "of_chunk", "order", "table")

    def __init__(self, rows: bytearray, visible: Sequence[int], bounds: list[int], options: BuildOptions) -> None:
        self.table = bytearray()
        self.order = bytearray()
        self.count = 0
        self.of_chunk = array("i", [ZEROS]) * (len(rows) // DRAFT.size)
        self._ratio = INFLATE_GZIP if options.codec is Codec.GZIP else INFLATE_ZSTD
        keys = [
            NOWHERE << _INNER_BITS if at == NOWHERE else at << _INNER_BITS | inner
            for _, _, at, inner, _ in DRAFT.iter_unpack(rows)
        ]
        sorted_rows = sorted(range(len(keys)), key=keys.__getitem__)
        self._walk(rows, sorted_rows, visible, sorted({*bounds, options.payload_end}))

    def _walk(self, rows: bytearray, sorted_rows: list[int], visible: Sequence[int], bounds: list[int]) -> None:
        start, deep, last = -1, 0, (0, 0)
        inside: list[int] = []
        for row in sorted_rows:
            _, size, at, inner, _ = DRAFT.unpack_from(rows, row * DRAFT.size)
            if at == NOWHERE:
                break
            if at != start:
                self._close(start, min(at, bounds[bisect_right(bounds, start)]), deep, inside)
                start, deep, last, inside = at, 0, (0, 0), []
            if inner < deep and (inner, size) != last:
                raise FormatError(f"chunks overlap {inner} bytes deep in the member at byte {start} of the blob")
            deep, last = inner + size, (inner, size)
            if visible[row] >= 0:
                inside.append(visible[row])
        if inside:
            self._close(start, bounds[bisect_right(bounds, start)], deep, inside)

    def _close(self, start: int, end: int, deep: int, inside: list[int]) -> None:
        if not inside:
            return
        if deep > (end - start) * self._ratio + INFLATE_SLACK:
            raise FormatError(f"{end - start} bytes at {start} of the blob cannot unfold to the {deep} bytes claimed")
        self.table += MEMBER.pack(start, end, len(self.order) // WORD.size, len(inside))
        for chunk in inside:
            self.order += WORD.pack(chunk)
            self.of_chunk[chunk] = self.count
        self.count += 1
