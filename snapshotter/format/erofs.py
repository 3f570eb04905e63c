"""The EROFS writer: the index of a layer's TOC in, an image with its metadata and without its file contents out.

Bodies of files are holes. A file that has content carries two attributes for overlayfs instead: `metacopy`, and
`redirect` with the place of its content in data-only layers. Everything comes from an index, and thus from checked
values only, because the kernel parses what is written here.

Source: linux/fs/erofs (super.c, inode.c, dir.c, xattr.c, data.c).
"""

import hashlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from snapshotter.errors import FormatError

from .erofs_layout import (
    BLOCK,
    BLOCK_BITS,
    CHECKSUM_AT,
    CHUNK_BITS_MAX,
    CHUNKED,
    COMPAT_CHECKSUM,
    COMPAT_MTIME,
    DIRENT,
    FIRST_INODE,
    HOLE,
    INCOMPAT_CHUNKED,
    INLINE,
    INODE,
    MAGIC,
    PLAIN,
    SLOT,
    SUPER,
    SUPER_OFFSET,
    UUID_AT,
    UUID_SIZE,
)
from .erofs_xattrs import XattrBodies
from .index import Index
from .layout import NONE, FileIdentity, Kind, NodeRow

_FILE_TYPES = {Kind.REG: 1, Kind.DIR: 2, Kind.CHAR: 3, Kind.BLOCK: 4, Kind.FIFO: 5, Kind.SYMLINK: 7}
_NS = 1_000_000_000
_CRC32C = 0x82F63B78
"""The Castagnoli polynomial, bits reversed (RFC 3720, appendix B.4)."""


LargePath = Callable[[FileIdentity], bytes]
"""Gives the absolute path, in the data-only layers, of a file that has several chunks; all paths are equally long."""


def write_image(index: Index, place: bytes, large: LargePath | None = None) -> bytes:
    """Return the image of a layer; a function of the arguments and EROFS_REVISION alone.

    `place` is the directory of contents in the data-only layers, absolute and without a slash at its end: a file whose
    sha256 is `ab…` finds its content at `<place>/ab/ab…`. Where `large` is given, files of several chunks are
    elsewhere: their content can be had in part, and a digest of the whole does not say whose word the parts go by.

    Raises:
        FormatError: a file has extended attributes that the format does not take.
    """
    return _Image(index, place, large).write()


def check_image(image: bytes) -> None:
    """Compare an image with the hash of itself that it carries.

    Raises:
        FormatError: it is torn or damaged, or no image of ours.
    """
    check_pieces((image,))


def check_pieces(pieces: Iterable[bytes]) -> None:
    """The same of an image that comes in pieces, the first of at least a block unless that is all.

    Raises:
        FormatError: as `check_image`.
    """
    hasher, size, head = hashlib.sha256(), 0, b""
    for piece in pieces:
        if not size:
            head = piece[:BLOCK]
        _hash(hasher, piece, size == 0)
        size += len(piece)
    if size < BLOCK or size % BLOCK or head[SUPER_OFFSET:CHECKSUM_AT] != MAGIC.to_bytes(4, "little"):
        raise FormatError("not an EROFS image, or torn")
    if hasher.digest()[:UUID_SIZE] != head[UUID_AT : UUID_AT + UUID_SIZE]:
        raise FormatError("the EROFS image does not have the hash that it carries")


def _hash(hasher: "hashlib._Hash", data: bytes | bytearray, first: bool) -> None:  # noqa: FBT001
    """Add everything but the hash itself and the superblock's checksum, which is taken last."""
    with memoryview(data) as view:
        if first:
            hasher.update(view[:CHECKSUM_AT])
            hasher.update(view[CHECKSUM_AT + 4 : UUID_AT])
        hasher.update(view[UUID_AT + UUID_SIZE if first else 0 :])


def _fingerprint(image: bytearray) -> bytes:
    hasher = hashlib.sha256()
    _hash(hasher, image, first=True)
    return hasher.digest()[:UUID_SIZE]


def _crc32c(data: bytes | bytearray) -> int:
    """CRC-32C without the final inversion, as the kernel's crc32c() gives it for the seed ~0."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (_CRC32C if crc & 1 else 0)
    return crc


class _Image:
    """One image in the making: first every inode gets its place, then everything is written."""

    def __init__(self, index: Index, place: bytes, large: LargePath | None) -> None:
        self._index = index
        self._place = place
        self._large = large
        self._large_paths: dict[int, bytes] = {}
        self._path_size = len(place) + len("/ab/") + 2 * hashlib.sha256().digest_size
        self._large_path_size = 0 if large is None else len(large(FileIdentity(bytes(32), 0, (), derived=False)))
        self._nids = array("Q", bytes(8 * index.node_count))
        self._blocks: dict[int, tuple[int, int]] = {}
        """Of directories and links with more content than fits behind the inode: the first block and how many."""
        self._block_count = 0
        uses = Counter(row.xattr_row for row in index.rows())
        del uses[NONE]
        self._xattrs = XattrBodies({row: index.xattr_set(row) for row in uses}, uses)
        end = self._plan()
        self._table_block = -(-end // BLOCK)
        self._first_block = self._table_block + -(-len(self._xattrs.table) // BLOCK)
        self._image = bytearray((self._first_block + self._block_count) * BLOCK)

    def write(self) -> bytes:
        """Fill everything in."""
        for node, row in enumerate(self._index.rows()):
            if row.kind == Kind.REG and row.size:
                self._write_file(node, row)
            else:
                self._write_other(node, row)
        at = self._table_block * BLOCK
        self._image[at : at + len(self._xattrs.table)] = self._xattrs.table
        self._write_super()
        return bytes(self._image)

    # --- places

    def _plan(self) -> int:
        """Give every inode its place, and blocks to content that does not fit behind one; return where inodes end."""
        at = FIRST_INODE
        for node, row in enumerate(self._index.rows()):
            path_size = self._redirect_size(row)
            fixed = INODE.size + len(self._xattrs.body(row.xattr_row, path_size)[0])
            tail = 0
            if path_size:
                fixed += len(HOLE)
            elif row.kind == Kind.DIR:
                tail = self._plan_content(node, fixed, _directory_size(self._names(node)))
            elif row.kind == Kind.SYMLINK:
                tail = self._plan_content(node, fixed, row.size)
            at = -(-at // SLOT) * SLOT
            if tail and (at + fixed) // BLOCK != (at + fixed + tail - 1) // BLOCK:
                at = -(-at // BLOCK) * BLOCK  # what lies behind an inode must not cross a block
            self._nids[node] = at // SLOT
            at += fixed + tail
        return at

    def _redirect_size(self, row: NodeRow) -> int:
        """Length of the path at which a file's content is; 0 for what has none."""
        if row.kind != Kind.REG or not row.size:
            return 0
        return self._path_size if self._large is None or not self._is_large(row) else self._large_path_size

    def _is_large(self, row: NodeRow) -> bool:
        """Whether a file goes by its chunks: those of the one node that stands for all files with its digest."""
        return self._index.chunk_count(self._index.content_in_row(row.digest_row)[2]) > 1

    def _plan_content(self, node: int, fixed: int, size: int) -> int:
        """Reserve blocks for a content of `size` bytes; return how many of its bytes lie behind the inode."""
        blocks, tail = divmod(size, BLOCK)
        if fixed + tail > BLOCK:
            blocks, tail = blocks + 1, 0
        if blocks:
            self._blocks[node] = self._block_count, blocks
            self._block_count += blocks
        return tail

    def _names(self, directory: int) -> list[tuple[bytes, int, int]]:
        """(name, nid, file type) of everything in a directory, "." and ".." included, in the order of the bytes."""
        index, nids = self._index, self._nids
        listed = [(name, nids[node], _FILE_TYPES[index.kind(node)]) for _, name, node in index.entries(directory, 0)]
        kind = _FILE_TYPES[Kind.DIR]
        listed += ((b".", nids[directory], kind), (b"..", nids[index.parent(directory)], kind))
        listed.sort()
        return listed

    # --- bytes

    def _write_file(self, node: int, row: NodeRow) -> None:
        digest, _, known_by = self._index.content_in_row(row.digest_row)
        if self._large is not None and self._is_large(row):
            path = self._large_paths.get(known_by) or self._large(self._index.identity(known_by))
            self._large_paths[known_by] = path
        else:
            name = digest.hex().encode("ascii")
            path = b"%b/%b/%b" % (self._place, name[:2], name)
        body, words = self._xattrs.body(row.xattr_row, len(path))
        at = self._nids[node] * SLOT + INODE.size
        end = at + len(body)
        path_end = end - -len(path) % 4
        self._image[at:end] = body
        self._image[path_end - len(path) : path_end] = path
        self._image[end : end + len(HOLE)] = HOLE
        self._write_inode(node, row, CHUNKED, words, row.size, _chunk_bits(row.size))

    def _write_other(self, node: int, row: NodeRow) -> None:
        body, words = self._xattrs.body(row.xattr_row)
        content = b""
        if row.kind == Kind.DIR:
            content = b"".join(_directory_blocks(self._names(node)))
        elif row.kind == Kind.SYMLINK:
            content = self._index.readlink(node)
        first, blocks = self._blocks.get(node, (0, 0))
        split = blocks * BLOCK
        if blocks:
            first += self._first_block
            self._image[first * BLOCK : first * BLOCK + len(content[:split])] = content[:split]
        behind = body + content[split:]
        at = self._nids[node] * SLOT + INODE.size
        self._image[at : at + len(behind)] = behind
        layout = INLINE if len(content) > split else PLAIN
        union = row.rdev if row.kind in (Kind.CHAR, Kind.BLOCK) else first
        self._write_inode(node, row, layout, words, len(content), union)

    def _write_inode(self, node: int, row: NodeRow, layout: int, words: int, size: int, union: int) -> None:
        seconds, nanoseconds = divmod(row.mtime_ns, _NS)
        INODE.pack_into(
            self._image, self._nids[node] * SLOT, layout, words, row.mode, 0, size, union, node + 1,
            row.uid, row.gid, seconds, nanoseconds, row.nlink,
        )  # fmt: skip

    def _write_super(self) -> None:
        """The superblock, then the hash of all, then the checksum of the first block's rest."""
        SUPER.pack_into(
            self._image, SUPER_OFFSET, MAGIC, 0, COMPAT_CHECKSUM | COMPAT_MTIME, BLOCK_BITS, 0, self._nids[0],
            self._index.node_count, 0, 0, len(self._image) // BLOCK, 0, self._table_block, bytes(16), bytes(16),
            INCOMPAT_CHUNKED, 0, 0, 0, 0, 0, 0, 0, 0, bytes(23),
        )  # fmt: skip
        self._image[UUID_AT : UUID_AT + UUID_SIZE] = _fingerprint(self._image)
        checksum = _crc32c(self._image[SUPER_OFFSET:BLOCK])
        self._image[CHECKSUM_AT : CHECKSUM_AT + 4] = checksum.to_bytes(4, "little")


def _chunk_bits(size: int) -> int:
    """The chunk size of a file that is one hole: 4096 << bits, the smallest that makes it one chunk."""
    return min(max((size - 1).bit_length() - BLOCK_BITS, 0), CHUNK_BITS_MAX)


def _blocks_of(names: list[tuple[bytes, int, int]]) -> Iterator[tuple[list[tuple[bytes, int, int]], int]]:
    """Cut a directory into blocks: what each holds, and how many bytes that takes."""
    block: list[tuple[bytes, int, int]] = []
    used = 0
    for entry in names:
        needed = DIRENT.size + len(entry[0])
        if used + needed > BLOCK:
            yield block, used
            block, used = [], 0
        block.append(entry)
        used += needed
    yield block, used


def _directory_size(names: list[tuple[bytes, int, int]]) -> int:
    used = [size for _, size in _blocks_of(names)]
    return (len(used) - 1) * BLOCK + used[-1]


def _directory_blocks(names: list[tuple[bytes, int, int]]) -> Iterator[bytes]:
    """The content of a directory: every block but the last filled up with zeros."""
    last = b""
    for block, _ in _blocks_of(names):
        if last:
            yield last.ljust(BLOCK, b"\0")
        entries, texts = bytearray(), bytearray()
        start = len(block) * DIRENT.size
        for name, nid, kind in block:
            entries += DIRENT.pack(nid, start + len(texts), kind)
            texts += name
        last = bytes(entries + texts)
    yield last
