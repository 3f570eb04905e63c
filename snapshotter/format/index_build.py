"""Building of an index from a TOC: the tree is numbered, and every table written in the order of the numbers.

This is work for a process of its own: 100 000 entries take about a second and the GIL.
"""

import hashlib
import zlib
from array import array

from snapshotter.errors import FormatError

from .chunks import DRAFT, Members
from .digest import RAW_SIZE, parse_digest, raw
from .layout import (
    CHUNK,
    CODECS,
    DIGEST,
    DIRENT,
    FLAG_VERIFIED,
    HEADER,
    HEADER_SIZE,
    INDEX_REVISION,
    MAGIC,
    NODE,
    NONE,
    SECTIONS,
    WORD,
    XATTR,
    BuildOptions,
    Kind,
)
from .toc import decode_entries
from .tree import RECORD, WHITEOUT, Tree, XattrSet

_OPAQUE = (b"trusted.overlay.opaque", b"y")
_ABSENT = NONE


def build_index(toc_json: bytes, options: BuildOptions) -> bytes:
    """Check a whole TOC and return its index, the content of an index file.

    The result is a function of the arguments and INDEX_REVISION alone.

    Raises:
        FormatError: anything in the TOC that is not sound.
    """
    if not 0 <= options.payload_end <= options.blob_size:
        raise FormatError(f"members cannot end at byte {options.payload_end} of a blob of {options.blob_size} bytes")
    parse_digest(options.layer_digest)
    tree = Tree(options)
    tree.read(decode_entries(toc_json))
    names = _Numbering(tree)
    content = _Content(tree, names)
    sets = _Xattrs(tree, names)
    tables = {
        "nodes": (_nodes(tree, names, content, sets), len(names.order)),
        "dirents": (names.dirents, len(names.dirents) // DIRENT.size),
        "names": (names.names, len(names.names)),
        "text": (tree.text, len(tree.text)),
        "chunks": (content.chunks, len(content.chunks) // CHUNK.size),
        "members": (content.members.table, content.members.count),
        "order": (content.members.order, len(content.members.order) // WORD.size),
        "digests": (content.digests, len(content.digests) // DIGEST.size),
        "xattrs": (sets.starts, len(sets.starts) // WORD.size),
        "xdata": (sets.data, len(sets.data)),
    }
    header = _header([tables[name] for name in SECTIONS], options, tree, content.size, toc_json)
    return b"".join((header, *(tables[name][0] for name in SECTIONS)))


def _header(
    tables: list[tuple[bytearray, int]], options: BuildOptions, tree: Tree, content_size: int, toc_json: bytes
) -> bytes:
    spans: list[int] = []
    at, checksum = HEADER_SIZE, 0
    for table, count in tables:
        spans += (at, count)
        at += len(table)
        checksum = zlib.crc32(table, checksum)
    header = HEADER.pack(
        MAGIC,
        INDEX_REVISION,
        FLAG_VERIFIED if tree.chunks.verified else 0,
        CODECS.index(options.codec),
        checksum,
        at,
        options.blob_size,
        options.payload_end,
        content_size,
        raw(options.layer_digest),
        hashlib.sha256(toc_json).digest(),
        -1 if tree.prefetch_end is None else tree.prefetch_end,
        *spans,
    )
    return header + WORD.pack(zlib.crc32(header))


class _Numbering:
    """Final numbers of all nodes that have a visible name, breadth first; and the tables of names."""

    __slots__ = ("dirents", "extents", "names", "nlinks", "order", "parents")

    def __init__(self, tree: Tree) -> None:
        """Number `tree`: `order[number]` is a node of the tree, the other arrays go by number."""
        self.order = array("I", [0])
        self.parents = array("I", [0])
        self.nlinks = array("I", [2])
        self.extents: dict[int, tuple[int, int]] = {}
        self.dirents = bytearray()
        self.names = bytearray()
        numbers = array("I", [_ABSENT]) * (len(tree.records) // RECORD.size)
        numbers[0] = 0
        directories = [0]
        for directory in directories:
            number = numbers[directory]
            children = tree.children[directory]
            shown = sorted(name for name in children if not name.startswith(WHITEOUT))
            self.extents[number] = len(self.dirents) // DIRENT.size, len(shown)
            for name in shown:
                node = children[name]
                child = numbers[node]
                if child == _ABSENT:
                    child = numbers[node] = len(self.order)
                    self.order.append(node)
                    self.parents.append(number)
                    if node in tree.children:
                        directories.append(node)
                        self.nlinks.append(2)
                        self.nlinks[number] += 1
                    else:
                        self.nlinks.append(1)
                else:
                    self.nlinks[child] += 1
                self.dirents += DIRENT.pack(len(self.names), len(name), child)
                self.names += name


class _Content:
    """Chunks, members and digests of the numbered nodes."""

    __slots__ = ("chunks", "digest_rows", "digests", "first_chunks", "members", "size")

    def __init__(self, tree: Tree, names: _Numbering) -> None:
        self.size = 0
        self.chunks = bytearray()
        self.digests = bytearray()
        self.first_chunks = array("I", [0]) * len(names.order)
        self.digest_rows = array("I", [NONE]) * len(names.order)
        visible = array("i", [-1]) * tree.chunks.count
        files: list[tuple[int, int, int]] = []
        total = 0
        for number, node in enumerate(names.order):
            kind, _, _, _, _, size, _, _, first, count, _, _ = RECORD.unpack_from(tree.records, node * RECORD.size)
            if kind != Kind.REG:
                continue
            self.size += size
            self.first_chunks[number] = total
            for row in range(first, first + count):
                visible[row] = total
                total += 1
            if count:
                files.append((number, first, count))
        self.members = tree.chunks.members(visible)
        self._write_chunks(tree, files, self.members)
        self._write_digests(tree, names, [number for number, _, _ in files])

    def _write_chunks(self, tree: Tree, files: list[tuple[int, int, int]], members: Members) -> None:
        rows, of_chunk = tree.chunks.rows, members.of_chunk
        chunk = 0
        for number, first, count in files:
            for row in range(first, first + count):
                offset, size, _, inner, digest = DRAFT.unpack_from(rows, row * DRAFT.size)
                self.chunks += CHUNK.pack(offset, size, of_chunk[chunk], inner, number, digest)
                chunk += 1

    def _write_digests(self, tree: Tree, names: _Numbering, files: list[int]) -> None:
        records = tree.records
        order = names.order
        digest_ends = RECORD.size
        digest_at = RECORD.size - RAW_SIZE

        def digest_of(number: int) -> bytes:
            at = order[number] * RECORD.size
            return bytes(records[at + digest_at : at + digest_ends])

        last, last_size = b"", -1
        row = -1
        for number in sorted(files, key=digest_of):
            digest = digest_of(number)
            size = RECORD.unpack_from(records, order[number] * RECORD.size)[5]
            if digest != last:
                row += 1
                last, last_size = digest, size
                self.digests += DIGEST.pack(digest, size, number)
            elif size != last_size:
                raise FormatError(f"the TOC gives sha256:{digest.hex()} to files of {last_size} and of {size} bytes")
            self.digest_rows[number] = row


class _Xattrs:
    """Sets of extended attributes that visible nodes have, opaque marks included."""

    __slots__ = ("_numbers", "data", "starts")

    def __init__(self, tree: Tree, names: _Numbering) -> None:
        self.data = bytearray()
        self.starts = bytearray()
        self._numbers: dict[tuple[int, bool], int] = {}
        for node in names.order:
            self._add(tree, _xattr_of(tree, node), opaque=node in tree.opaque)
        self.starts += WORD.pack(len(self.data))

    def _add(self, tree: Tree, number: int, *, opaque: bool) -> None:
        key = number, opaque
        if key in self._numbers or key == (NONE, False):
            return
        self._numbers[key] = len(self._numbers)
        self.starts += WORD.pack(len(self.data))
        pairs: XattrSet = () if number == NONE else tree.xattr_sets[number]
        for name, value in (*pairs, _OPAQUE) if opaque else pairs:
            self.data += XATTR.pack(len(name), len(value)) + name + value

    def number(self, tree: Tree, node: int) -> int:
        """Return the number of a node's set in the index, or NONE."""
        return self._numbers.get((_xattr_of(tree, node), node in tree.opaque), NONE)


def _xattr_of(tree: Tree, node: int) -> int:
    number: int = RECORD.unpack_from(tree.records, node * RECORD.size)[10]
    return number


def _nodes(tree: Tree, names: _Numbering, content: _Content, sets: _Xattrs) -> bytearray:
    table = bytearray()
    for number, node in enumerate(names.order):
        fields = RECORD.unpack_from(tree.records, node * RECORD.size)
        kind, flags, mode, uid, gid, size, mtime_ns, rdev, first, count, xattrs, _ = fields
        if kind == Kind.DIR:
            first, count = names.extents[number]
        elif kind == Kind.REG:
            first = content.first_chunks[number]
        if xattrs != NONE or node in tree.opaque:
            xattrs = sets.number(tree, node)
        nlink, parent, digest = names.nlinks[number], names.parents[number], content.digest_rows[number]
        table += NODE.pack(
            kind, flags, mode, uid, gid, size, mtime_ns, nlink, rdev, parent, first, count, digest, xattrs
        )
    return table
