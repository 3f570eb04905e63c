"""Decoding of one gzip member or one zstd frame with bounded memory.

isal inflates two to three times as fast as zlib and checks the gzip trailer; backports.zstd is Python 3.14's
`compression.zstd`, whose decompressor stops at the end of its frame and takes a `max_length`. The `zstandard` package
has no such bound on output: one call may return all that its input unfolds to, 32 MiB per KiB.
"""

from collections.abc import Iterator
from typing import cast

from isal import igzip_lib

from snapshotter.errors import FormatError

from .codec import Codec
from .limits import PIECE, ZSTD_WINDOW_LOG
from .zstd import zstd

_ZSTD_OPTIONS: dict[int, int] = {zstd.DecompressionParameter.window_log_max: ZSTD_WINDOW_LOG}
_FAULTS = (cast("type[Exception]", igzip_lib.IsalError), zstd.ZstdError, EOFError, MemoryError)


class MemberDecoder:
    """Decoder of one member, fed with compressed bytes as they arrive.

    A decoder is used once and by one thread at a time. The GIL is released while it inflates.
    """

    __slots__ = ("_codec", "_decoder")

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._decoder: igzip_lib.IgzipDecompressor | zstd.ZstdDecompressor
        if codec is Codec.ZSTD:
            self._decoder = zstd.ZstdDecompressor(options=_ZSTD_OPTIONS)
        else:
            self._decoder = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)

    @property
    def eof(self) -> bool:
        """Whether the member has ended, its checksum being right."""
        return self._decoder.eof

    @property
    def unused(self) -> bytes:
        """Bytes fed that lie behind the end of the member."""
        return self._decoder.unused_data

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield what `data` unfolds to in pieces of at most 1 MiB.

        Each piece is inflated when it is asked for: a caller that has enough stops iterating and drops the decoder.
        The iterator must be exhausted before `feed` is called again.

        Raises:
            FormatError: the bytes are not such a member, are damaged, fail their checksum, or go on behind its end.
        """
        decoder = self._decoder
        if decoder.eof:
            if data:
                raise FormatError(f"{self._codec} data goes on behind the end of its member")
            return
        while True:
            try:
                piece = decoder.decompress(data, PIECE)
            except _FAULTS as fault:
                raise FormatError(f"a {self._codec} member is damaged: {fault}") from fault
            data = b""
            if not piece:
                return
            yield piece
            if decoder.eof or decoder.needs_input:
                return


def inflate(codec: Codec, member: bytes, limit: int) -> bytes:
    """Return all that one whole member unfolds to; what follows the member is ignored.

    Raises:
        FormatError: damaged, cut off, or longer than `limit` bytes.
    """
    decoder = MemberDecoder(codec)
    out = bytearray()
    for piece in decoder.feed(member):
        out += piece
        if len(out) > limit:
            raise FormatError(f"a {codec} member unfolds to more than {limit} bytes")
    if not decoder.eof:
        raise FormatError(f"a {codec} member is cut off after {len(member)} bytes")
    return bytes(out)
