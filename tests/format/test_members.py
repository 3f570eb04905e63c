"""The member decoder."""

import gzip
import itertools
import os
import tracemalloc
import zlib
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapshotter.errors import FormatError
from snapshotter.format.codec import Codec
from snapshotter.format.limits import PIECE
from snapshotter.format.members import MemberDecoder, inflate
from snapshotter.format.zstd import zstd
from tests.doubles.layers import compress

every_codec = pytest.mark.parametrize("codec", list(Codec))


@given(st.sampled_from(Codec), st.binary(max_size=5000), st.integers(1, 700), st.binary(max_size=40))
def test_member_fed_in_any_pieces_comes_out_whole(codec: Codec, data: bytes, step: int, behind: bytes) -> None:
    packed = compress(codec, data)
    fed = packed + behind
    decoder = MemberDecoder(codec)
    out = b""
    for start in range(0, len(fed), step):
        out += b"".join(decoder.feed(fed[start : start + step]))
        if decoder.eof:
            assert decoder.unused == fed[len(packed) : start + step]
            break
    assert decoder.eof
    assert out == data


@given(st.sampled_from(Codec), st.binary(max_size=300))
def test_any_bytes_give_pieces_or_format_error(codec: Codec, data: bytes) -> None:
    decoder = MemberDecoder(codec)
    with suppress(FormatError):
        assert all(len(piece) <= PIECE for piece in decoder.feed(data))


@every_codec
def test_member_with_any_flipped_byte_never_gives_other_bytes_at_its_end(codec: Codec) -> None:
    data = os.urandom(200) + b"repeat" * 50
    # zstd frames carry a checksum only if their writer asked for one: digests protect the content in any case.
    options: dict[int, int] = {zstd.CompressionParameter.checksum_flag: 1}
    packed = gzip.compress(data, mtime=0) if codec is Codec.GZIP else zstd.compress(data, options=options)
    for position in range(len(packed)):
        flipped = bytearray(packed)
        flipped[position] ^= 0x10
        decoder = MemberDecoder(codec)
        try:
            out = b"".join(decoder.feed(bytes(flipped)))
        except FormatError:
            continue
        assert out == data or not decoder.eof


@every_codec
def test_member_cut_off_anywhere_has_no_end(codec: Codec) -> None:
    packed = compress(codec, b"some content" * 20)
    for length in range(len(packed)):
        decoder = MemberDecoder(codec)
        b"".join(decoder.feed(packed[:length]))
        assert not decoder.eof
        with pytest.raises(FormatError, match="cut off"):
            inflate(codec, packed[:length], 1 << 20)


@every_codec
def test_bomb_comes_in_pieces_of_a_mebibyte_and_is_stopped_by_stopping(codec: Codec) -> None:
    bomb = compress(codec, bytes(200 << 20))
    tracemalloc.start()
    try:
        pieces = list(itertools.islice(MemberDecoder(codec).feed(bomb), 5))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [len(piece) for piece in pieces] == [PIECE] * 5
    assert peak < 12 << 20


@every_codec
def test_bomb_in_inflate_ends_at_the_limit(codec: Codec) -> None:
    with pytest.raises(FormatError, match="more than 5000000 bytes"):
        inflate(codec, compress(codec, bytes(50 << 20)), 5_000_000)


def test_zstd_window_beyond_128_mib_is_format_error() -> None:
    options: dict[int, int] = {
        zstd.CompressionParameter.window_log: 28,
        zstd.CompressionParameter.enable_long_distance_matching: 1,
    }
    packer = zstd.ZstdCompressor(options=options)
    packed = packer.compress(bytes(300 << 20)) + packer.flush()
    with pytest.raises(FormatError):
        b"".join(MemberDecoder(Codec.ZSTD).feed(packed))


@every_codec
def test_feeding_behind_the_end_is_format_error(codec: Codec) -> None:
    decoder = MemberDecoder(codec)
    assert b"".join(decoder.feed(compress(codec, b"x"))) == b"x"
    assert list(decoder.feed(b"")) == []
    with pytest.raises(FormatError, match="behind the end"):
        list(decoder.feed(b"more"))


def test_bare_deflate_and_zlib_streams_are_no_gzip_members() -> None:
    with pytest.raises(FormatError):
        list(MemberDecoder(Codec.GZIP).feed(zlib.compress(b"data")))


@every_codec
def test_empty_member_ends_without_a_piece(codec: Codec) -> None:
    decoder = MemberDecoder(codec)
    assert list(decoder.feed(compress(codec, b""))) == []
    assert decoder.eof
