"""The index file, byte by byte: records of fixed width, little-endian, unaligned.

    header   292 bytes; see HEADER
    nodes    56 bytes each; node 0 is the root; numbers go breadth first, a directory's children sorted by name bytes
    dirents  10 bytes each; the children of one directory lie together, sorted
    names    the bytes of all child names
    text     targets of symbolic links
    chunks   60 bytes each; the chunks of one file lie together, in file order
    members  24 bytes each, by blob offset
    order    4 bytes each: numbers of chunks, grouped by member, then by inner offset
    digests  44 bytes each, one per distinct content, sorted
    xattrs   4 bytes each: where a set begins in xdata; one more than there are sets
    xdata    the sets: for each attribute a name length 2, a value length 4, name, value

The order of everything is a function of the TOC's bytes and the build options alone: node numbers become inode numbers
and must never change while INDEX_REVISION is the same.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from .codec import Codec
from .digest import Digest

INDEX_REVISION = 2
"""Changes with every change of the layout or of the numbering."""

NODES_REVISION = 1
"""The first revision that numbered nodes as this one does. The kernel goes on using numbers over a take-over, so a layer keeps
its own where only the layout has changed; a change of the numbering is one of `INODE_REVISION` too."""

MAGIC = b"lazyidx\x00"

HEADER = struct.Struct("<8sIIIIQQQQ32s32sq20Q")
"""magic 8, revision 4, flags 4, codec 4, CRC-32 of the body 4 | file size, blob size, payload end, content size: 4 × 8 |
layer digest 32, TOC digest 32 | prefetch end 8, -1 if none | offset and count of each section: 20 × 8 = 288"""

HEADER_SIZE = HEADER.size + 4
"""The header and its own CRC-32."""

FLAG_VERIFIED = 1

CODECS = (Codec.GZIP, Codec.ZSTD)
"""By their number in the header."""

SECTIONS = ("nodes", "dirents", "names", "text", "chunks", "members", "order", "digests", "xattrs", "xdata")

NODE = struct.Struct("<BBHIIQqIIIIIII")
"""kind 1, flags 1, mode with S_IFMT bits 2, uid 4, gid 4, size 8, mtime in ns 8, nlink 4, rdev 4 | parent 4 | first 4 and
count 4: a directory's dirents, a file's chunks, a link's bytes in text | digest row 4, xattr set 4, or NONE = 56"""

ATTRIBUTES = struct.Struct("<BxHIIQqII")
"""The first nine fields of NODE without the flags = 36"""

EXTENT = struct.Struct("<II")
EXTENT_AT = 40
"""`first` and `count` in a node."""

PARENT_AT, DIGEST_AT, XATTR_AT = 36, 48, 52

FLAG_DERIVED = 1
"""Node flag: the digest is a name made of layer digest and path, not a hash of the content."""

DIRENT = struct.Struct("<IHI")
"""offset in names 4, length 2, node 4 = 10"""

CHUNK = struct.Struct("<QIiQI32s")
"""file offset 8, size 4, member 4 (-1: zeros), inner offset 8, node 4, sha256 32 (zeros if unverified) = 60"""

MEMBER = struct.Struct("<QQII")
"""blob offset 8, end 8, first row in order 4, count 4 = 24"""

DIGEST = struct.Struct("<32sQI")
"""sha256 32, size 8, a node with that content 4 = 44"""

WORD = struct.Struct("<I")
XATTR = struct.Struct("<HI")

NONE = 0xFFFFFFFF
ZEROS = -1
"""Member of a chunk that is all zeros and not stored."""

NO_DIGEST = bytes(32)


class Kind(IntEnum):
    """Types of nodes."""

    DIR = 0
    REG = 1
    SYMLINK = 2
    CHAR = 3
    BLOCK = 4
    FIFO = 5


KINDS = tuple(Kind)


class Attributes(NamedTuple):
    """What stat(2) needs; `mode` has its S_IFMT bits, `rdev` is in the kernel's encoding."""

    kind: Kind
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    nlink: int
    rdev: int


class NodeRow(NamedTuple):
    """One record of the table of nodes, as NODE describes it."""

    kind: int
    flags: int
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    nlink: int
    rdev: int
    parent: int
    extent_first: int
    extent_count: int
    digest_row: int
    xattr_row: int


class Chunk(NamedTuple):
    """One verified piece of a file.

    `member` is -1 if the piece is zeros; `digest` is raw and empty if the piece cannot be verified.
    """

    node: int
    ordinal: int
    file_offset: int
    size: int
    member: int
    inner_offset: int
    digest: bytes


class Member(NamedTuple):
    """One gzip member or zstd frame: bytes `blob_offset` to `blob_end` hold it whole."""

    number: int
    blob_offset: int
    blob_end: int
    first_chunk_row: int
    chunk_count: int


class FileIdentity(NamedTuple):
    """What two files must have in common to share a partial file: every chunk, not only the digest.

    `chunks` are (file offset, size, raw digest). `derived` says that `digest` is a name and no hash of the content.
    """

    digest: bytes
    size: int
    chunks: tuple[tuple[int, int, bytes], ...]
    derived: bool


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """What is known of a blob besides its TOC. Sizes and offsets are bytes of the compressed blob."""

    codec: Codec
    blob_size: int
    payload_end: int
    layer_digest: Digest
    allow_unverified: bool
