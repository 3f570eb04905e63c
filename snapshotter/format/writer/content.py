"""The bytes of a scanned layer: contents with their holes filled, and headers as they came."""

from typing import BinaryIO

from snapshotter.errors import FormatError
from snapshotter.format.tar_entries import TarEntry


def read_content(entry: TarEntry, tar: BinaryIO, start: int, size: int) -> bytes:
    """Return `size` bytes of a regular file from `start`, its holes filled with zeros.

    Raises:
        FormatError: the tar ends before.
    """
    if entry.content is not None:
        return entry.content[start : start + size]
    if entry.extents is None:
        return _read_at(tar, entry.header_offset + entry.header_size + start, size, entry.name)
    end = start + size
    pieces: list[bytes] = []
    at = start
    for extent in entry.extents:
        low, high = max(at, extent.file_offset), min(end, extent.file_offset + extent.size)
        if low < high:
            if at < low:
                pieces.append(bytes(low - at))
            tar_offset = extent.tar_offset + low - extent.file_offset
            pieces.append(_read_at(tar, tar_offset, high - low, entry.name))
            at = high
    if at < end:
        pieces.append(bytes(end - at))
    return b"".join(pieces) if len(pieces) > 1 else pieces[0]


def read_header(entry: TarEntry, tar: BinaryIO) -> bytes:
    """Return the header blocks of an entry that has some in the tar.

    Raises:
        FormatError: the tar ends before.
    """
    return _read_at(tar, entry.header_offset, entry.header_size, entry.name)


def _read_at(tar: BinaryIO, offset: int, size: int, name: str) -> bytes:
    tar.seek(offset)
    data = tar.read(size)
    if len(data) != size:
        raise FormatError(f"the layer's tar ends within {name!r}")
    return data
