"""A layer's blob as a plain tar, whatever compresses it: gzip, zstd or nothing, told by its first bytes."""

import gzip
import hashlib
import zlib
from collections.abc import Callable
from typing import BinaryIO, Protocol, cast

from isal import igzip, igzip_lib

from snapshotter.errors import FormatError

from .digest import Digest, from_raw
from .limits import ZSTD_WINDOW_LOG
from .zstd import zstd

_PIECE = 1 << 20
_GZIP = b"\x1f\x8b"
# A frame (RFC 8878, section 3.1.1) or any of the sixteen skippable ones (section 3.1.2), little endian.
_ZSTD = (b"\x28\xb5\x2f\xfd", *(bytes((0x50 | n, 0x2A, 0x4D, 0x18)) for n in range(16)))
_ZSTD_OPTIONS = {int(zstd.DecompressionParameter.window_log_max): ZSTD_WINDOW_LOG}

# isal's stub declares its error as an instance.
_ISAL_ERROR = cast("type[Exception]", igzip_lib.error)
_DAMAGE = (EOFError, gzip.BadGzipFile, _ISAL_ERROR, zlib.error, zstd.ZstdError)


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


def unheard(size: int, /) -> None:
    """Be told of progress and do nothing."""


def copy_plain(blob: BinaryIO, tar: BinaryIO, on_progress: Callable[[int], None] = unheard) -> Digest:
    """Write the plain tar inside `blob` (read from its start) to `tar`, and return the sha256 of it: the DiffID.

    Several gzip members or zstd frames follow each other as in one file. Memory is bounded whatever the blob unfolds
    to. `on_progress` is told how many plain bytes were written since it was last called.

    Raises:
        FormatError: damaged, cut off, or followed by something else.
    """
    reader = _opened(blob)
    whole = hashlib.sha256()
    while True:
        try:
            piece = reader.read(_PIECE)
        except _DAMAGE as fault:
            raise FormatError(f"the layer's compressed data is damaged or cut off: {fault}") from fault
        if not piece:
            return from_raw(whole.digest())
        whole.update(piece)
        tar.write(piece)
        on_progress(len(piece))


def _opened(blob: BinaryIO) -> _Readable:
    blob.seek(0)
    magic = blob.read(4)
    blob.seek(0)
    if magic.startswith(_GZIP):
        return cast("_Readable", igzip.IGzipFile(fileobj=blob))  # type: ignore[no-untyped-call]
    if magic in _ZSTD:
        return zstd.ZstdFile(blob, options=_ZSTD_OPTIONS)
    return blob
