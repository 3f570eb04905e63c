"""A blob of gzip members: eStargz.

    [member]*  [member with the TOC]  [footer of 51 bytes]
    [member]*  [footer of 46 bytes], and the TOC's member is a blob of its own

libdeflate compresses whole buffers three to four times as fast as zlib at level 9 and to slightly less; it releases the
GIL meanwhile [measured].

Source: estargz.md of the eStargz specification; RFC 1952.
"""

import struct
import zlib

import deflate

from snapshotter.format.tar_entries import TOC_NAME, EntryType, TarEntry
from snapshotter.format.tar_headers import END_OF_TAR, encode_header, padding

# ID1 ID2, CM deflate, no flags, no time, no extra flags, OS unknown: 10 bytes (RFC 1952, section 2.3).
_HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
_HEADER_WITH_EXTRA = b"\x1f\x8b\x08\x04\x00\x00\x00\x00\x00\xff"

# A final stored block of length 0, then CRC-32 and size of nothing.
_EMPTY_BODY = b"\x01\x00\x00\xff\xff" + bytes(8)


def pack(plain: bytes | bytearray, level: int) -> bytes:
    """Return a member that unfolds to `plain`."""
    trailer = struct.pack("<LL", zlib.crc32(plain), len(plain) & 0xFFFFFFFF)
    return b"".join((_HEADER, deflate.deflate_compress(plain, level), trailer))


def make_archive(document: bytearray) -> None:
    """Turn a TOC into the end of an archive whose last file it is; in place, as it may be large."""
    size = len(document)
    document[:0] = encode_header(TarEntry(TOC_NAME, EntryType.REG, 0o444, size=size))
    document += padding(size)
    document += END_OF_TAR


def footer(toc_offset: int) -> bytes:
    """Return the blob's last 51 bytes: an empty member whose extra field says where the TOC's member begins.

    10 header + 2 XLEN (26) + 2 "SG" + 2 length (22) + 16 offset in hex + 6 "STARGZ" + 5 empty block + 8 CRC and size.
    """
    return _empty_member(b"%016xSTARGZ" % toc_offset)


def external_footer() -> bytes:
    """Return the last 46 bytes of a blob without TOC.

    10 header + 2 XLEN (21) + 2 "SG" + 2 length (17) + 17 "STARGZEXTERNALTOC" + 5 empty block + 8 CRC and size.
    """
    return _empty_member(b"STARGZEXTERNALTOC")


def _empty_member(field: bytes) -> bytes:
    extra = b"SG" + struct.pack("<H", len(field)) + field
    return _HEADER_WITH_EXTRA + struct.pack("<H", len(extra)) + extra + _EMPTY_BODY
