"""The headers of a tar as Go's archive/tar reads them, which unpacks layers in containerd.

tarfile reads the dialects (V7, ustar, GNU, PAX, three kinds of sparse files). Where it is more lenient this module is as
strict as Go's: a damaged header is an error, not the silent end of the archive; global PAX headers change nothing.
"""

import tarfile
from collections.abc import Iterator
from typing import BinaryIO, Self, cast

from snapshotter.errors import FormatError

BLOCK = 512

# Behind the first header tarfile takes these for the end of the archive. (typeshed does not know them.)
_DAMAGE: tuple[type[tarfile.TarError], ...] = (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError)  # type: ignore[attr-defined]

_GNU_MAGIC = b"ustar  \0"

# Go's archive/tar refuses larger extension headers, and tarfile would read them into memory whole.
_EXTENSION_MAX = 1 << 20
_EXTENSIONS = frozenset({tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK})


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
        if bytes(buf[257:265]) == _GNU_MAGIC and self.type not in _EXTENSIONS:
            # In GNU headers there is no name prefix; times of an incremental backup lie there.
            self.name = bytes(buf[:100]).partition(b"\0")[0].decode(encoding, errors)
            if dircheck and self.type == tarfile.AREGTYPE and self.name.endswith("/"):
                self.type = tarfile.DIRTYPE

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tar)
        except _DAMAGE as fault:
            raise FormatError(f"the layer's tar has a damaged header near byte {tar.offset}: {fault}") from None


def tar_headers(tar: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """Yield every header of the archive in `tar` (seekable, at any position).

    Raises:
        FormatError: wherever it is not one.
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
            yield header
            archive.members.clear()  # type: ignore[attr-defined]  # else tarfile keeps every header it read
        _check_end(tar, archive.offset)
    except (tarfile.TarError, ValueError, IndexError, OverflowError, RecursionError) as fault:
        raise FormatError(f"the layer is not a tar that can be read: {fault}") from fault


def _check_end(tar: BinaryIO, offset: int) -> None:
    """Refuse more behind one block of zeros: there tarfile stops silently, and Go's reader with an error."""
    tar.seek(offset + BLOCK)
    second = tar.read(BLOCK)
    if second and second != bytes(BLOCK):
        raise FormatError(f"the layer's tar has a lone block of zeros at byte {offset}, and more behind it")


def sparse_map(header: tarfile.TarInfo) -> list[tuple[int, int]]:
    """Offset and size of each piece that a sparse file has in the archive."""
    return cast("list[tuple[int, int]]", header.sparse)
