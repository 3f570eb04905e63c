"""The index of a layer's TOC: fixed-width tables read through a memory map.

No entry of the TOC becomes a Python object that stays: 100 layers of 100 000 entries cost the daemon page cache only.
`layout` describes the file, `index_build` writes it.
"""

from collections.abc import Iterator, Mapping
from types import MappingProxyType

from . import layout
from .index_file import IndexFile
from .layout import (
    ATTRIBUTES,
    CHUNK,
    DIGEST,
    DIRENT,
    EXTENT,
    EXTENT_AT,
    INDEX_REVISION,
    KINDS,
    MEMBER,
    NO_DIGEST,
    NODE,
    NODES_REVISION,
    NONE,
    WORD,
    XATTR,
    Attributes,
    BuildOptions,
    Chunk,
    FileIdentity,
    Kind,
    Member,
    NodeRow,
)

__all__ = [
    "INDEX_REVISION",
    "NODES_REVISION",
    "Attributes",
    "BuildOptions",
    "Chunk",
    "FileIdentity",
    "Index",
    "Kind",
    "Member",
]

_NO_XATTRS: Mapping[bytes, bytes] = MappingProxyType({})
_NODE_SIZE = NODE.size
_DIRENT_SIZE = DIRENT.size
_CHUNK_SIZE = CHUNK.size
# Rows that a pass over a table takes from the map at once: a third of the time of one by one.
_ROWS_AT_ONCE = 1024


class Index(IndexFile):
    """One layer's tree, chunks and members. Reading is safe from any thread.

    A node is a number from 0, the root, to `node_count` - 1, and is the same in every index built from the same TOC.
    Node arguments must come from this index; others are an IndexError.
    """

    __slots__ = ()

    @property
    def inode_count(self) -> int:
        """Inodes that an unpacked layer takes: every node once, the root too."""
        return self.node_count

    def _at(self, node: int) -> int:
        if 0 <= node < self.node_count:
            return self._nodes + node * _NODE_SIZE
        raise IndexError(f"node {node} of an index with {self.node_count} nodes")

    # --- tree

    def lookup(self, parent: int, name: bytes) -> int | None:
        """Return the child of directory `parent` called `name`, or None."""
        buffer, dirents, names = self._buffer, self._dirents, self._names
        low, count = self._dirent_rows(parent)
        high = low + count
        while low < high:
            middle = (low + high) >> 1
            at, length, node = DIRENT.unpack_from(buffer, dirents + middle * _DIRENT_SIZE)
            at += names
            found = buffer[at : at + length]
            if found == name:
                hit: int = node
                return hit
            if found < name:
                low = middle + 1
            else:
                high = middle
        return None

    def entries(self, directory: int, start: int) -> Iterator[tuple[int, bytes, int]]:
        """Yield (position + 1, name, node) of a directory's children from position `start` on, sorted by name bytes."""
        buffer, dirents, names = self._buffer, self._dirents, self._names
        first, count = self._dirent_rows(directory)
        for position in range(start, count):
            at, length, node = DIRENT.unpack_from(buffer, dirents + (first + position) * _DIRENT_SIZE)
            at += names
            yield position + 1, buffer[at : at + length], node

    def _dirent_rows(self, node: int) -> tuple[int, int]:
        at = self._at(node)
        if self._buffer[at] != Kind.DIR:
            return 0, 0
        first, count = EXTENT.unpack_from(self._buffer, at + EXTENT_AT)
        return first, count

    def parent(self, node: int) -> int:
        """Return the directory that holds `node` (the first one, if a file has several names); the root's is the root."""
        parent: int = WORD.unpack_from(self._buffer, self._at(node) + layout.PARENT_AT)[0]
        return parent

    def kind(self, node: int) -> Kind:
        """Return the type of `node`."""
        return KINDS[self._buffer[self._at(node)]]

    def rows(self) -> Iterator[NodeRow]:
        """Yield the record of every node, in order, for a pass over all of them."""
        end = self._nodes + self.node_count * _NODE_SIZE
        for at in range(self._nodes, end, _ROWS_AT_ONCE * _NODE_SIZE):
            yield from map(
                NodeRow._make, NODE.iter_unpack(self._buffer[at : min(at + _ROWS_AT_ONCE * _NODE_SIZE, end)])
            )

    def attributes(self, node: int) -> Attributes:
        """Return what stat(2) shows of `node`."""
        kind, mode, uid, gid, size, mtime_ns, nlink, rdev = ATTRIBUTES.unpack_from(self._buffer, self._at(node))
        return Attributes(KINDS[kind], mode, uid, gid, size, mtime_ns, nlink, rdev)

    def readlink(self, node: int) -> bytes:
        """Return the target of a symbolic link; empty for other nodes."""
        at = self._at(node)
        if self._buffer[at] != Kind.SYMLINK:
            return b""
        first, count = EXTENT.unpack_from(self._buffer, at + EXTENT_AT)
        return self._buffer[self._text + first : self._text + first + count]

    def xattrs(self, node: int) -> Mapping[bytes, bytes]:
        """Return the extended attributes; the only `trusted.*` one is our own mark of opaque directories."""
        row = WORD.unpack_from(self._buffer, self._at(node) + layout.XATTR_AT)[0]
        return _NO_XATTRS if row == NONE else self.xattr_set(row)

    def xattr_set(self, row: int) -> Mapping[bytes, bytes]:
        """Return a set of extended attributes by its row."""
        buffer = self._buffer
        at, end = EXTENT.unpack_from(buffer, self._xattrs + row * WORD.size)
        at, end = at + self._xdata, end + self._xdata
        found = {}
        while at < end:
            name_size, value_size = XATTR.unpack_from(buffer, at)
            at += XATTR.size
            value_at = at + name_size
            found[buffer[at:value_at]] = buffer[value_at : value_at + value_size]
            at = value_at + value_size
        return found

    # --- content

    def digest(self, node: int) -> bytes:
        """Return the raw name of a file's content (derived if the TOC has none); empty for empty files and others."""
        row = WORD.unpack_from(self._buffer, self._at(node) + layout.DIGEST_AT)[0]
        return b"" if row == NONE else self.digest_in_row(row)

    def digest_in_row(self, row: int) -> bytes:
        """Return the raw name of the content in a row of the table of digests."""
        return self.content_in_row(row)[0]

    def content_in_row(self, row: int) -> tuple[bytes, int, int]:
        """Return (raw digest, size, a node) of a row of the table of digests: the node is the one that `find` returns."""
        content: tuple[bytes, int, int] = DIGEST.unpack_from(self._buffer, self._digests + row * DIGEST.size)
        return content

    def nodes_with_zeros(self) -> Iterator[int]:
        """Yield the nodes of files with a chunk that is all zeros and not stored, each once."""
        end = self._chunks + self._chunk_count * _CHUNK_SIZE
        last = -1
        for at in range(self._chunks, end, _ROWS_AT_ONCE * _CHUNK_SIZE):
            for _, _, member, _, node, _ in CHUNK.iter_unpack(
                self._buffer[at : min(at + _ROWS_AT_ONCE * _CHUNK_SIZE, end)]
            ):
                if member < 0 and node != last:
                    last = node
                    yield node

    def _chunk_rows(self, node: int) -> tuple[int, int]:
        at = self._at(node)
        if self._buffer[at] != Kind.REG:
            return 0, 0
        first, count = EXTENT.unpack_from(self._buffer, at + EXTENT_AT)
        return first, count

    def chunk_count(self, node: int) -> int:
        """Return how many chunks a file has; 0 for empty files and others."""
        return self._chunk_rows(node)[1]

    def chunks(self, node: int, file_offset: int, size: int) -> tuple[Chunk, ...]:
        """Return the chunks of a file that overlap `size` bytes from `file_offset` on, in order."""
        buffer, table = self._buffer, self._chunks
        first, count = self._chunk_rows(node)
        last = first + count
        low, high = first, last
        while high - low > 1:  # the last chunk that begins at or before file_offset
            middle = (low + high) >> 1
            if CHUNK.unpack_from(buffer, table + middle * _CHUNK_SIZE)[0] <= file_offset:
                low = middle
            else:
                high = middle
        end = file_offset + size
        found = []
        for row in range(low, last):
            offset, length, member, inner, _, digest = CHUNK.unpack_from(buffer, table + row * _CHUNK_SIZE)
            if offset >= end:
                break
            if offset + length > file_offset:
                known = b"" if digest == NO_DIGEST else digest
                found.append(Chunk(node, row - first, offset, length, member, inner, known))
        return tuple(found)

    def identity(self, node: int) -> FileIdentity:
        """Return what makes a non-empty regular file's partial file shareable."""
        at = self._at(node)
        size = ATTRIBUTES.unpack_from(self._buffer, at)[4]
        pieces = tuple((chunk.file_offset, chunk.size, chunk.digest) for chunk in self.chunks(node, 0, size))
        return FileIdentity(self.digest(node), size, pieces, bool(self._buffer[at + 1] & layout.FLAG_DERIVED))

    def find(self, digest: bytes) -> int | None:
        """Return a node whose content has this raw digest, or None."""
        buffer, table = self._buffer, self._digests
        low, high = 0, self._digest_count
        while low < high:
            middle = (low + high) >> 1
            found, _, node = DIGEST.unpack_from(buffer, table + middle * DIGEST.size)
            if found == digest:
                hit: int = node
                return hit
            if found < digest:
                low = middle + 1
            else:
                high = middle
        return None

    def digests(self) -> Iterator[tuple[bytes, int, int]]:
        """Yield (raw digest, size, a node) of every distinct content, sorted by digest."""
        end = self._digests + self._digest_count * DIGEST.size
        for at in range(self._digests, end, _ROWS_AT_ONCE * DIGEST.size):
            yield from DIGEST.iter_unpack(self._buffer[at : min(at + _ROWS_AT_ONCE * DIGEST.size, end)])

    # --- members

    def member(self, number: int) -> Member:
        """Return where a member lies; numbers go from 0 to `member_count` - 1 by blob offset."""
        if not 0 <= number < self.member_count:
            raise IndexError(f"member {number} of an index with {self.member_count} members")
        return Member(number, *MEMBER.unpack_from(self._buffer, self._members + number * MEMBER.size))

    def members_between(self, blob_start: int, blob_end: int) -> range:
        """Return the numbers of the members that overlap the blob's bytes from `blob_start` to before `blob_end`."""
        first = self._bisect_members(blob_start)
        if first and self.member(first - 1).blob_end > blob_start:
            first -= 1
        return range(first, max(first, self._bisect_members(blob_end)))

    def _bisect_members(self, blob_offset: int) -> int:
        """Return the number of the first member that begins at or behind `blob_offset`."""
        low, high = 0, self.member_count
        while low < high:
            middle = (low + high) >> 1
            if MEMBER.unpack_from(self._buffer, self._members + middle * MEMBER.size)[0] < blob_offset:
                low = middle + 1
            else:
                high = middle
        return low

    def member_chunks(self, number: int) -> tuple[Chunk, ...]:
        """Return the chunks that lie in a member, in order of their inner offset."""
        buffer = self._buffer
        _, _, _, first, count = self.member(number)
        found = []
        for order in range(first, first + count):
            row = WORD.unpack_from(buffer, self._order + order * WORD.size)[0]
            offset, size, member, inner, node, digest = CHUNK.unpack_from(buffer, self._chunks + row * _CHUNK_SIZE)
            known = b"" if digest == NO_DIGEST else digest
            found.append(Chunk(node, row - self._chunk_rows(node)[0], offset, size, member, inner, known))
        return tuple(found)
