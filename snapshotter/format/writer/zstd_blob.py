"""A blob of zstd frames: zstd:chunked, in the dialects of stargz-snapshotter and of containers/storage at once.

    [frame]*  [skippable frame with the TOC]  [skippable frame with the tar-split]  [skippable frame of 48 bytes, the footer]

stargz-snapshotter finds the TOC by the footer; containers/storage by annotations, which also name the tar-split. Whoever
knows neither inflates a tar: skippable frames are nothing to a decoder.

Source: stargz-snapshotter estargz/zstdchunked; containers/storage pkg/chunked/internal/minimal; RFC 8878, section 3.1.2.
"""

import struct

from snapshotter.format.digest import digest_of
from snapshotter.format.zstd import zstd

_SKIPPABLE_MAGIC = b"\x50\x2a\x4d\x18"
_SKIPPABLE_HEADER = 8
_TYPE_CRFS = 1
_PIECE = 1 << 20

_STORAGE = "io.github.containers.zstd-chunked."
_STARGZ = "io.containers.zstd-chunked."


def pack(plain: bytes, level: int) -> bytes:
    """Return a frame that unfolds to `plain`. No checksum: the TOC has digests, and the blob has one."""
    return zstd.compress(plain, level)


def _pack_large(plain: bytes | bytearray, level: int) -> bytes:
    """The same in pieces: in one call zstd takes as much memory for the result as for what it is made of."""
    compressor = zstd.ZstdCompressor(level=level)
    compressor.set_pledged_input_size(len(plain))
    view = memoryview(plain)
    packed = [compressor.compress(view[start : start + _PIECE]) for start in range(0, len(view), _PIECE)]
    return b"".join((*packed, compressor.flush()))


class Ending:
    """What follows the frames of a blob, and what the layer's descriptor says of it."""

    def __init__(self, document: bytes | bytearray, split: bytes, split_raw_size: int, level: int, offset: int) -> None:
        """`offset` is where the frames end."""
        toc = _pack_large(document, level)
        toc_offset = offset + _SKIPPABLE_HEADER
        split_offset = toc_offset + len(toc) + _SKIPPABLE_HEADER
        position = (toc_offset, len(toc), len(document), _TYPE_CRFS)
        footer = _footer(position)
        # Not joined: of a layer with very many files the first two take megabytes.
        self.pieces = (_skip(toc), toc, _skip(split), split, _skip(footer), footer)
        self.annotations = {
            **toc_annotations(toc, toc_offset, len(document)),
            _STORAGE + "tarsplit-position": f"{split_offset}:{len(split)}:{split_raw_size}",
        }


def toc_annotations(toc: bytes, offset: int, raw_size: int) -> dict[str, str]:
    """What a layer's descriptor says, in both dialects, of the compressed `toc` at a blob's byte `offset`."""
    position = ":".join(map(str, (offset, len(toc), raw_size, _TYPE_CRFS)))
    found = {"manifest-checksum": digest_of(toc), "manifest-position": position}
    return {dialect + key: value for dialect in (_STORAGE, _STARGZ) for key, value in found.items()}


def _footer(position: tuple[int, int, int, int]) -> bytes:
    """4 × 8 position + 8 magic: 40 bytes."""
    return struct.pack("<4Q", *position) + b"GnUlInUx"


def _skip(body: bytes) -> bytes:
    """The header of a skippable frame with that body."""
    return _SKIPPABLE_MAGIC + struct.pack("<L", len(body))
