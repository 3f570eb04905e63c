"""Footers: where in a blob its table of contents lies, for every dialect.

A footer is the last thing in the blob, so that one read of the tail finds it. Layouts, with offsets from the footer's
first byte; all integers are little-endian:

    eStargz, 51 bytes: an empty gzip member whose extra field holds a subfield
        0  1f 8b 08 04 · mtime 4 · xfl 1 · os 1     10  XLEN = 26     12 "SG"  14 length 22
        16 TOC offset, 16 hex digits   32 "STARGZ"   38 empty stored block 01 00 00 ff ff   43 crc 4, size 4, both 0
    stargz, 47 bytes: the same with XLEN = 22 and no subfield header: digits at 12, "STARGZ" at 28
    eStargz with external TOC, 46 bytes: XLEN = 21, "SG", length 17, "STARGZEXTERNALTOC" at 16; no offset
    zstd:chunked: a skippable frame, 50 2a 4d 18 and a length, before each of these bodies
        40 bytes: TOC offset, compressed size, raw size, type 1 (8 bytes each), "GnUlInUx"
        64 bytes: the same four, then tar-split offset, compressed size, raw size, "GNUlInUx"

Sources: stargz-snapshotter docs/estargz.md; containers/storage pkg/chunked; RFC 1952 section 2.3, RFC 8878 section 3.1.2.
"""

import struct
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from snapshotter.errors import FormatError

from . import members
from .codec import Codec
from .digest import Digest, parse_digest
from .limits import KIB, MIB, TOC_COMPRESSED, TOC_RAW
from .tar_entries import TOC_NAME

__all__ = [
    "TAIL_MIN",
    "Codec",
    "Flavor",
    "Footer",
    "first_tail_size",
    "footer_from_annotations",
    "parse_footer",
    "section_in",
    "toc_anchor",
    "toc_json",
]


class Flavor(StrEnum):
    """Dialects of lazily pullable layers."""

    ESTARGZ = "estargz"
    STARGZ = "stargz"
    ZSTD_CHUNKED = "zstd:chunked"
    EXTERNAL = "estargz-external-toc"


@dataclass(frozen=True, slots=True)
class Footer:
    """What a footer says; `toc_offset` and `toc_end` enclose the compressed TOC in the blob.

    With an external TOC both equal `payload_end`. `payload_end` is where the last member must have ended.
    """

    flavor: Flavor
    codec: Codec
    toc_offset: int
    toc_end: int
    toc_raw_size: int | None
    payload_end: int


ESTARGZ_SIZE = 51
STARGZ_SIZE = 47
EXTERNAL_SIZE = 46
SKIPPABLE_HEADER = 8

NEAR = 8
"""Layers whose sizes differ by no more than one part in so many may be versions of one."""
KNOWN_MAX = 8 * MIB
"""The first answer is held in memory, and what another version's footer said is a registry's word."""
SPARE = 32
SPARE_MIN = 1024
"""One byte in so many more than the TOC of the other version took, and at least so many."""

TAIL_MIN = SKIPPABLE_HEADER + 64
"""Bytes of a blob's tail that always hold any footer whole."""

_SKIPPABLE_MAGIC = b"\x50\x2a\x4d\x18"
_EMPTY_BODY = b"\x01\x00\x00\xff\xff" + bytes(8)
_ZSTD_SHAPES = {b"GnUlInUx": (40, 64), b"GNUlInUx": (64, 40)}
_POSITION_KEYS = (
    "io.github.containers.zstd-chunked.manifest-position",
    "io.containers.zstd-chunked.manifest-position",
)
_CHECKSUM_KEYS = (
    "io.github.containers.zstd-chunked.manifest-checksum",
    "io.containers.zstd-chunked.manifest-checksum",
)
_TYPE_CRFS = 1


def first_tail_size(blob_size: int, known: Iterable[tuple[int, int]] = ()) -> int:
    """Return how many bytes of the tail to ask for first, so that footer and TOC usually come in one answer.

    TOCs take 0.2 to 3 % of their blob; a 64th of it, within 128 KiB and 4 MiB, holds most of them. Closer is what `known`
    says: (blob size, bytes from its TOC to its end) of other versions of the image, whose layer of nearly this size is
    most likely the one before.
    """
    near = [(abs(size - blob_size), tail) for size, tail in known if abs(size - blob_size) <= blob_size // NEAR]
    if near:
        tail = min(near)[1]
        return min(blob_size, tail + max(tail // SPARE, SPARE_MIN) + TAIL_MIN, KNOWN_MAX)
    return min(blob_size, max(128 * KIB, min(4 * MIB, blob_size // 64)))


def parse_footer(tail: bytes, blob_size: int) -> Footer:
    """Read the footer from the last bytes of a blob (at least `TAIL_MIN` of them, or the whole blob).

    Raises:
        FormatError: no footer, or one that points out of the blob.
    """
    if len(tail) > blob_size:
        raise FormatError(f"a tail of {len(tail)} bytes cannot belong to a blob of {blob_size} bytes")
    extra = _gzip_extra(tail, ESTARGZ_SIZE)
    if extra is not None and extra[:4] == b"SG\x16\x00" and extra[20:] == b"STARGZ":
        return _gzip_footer(Flavor.ESTARGZ, extra[4:20], blob_size, ESTARGZ_SIZE)
    extra = _gzip_extra(tail, STARGZ_SIZE)
    if extra is not None and extra[16:] == b"STARGZ":
        return _gzip_footer(Flavor.STARGZ, extra[:16], blob_size, STARGZ_SIZE)
    if _gzip_extra(tail, EXTERNAL_SIZE) == b"SG\x11\x00STARGZEXTERNALTOC":
        end = blob_size - EXTERNAL_SIZE
        return Footer(Flavor.EXTERNAL, Codec.GZIP, end, end, None, end)
    for size in _ZSTD_SHAPES.get(tail[-8:], ()):
        header = tail[-size - SKIPPABLE_HEADER : -size]
        if header == _SKIPPABLE_MAGIC + size.to_bytes(4, "little"):
            return _zstd_footer(tail[-size:], blob_size - size - SKIPPABLE_HEADER)
    raise FormatError(
        "this layer is an ordinary tar layer, neither eStargz nor zstd:chunked: there is no footer at its end; "
        "convert the image to pull it lazily"
    )


def section_in(tail: bytes, footer: Footer, blob_size: int) -> bytes:
    """Return what the last bytes of a blob have of its compressed TOC: all, its end, or nothing.

    Nothing, where something long follows: the tar-split of a zstd:chunked layer of many small files.
    """
    begin = blob_size - len(tail)
    return tail[max(footer.toc_offset - begin, 0) : max(footer.toc_end - begin, 0)]


def footer_from_annotations(annotations: Mapping[str, str], blob_size: int) -> Footer | None:
    """Read what a zstd:chunked layer's annotations say of its TOC; None if they say nothing.

    The annotations come from a verified manifest and save the reading of the footer.

    Raises:
        FormatError: an annotation that cannot be meant.
    Source: containers/storage, `manifest-position` is `offset:compressed size:raw size:type`.
    """
    for key in _POSITION_KEYS:
        position = annotations.get(key)
        if position is None:
            continue
        parts = position.split(":")
        if len(parts) != 4 or not all(part.isascii() and part.isdigit() and len(part) < 20 for part in parts):
            raise FormatError(f"annotation {key} is {position[:100]!r}, not four numbers with colons")
        offset, size, raw_size, kind = map(int, parts)
        return _zstd_position(offset, size, raw_size, kind, blob_size)
    return None


def toc_anchor(annotations: Mapping[str, str]) -> Digest | None:
    """Return the digest of the *compressed* TOC that a zstd:chunked layer's annotations give, or None.

    Raises:
        FormatError: not a sha256 digest.
    """
    for key in _CHECKSUM_KEYS:
        if key in annotations:
            return parse_digest(annotations[key])
    return None


def toc_json(footer: Footer, section: bytes, limit: int | None = None) -> bytes:
    """Decompress the TOC to its JSON of at most `limit` bytes (None: TOC_RAW); the hash of the result is the trust anchor of eStargz.

    `section` is the blob from `toc_offset` to `toc_end`, or the TOC's own blob if it is external.

    Raises:
        FormatError: damaged, cut off, over a limit, or not holding a TOC.
    """
    limit = TOC_RAW if limit is None else limit
    if footer.flavor is not Flavor.EXTERNAL and len(section) != footer.toc_end - footer.toc_offset:
        raise FormatError(f"the TOC has {footer.toc_end - footer.toc_offset} bytes, but {len(section)} were read")
    if footer.codec is Codec.ZSTD:
        plain = members.inflate(Codec.ZSTD, section, min(limit, _raw_limit(footer)))
        if footer.toc_raw_size not in (None, len(plain)):
            raise FormatError(f"the TOC unfolds to {len(plain)} bytes, its footer says {footer.toc_raw_size}")
        return plain
    return _untar(members.inflate(Codec.GZIP, section, limit + MIB))


def _raw_limit(footer: Footer) -> int:
    return TOC_RAW if footer.toc_raw_size is None else footer.toc_raw_size


def _gzip_extra(tail: bytes, size: int) -> bytes | None:
    """Return the extra field if the last `size` bytes are one empty gzip member filled by it, else None.

    mtime, XFL and OS are not compared: they are whatever the writer's gzip library puts there.
    """
    member = tail[-size:]
    if len(member) != size or member[:4] != b"\x1f\x8b\x08\x04" or member[-13:] != _EMPTY_BODY:
        return None
    extra = member[12:-13]
    return extra if int.from_bytes(member[10:12], "little") == len(extra) else None


def _gzip_footer(flavor: Flavor, digits: bytes, blob_size: int, size: int) -> Footer:
    if any(digit not in b"0123456789abcdefABCDEF" for digit in digits):
        raise FormatError(f"the {flavor} footer has {digits!r} where the offset of the TOC belongs")
    offset = int(digits, 16)
    end = blob_size - size
    _check_section(offset, end, end)
    return Footer(flavor, Codec.GZIP, offset, end, None, offset)


def _zstd_footer(body: bytes, limit: int) -> Footer:
    offset, size, raw_size, kind = struct.unpack_from("<4Q", body)
    return _zstd_position(offset, size, raw_size, kind, limit)


def _zstd_position(offset: int, size: int, raw_size: int, kind: int, limit: int) -> Footer:
    if kind != _TYPE_CRFS:
        raise FormatError(f"the zstd:chunked TOC is of type {kind}; only type 1 is known")
    _check_section(offset, offset + size, limit)
    if offset < SKIPPABLE_HEADER:
        raise FormatError(f"the zstd:chunked TOC begins at byte {offset}, before its own frame header")
    if raw_size > TOC_RAW:
        raise FormatError(f"the TOC's JSON has {raw_size} bytes, the limit is {TOC_RAW}")
    return Footer(Flavor.ZSTD_CHUNKED, Codec.ZSTD, offset, offset + size, raw_size, offset - SKIPPABLE_HEADER)


def _check_section(offset: int, end: int, limit: int) -> None:
    if not 0 <= offset < end <= limit:
        raise FormatError(f"the footer puts the TOC at bytes {offset} to {end}, but only {limit} bytes precede it")
    if end - offset > TOC_COMPRESSED:
        raise FormatError(f"the compressed TOC has {end - offset} bytes, the limit is {TOC_COMPRESSED}")


def _untar(archive: bytes) -> bytes:
    """Return the content of the one file in the TOC's tar."""
    try:
        header = tarfile.TarInfo.frombuf(archive[:512], "utf-8", "surrogateescape")
    except (tarfile.TarError, ValueError) as fault:
        raise FormatError(f"the TOC's member holds no tar archive: {fault}") from fault
    if not header.isreg() or header.name.removeprefix("./") != TOC_NAME:
        raise FormatError(f"the TOC's tar begins with {header.name[:100]!r} and not with {TOC_NAME}")
    if not 0 <= header.size <= min(TOC_RAW, len(archive) - 512):
        raise FormatError(f"the TOC's JSON should have {header.size} bytes, but {len(archive) - 512} are there")
    return archive[512 : 512 + header.size]
