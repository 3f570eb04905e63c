"""The headers of a tar as Go's archive/tar reads them, which unpacks layers in containerd.

tarfile reads the dialects (V7, ustar, GNU, PAX, three kinds of sparse files). Where it is more lenient this module is as
strict as Go's: a damaged header is an error, not the silent end of the archive; global PAX headers change nothing. What
the two read differently and cannot be mended is told.
"""

import re
import tarfile
from collections.abc import Iterator
from typing import BinaryIO, Self, cast

from snapshotter.errors import FormatError, NotLazy, Reason

BLOCK = 512

# Behind the first header tarfile takes these for the end of the archive. (typeshed does not know them.)
_DAMAGE: tuple[type[tarfile.TarError], ...] = (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError)  # type: ignore[attr-defined]

_USTAR_MAGIC = b"ustar\0"
_GNU_MAGIC = b"ustar  \0"
_STAR_TRAILER = b"tar\0"

# Mode, uid, gid, size and time; a header of V7 has no more. Then the two halves of a device's number.
_NUMBERS = (slice(100, 108), slice(108, 116), slice(116, 124), slice(124, 136), slice(136, 148))
_DEVICE = (slice(329, 337), slice(337, 345))
# What all tools write today, seen at a glance.
_USUAL_NUMBERS = re.compile(rb"(?:[0-7]{7}[ \0]){3}(?:[0-7]{11}[ \0]){2}")
_USUAL_DEVICE = re.compile(rb"(?:[0-7]{7}[ \0]|\0{8}){2}")
# Access and change time of a GNU header.
_GNU_TIMES = (slice(345, 357), slice(357, 369))
_OCTAL = b"01234567"

# Go's archive/tar refuses larger extension headers, and tarfile would read them into memory whole.
_EXTENSION_MAX = 1 << 20
_EXTENSIONS = frozenset({tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK})
# What tarfile takes for headers of the next header, and how they stand in front of it where Go agrees.
_CHAINED = _EXTENSIONS | {tarfile.SOLARIS_XHDTYPE}
_AGREED = (
    [tarfile.XHDTYPE],
    [tarfile.GNUTYPE_LONGNAME],
    [tarfile.GNUTYPE_LONGLINK],
    [tarfile.GNUTYPE_LONGLINK, tarfile.GNUTYPE_LONGNAME],
    [tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK],
)


class _NoGlobals(dict[str, str]):
    """tarfile's store of global PAX headers, which containerd ignores: what is put in is not kept."""

    def __setitem__(self, key: str, value: str) -> None:
        return

    def copy(self) -> dict[str, str]:
        return {}


class _Header(tarfile.TarInfo):
    """TarInfo as Go reads it where tarfile would stop silently or read another name."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        header = super().frombuf(buf, encoding, errors)
        header.read_as_go(buf, encoding, errors)
        return header

    @classmethod
    def _frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str, *, dircheck: bool = True) -> Self:
        """Pythons with the fix for directories behind long names (Debian's 3.11.2 of 2026 too) read through this."""
        header: Self = super()._frombuf(buf, encoding, errors, dircheck=dircheck)  # type: ignore[misc]
        header.read_as_go(buf, encoding, errors, dircheck=dircheck)
        return header

    def read_as_go(self, buf: bytes | bytearray, encoding: str, errors: str, *, dircheck: bool = True) -> None:
        """Mend what tarfile made of a header; an extension that is too large is a FormatError."""
        if self.type in _EXTENSIONS and self.size > _EXTENSION_MAX:
            raise FormatError(f"the layer's tar has an extension header of {self.size} bytes; the limit is 1 MiB")
        raw = bytes(buf)
        is_v7 = raw[257:263] != _USTAR_MAGIC and raw[257:265] != _GNU_MAGIC
        if _USUAL_NUMBERS.match(raw, 100) is None:
            for place in _NUMBERS:
                _check_number(raw[place])
        if not is_v7 and _USUAL_DEVICE.match(raw, 329) is None:
            for place in _DEVICE:
                _check_number(raw[place])
        if is_v7:
            self.uname = self.gname = ""
            self.devmajor = self.devminor = 0
        if self.type == tarfile.GNUTYPE_SPARSE and raw[257:265] != _GNU_MAGIC:
            raise FormatError("the layer's tar has a damaged header: a sparse file of GNU without GNU's mark")
        if self.type in _EXTENSIONS:
            return
        name, prefix = raw[:100].partition(b"\0")[0], _prefix(raw)
        self.name = (prefix + b"/" + name if prefix else name).decode(encoding, errors)
        if dircheck and self.type == tarfile.AREGTYPE and self.name.endswith("/"):
            self.type = tarfile.DIRTYPE

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tar)
        except _DAMAGE as fault:
            raise FormatError(f"the layer's tar has a damaged header near byte {tar.offset}: {fault}") from None


def _check_number(field: bytes) -> None:
    """Refuse what Go refuses in a number, and what it reads otherwise than tarfile: a number behind a NUL."""
    if field[0] & 0x80:
        if field[0] == 0x80 and int.from_bytes(field[1:], "big") >> 63:
            raise FormatError("the layer's tar has a damaged header, with a number of more than 63 bits")
        return
    text = field.strip(b" \0").partition(b"\0")[0]
    if text.translate(None, _OCTAL) or text != field.partition(b"\0")[0].strip(b" "):
        raise FormatError(f"the layer's tar has a damaged header, with {field!r} where a number belongs")


def _prefix(raw: bytes) -> bytes:
    """What stands in front of a header's name: nothing in V7's and GNU's, where other things lie in that place.

    Except in those that Go wrote before its version 1.8, with the magic of GNU and a prefix; its reader knows them by times that are none.
    """
    prefix = raw[345 : 476 if raw[508:512] == _STAR_TRAILER else 500].partition(b"\0")[0]
    if raw[257:263] == _USTAR_MAGIC:
        return prefix
    if raw[257:265] != _GNU_MAGIC or not prefix.isascii():
        return b""
    times = [raw[place] for place in _GNU_TIMES]
    odd = [one for one in times if one[0] and not one[0] & 0x80 and one.strip(b" \0").partition(b"\0")[0].strip(_OCTAL)]
    return prefix if odd else b""


def tar_headers(tar: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """Yield every header of the archive in `tar` (seekable, at any position).

    Raises:
        FormatError: wherever it is not one.
        NotLazy: it has headers that tarfile and Go understand differently.
    """
    end = tar.seek(0, 2)
    tar.seek(0)
    if end == 0:
        return
    try:
        archive = tarfile.TarFile(
            fileobj=tar, tarinfo=_Header, encoding="utf-8", errors="surrogateescape", pax_headers=_NoGlobals()
        )
        while (header := archive.next()) is not None:
            if archive.offset > end:
                raise FormatError(f"the layer's tar ends within {header.name!r}")
            if header.issparse() and sum(size for _, size in sparse_map(header)) > archive.offset - header.offset_data:
                raise FormatError(f"sparse file {header.name!r} has fewer bytes in the layer's tar than its map says")
            _check_extensions(tar, header)
            yield header
            archive.members.clear()  # type: ignore[attr-defined]  # else tarfile keeps every header it read
        _check_end(tar, archive.offset)
    except (tarfile.TarError, ValueError, IndexError, OverflowError, RecursionError) as fault:
        raise FormatError(f"the layer is not a tar that can be read: {fault}") from fault


def _check_extensions(tar: BinaryIO, header: tarfile.TarInfo) -> None:
    """Refuse extension headers of which Go drops some, or prefers others, where tarfile joins them."""
    if header.offset + BLOCK == header.offset_data:
        return
    empty = [key for key in ("path", "linkpath", "size", "uid", "gid", "mtime") if header.pax_headers.get(key) == ""]
    found: list[bytes] = []
    at = header.offset
    while at + BLOCK < header.offset_data:
        tar.seek(at)
        block = tar.read(BLOCK)
        if block[156:157] not in _CHAINED:
            break
        found.append(block[156:157])
        size = block[124:136]
        stored = (
            int.from_bytes(size[1:], "big") if size[0] & 0x80 else int(size.partition(b"\0")[0].strip(b" ") or b"0", 8)
        )
        at += BLOCK + stored + -stored % BLOCK
    nameless = tarfile.GNUTYPE_LONGNAME in found and not header.name
    nameless |= tarfile.GNUTYPE_LONGLINK in found and not header.linkname
    if empty or nameless or (found and found not in _AGREED):
        raise NotLazy(
            Reason.TOC_INVALID,
            f"{header.name[:100]!r} has extension headers in the tar that readers understand differently",
        )


def _check_end(tar: BinaryIO, offset: int) -> None:
    """Refuse more behind one block of zeros: there tarfile stops silently, and Go's reader with an error."""
    tar.seek(offset + BLOCK)
    second = tar.read(BLOCK)
    if second and second != bytes(BLOCK):
        raise FormatError(f"the layer's tar has a lone block of zeros at byte {offset}, and more behind it")


def sparse_map(header: tarfile.TarInfo) -> list[tuple[int, int]]:
    """Offset and size of each piece that a sparse file has in the archive."""
    return cast("list[tuple[int, int]]", header.sparse)
