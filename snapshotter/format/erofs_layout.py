"""An EROFS image without file contents, byte by byte: records little-endian, blocks of 4096 bytes.

    block 0        1024 bytes of nothing, the superblock (128 bytes), then inodes
    inodes         each at a multiple of 32 bytes; a nid is its position divided by 32
    xattr table    from a block boundary: attributes that several inodes have
    blocks         directories, and symbolic links too long to lie behind their inode

An inode of 64 bytes is followed by its extended attributes, and these by what belongs to its content: the index of a
file's one chunk, which is a hole; the text of a link; the last block of a directory, if it fits into the same block.

Source: linux/fs/erofs/erofs_fs.h and Documentation/filesystems/erofs.rst.
"""

import struct

EROFS_REVISION = 1
"""Changes with every change of the bytes that an index becomes."""

BLOCK = 4096
BLOCK_BITS = 12
SLOT = 32
"""Inodes begin at multiples of this, and a nid counts them."""

SUPER_OFFSET = 1024
SUPER = struct.Struct("<IIIBBHQQIIII16s16sIHHHBBIQB23s")
"""magic 4, checksum 4, compatible features 4, block bits 1, extension slots 1, root nid 2 | inodes 8, build time 8 + 4 |
blocks 4, metadata block 4, xattr block 4 | uuid 16, volume 16 | incompatible features 4, compression 2, devices 2 + 2,
directory block bits 1, xattr prefixes 1 + 4 | packed nid 8, xattr filter 1, reserved 23 = 128"""

FIRST_INODE = SUPER_OFFSET + SUPER.size
MAGIC = 0xE0F5E1E2
CHECKSUM_AT = SUPER_OFFSET + 4
UUID_AT = SUPER_OFFSET + 48
UUID_SIZE = 16
COMPAT_CHECKSUM = 1
COMPAT_MTIME = 2
INCOMPAT_CHUNKED = 4

INODE = struct.Struct("<HHHHQIIIIQII16x")
"""format 2, xattr words 2, mode 2, reserved 2, size 8, content 4, ino 4, uid 4, gid 4, mtime 8 + 4, nlink 4, reserved 16
= 64"""

EXTENDED = 1
PLAIN = EXTENDED | 0 << 1
INLINE = EXTENDED | 2 << 1
CHUNKED = EXTENDED | 4 << 1
"""`format` of an inode: bit 0 says 64 bytes; bits 1 to 3 say where the content is."""

CHUNK_BITS_MAX = 31
HOLE = struct.pack("<I", 0xFFFFFFFF)
"""A chunk's block number that means zeros."""

XATTR_HEADER = 12
"""Reserved 4 (0), number of shared attributes 1, reserved 7; the shared ids (4 each) and the inode's own follow."""

XATTR_SHARED_MAX = 255
XATTR_WORDS_MAX = 0xFFFF
XATTR = struct.Struct("<BBH")
"""name length 1, prefix 1, value length 2; then the name without its prefix, the value, padding to 4."""

XATTR_PREFIXES = (
    (b"user.", 1),
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"trusted.", 4),
    (b"security.", 6),
)

DIRENT = struct.Struct("<QHBx")
"""nid 8, position of the name in the block 2, file type 1, reserved 1 = 12"""
