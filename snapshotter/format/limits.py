"""Every limit on what a layer may ask of the node, in one table.

A layer beyond a limit is refused with a FormatError and containerd unpacks it the ordinary way, so the limits may be
generous: they bound memory and time, they do not judge taste. Sizes are bytes.
"""

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
TIB = 1 << 40

TOC_COMPRESSED = 256 * MIB
"""The TOC as it lies in the blob; a million entries take about 60 MiB."""

TOC_RAW = 1 * GIB
"""The TOC's JSON; Go writers need 430 to 550 bytes an entry."""

TOC_ENTRIES = 4_000_000
"""Entries of a TOC, and also nodes of its tree: directories that only exist as somebody's parent count."""

NAME = 255
"""One path component: NAME_MAX of Linux."""

PATH = 4095
"""A whole path, and the target of a symbolic link: PATH_MAX without its NUL."""

FILE_SIZE = 4 * TIB
"""One regular file; what is stored is bounded by the blob all the same (see INFLATE_*)."""

CHUNK_SIZE = 1 * GIB
"""One chunk is fetched and verified as a whole, so it must fit a disk quota and a deadline."""

INNER_OFFSET = 4 * GIB
"""Plain bytes that may have to be inflated and dropped before a chunk begins."""

INFLATE_GZIP = 1032
"""Plain bytes that deflate can make of one byte: two bits for each 258-byte match (RFC 1951, section 3.2.5)."""

INFLATE_ZSTD = 1 << 15
"""Plain bytes that zstd can make of one byte: a 128 KiB run-length block takes 4 (RFC 8878, section 3.1.1.2)."""

INFLATE_SLACK = 256 * KIB
"""Allowed on top of a ratio, for what the first block brings."""

ZSTD_WINDOW_LOG = 27
"""128 MiB of history per zstd frame, what `zstd -d` accepts without options."""

PIECE = 1 * MIB
"""Longest piece that a member decoder hands out."""

XATTR_NAME = 255
XATTR_VALUE = 64 * KIB
"""XATTR_NAME_MAX and XATTR_SIZE_MAX of Linux."""

XATTRS = 1 * MIB
"""All extended attributes of one entry together; the kernel lists at most 64 KiB of names."""

ID_MAX = (1 << 32) - 2
"""Largest uid and gid; 4294967295 means "leave unchanged" to chown(2)."""

DEVICE_MAJOR = (1 << 12) - 1
DEVICE_MINOR = (1 << 20) - 1
"""Linux device numbers: 12 and 20 bits."""
