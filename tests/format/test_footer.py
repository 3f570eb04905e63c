"""Footers of every dialect, their TOCs, and what is none."""

import gzip
import struct
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapshotter.errors import FormatError
from snapshotter.format import footer as footers
from snapshotter.format.codec import Codec
from snapshotter.format.footer import (
    TAIL_MIN,
    Flavor,
    Footer,
    first_tail_size,
    footer_from_annotations,
    parse_footer,
    section_in,
    toc_anchor,
    toc_json,
)
from snapshotter.format.limits import TOC_RAW
from snapshotter.format.zstd import zstd
from tests.doubles.layers import BuiltLayer, dir, file, gzip_footer, layer, sha256, skippable

POSITION = "io.github.containers.zstd-chunked.manifest-position"
CHECKSUM = "io.github.containers.zstd-chunked.manifest-checksum"


def build(flavor: Flavor, *, storage: bool = False) -> BuiltLayer:
    return layer(dir("d/"), file("d/f", b"content" * 100), flavor=flavor, storage=storage)


DIALECTS = {
    "estargz": build(Flavor.ESTARGZ),
    "stargz": build(Flavor.STARGZ),
    "external": build(Flavor.EXTERNAL),
    "zstd-40": build(Flavor.ZSTD_CHUNKED),
    "zstd-64": build(Flavor.ZSTD_CHUNKED, storage=True),
}

every_dialect = pytest.mark.parametrize("built", DIALECTS.values(), ids=DIALECTS.keys())


def section(built: BuiltLayer, footer: Footer) -> bytes:
    return built.external_toc or built.blob[footer.toc_offset : footer.toc_end]


@every_dialect
def test_footer_and_toc_of_every_dialect_are_read(built: BuiltLayer) -> None:
    footer = parse_footer(built.blob[-TAIL_MIN:], built.size)
    assert (footer.flavor, footer.codec, footer.payload_end) == (built.flavor, built.codec, built.payload_end)
    assert toc_json(footer, section(built, footer)) == built.toc_json


@every_dialect
def test_footer_is_found_in_a_longer_tail_and_in_the_whole_blob(built: BuiltLayer) -> None:
    expected = parse_footer(built.blob[-TAIL_MIN:], built.size)
    assert parse_footer(built.blob[-200:], built.size) == parse_footer(built.blob, built.size) == expected


@every_dialect
def test_blob_cut_off_anywhere_has_no_footer(built: BuiltLayer) -> None:
    for length in range(built.size):
        with pytest.raises(FormatError):
            parse_footer(built.blob[:length][-TAIL_MIN:], length)


@every_dialect
def test_footer_with_any_flipped_bit_is_format_error_or_stays_inside_the_blob(built: BuiltLayer) -> None:
    for position in range(1, 73):
        for bit in range(8):
            tail = bytearray(built.blob[-TAIL_MIN:])
            tail[-position] ^= 1 << bit
            try:
                footer = parse_footer(bytes(tail), built.size)
            except FormatError:
                continue
            assert 0 <= footer.payload_end <= footer.toc_offset <= footer.toc_end <= built.size


@every_dialect
def test_toc_cut_off_anywhere_is_format_error(built: BuiltLayer) -> None:
    footer = parse_footer(built.blob, built.size)
    whole = section(built, footer)
    for length in range(len(whole)):
        with pytest.raises(FormatError):
            toc_json(footer, whole[:length])


@every_dialect
def test_toc_with_any_flipped_byte_is_format_error_or_has_another_digest(built: BuiltLayer) -> None:
    footer = parse_footer(built.blob, built.size)
    whole = section(built, footer)
    for position in range(len(whole)):
        flipped = bytearray(whole)
        flipped[position] ^= 0x55
        try:
            plain = toc_json(footer, bytes(flipped))
        except FormatError:
            continue
        assert plain == built.toc_json or sha256(plain) != built.toc_digest


@given(st.binary(max_size=200), st.sampled_from([b"", *(built.blob[-60:] for built in DIALECTS.values())]))
def test_any_tail_gives_footer_or_format_error(tail: bytes, end: bytes) -> None:
    data = tail + end[-40:]
    try:
        footer = parse_footer(data, len(data))
    except FormatError:
        return
    assert 0 <= footer.toc_offset <= footer.toc_end <= len(data)


@given(st.binary(max_size=300), st.sampled_from(Codec), st.booleans())
def test_any_section_gives_json_or_format_error(data: bytes, codec: Codec, packed: bool) -> None:
    if packed:
        data = gzip.compress(data, mtime=0) if codec is Codec.GZIP else zstd.compress(data)
    footer = Footer(Flavor.ESTARGZ, codec, 0, len(data), None, 0)
    with suppress(FormatError):
        assert isinstance(toc_json(footer, data), bytes)


def test_ordinary_layer_is_named_so_in_one_sentence() -> None:
    with pytest.raises(
        FormatError, match="this layer is an ordinary tar layer, neither eStargz nor zstd:chunked"
    ) as caught:
        parse_footer(gzip.compress(b"x" * 1000)[-TAIL_MIN:], 5000)
    assert len(str(caught.value)) < 200


def test_xfl_os_and_mtime_of_the_footers_gzip_header_do_not_matter() -> None:
    built = DIALECTS["estargz"]
    tail = bytearray(built.blob[-51:])
    tail[4:10] = b"\x01\x02\x03\x04\x02\x03"
    assert parse_footer(bytes(tail), built.size) == parse_footer(built.blob, built.size)


@pytest.mark.parametrize("digits", [b"00000000000000zz", b"-000000000000001", b"0x00000000000001", b" 00000000000001 "])
def test_offset_that_is_not_hexadecimal_is_format_error(digits: bytes) -> None:
    with pytest.raises(FormatError):
        parse_footer(gzip_footer(b"SG\x16\0" + digits + b"STARGZ"), 1000)


@pytest.mark.parametrize("offset", [949, 1000, 1 << 63])
def test_toc_offset_behind_the_footer_is_format_error(offset: int) -> None:
    with pytest.raises(FormatError, match="TOC"):
        parse_footer(gzip_footer(b"SG\x16\0" + b"%016x" % offset + b"STARGZ"), 1000)


@pytest.mark.parametrize(
    "fields",
    [(7, 10, 10, 1), (8, 0, 10, 1), (8, 2000, 10, 1), (1 << 63, 10, 10, 1), (8, 10, TOC_RAW + 1, 1), (8, 10, 10, 2)],
)
def test_zstd_footer_that_cannot_be_meant_is_format_error(fields: tuple[int, int, int, int]) -> None:
    body = struct.pack("<4Q", *fields) + b"GnUlInUx"
    with pytest.raises(FormatError):
        parse_footer(skippable(body), 1000)


@pytest.mark.parametrize("prefix", ["io.containers.zstd-chunked", "io.github.containers.zstd-chunked"])
def test_both_annotation_prefixes_give_the_footer_and_the_anchor(prefix: str) -> None:
    built = DIALECTS["zstd-40"]
    found = parse_footer(built.blob, built.size)
    notes = {f"{prefix}.{key.rpartition('.')[2]}": value for key, value in built.annotations.items() if "zstd" in key}
    assert footer_from_annotations(notes, built.size) == found
    assert toc_anchor(notes) == sha256(section(built, found))


def test_layer_without_zstd_annotations_has_neither_footer_nor_anchor_in_them() -> None:
    notes = DIALECTS["estargz"].annotations
    assert footer_from_annotations(notes, 1000) is None
    assert toc_anchor(notes) is None


@pytest.mark.parametrize(
    "value", ["", "1:2:3", "1:2:3:1:5", "a:b:c:d", "-8:2:3:1", "8:2:3:١", "900:200:3:1", "9" * 30 + ":1:1:1"]
)
def test_position_annotation_that_cannot_be_meant_is_format_error(value: str) -> None:
    with pytest.raises(FormatError):
        footer_from_annotations({POSITION: value}, 1000)


def test_checksum_annotation_that_is_no_digest_is_format_error() -> None:
    with pytest.raises(FormatError):
        toc_anchor({CHECKSUM: "md5:00"})


def test_zstd_toc_longer_than_its_footer_says_is_stopped() -> None:
    packed = zstd.compress(bytes(10_000_000))
    with pytest.raises(FormatError, match="more than 100 bytes"):
        toc_json(Footer(Flavor.ZSTD_CHUNKED, Codec.ZSTD, 8, 8 + len(packed), 100, 0), packed)


def test_gzip_toc_over_the_limit_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(footers, "TOC_RAW", 1000)
    packed = gzip.compress(bytes(10_000_000))
    with pytest.raises(FormatError, match="more than"):
        toc_json(Footer(Flavor.ESTARGZ, Codec.GZIP, 0, len(packed), None, 0), packed)


@every_dialect
def test_tail_has_all_of_the_toc_or_its_end_or_nothing(built: BuiltLayer) -> None:
    footer = parse_footer(built.blob, built.size)
    whole = built.blob[footer.toc_offset : footer.toc_end]
    for size in range(built.size + 1):
        lacking = min(max(built.size - size - footer.toc_offset, 0), len(whole))
        assert section_in(built.blob[built.size - size :], footer, built.size) == whole[lacking:]


def test_first_tail_is_a_64th_of_the_blob_within_bounds() -> None:
    sizes = (0, 1000, 1 << 20, 64 << 20, 1 << 33)
    assert [first_tail_size(size) for size in sizes] == [0, 1000, 128 << 10, 1 << 20, 4 << 20]


def test_first_tail_of_another_version_of_a_layer_is_a_little_more_than_that_one_took() -> None:
    known = [(10_000_000, 300_000), (11_200_000, 500_000), (50_000_000, 9)]
    assert first_tail_size(10_100_000, known) == 300_000 + 300_000 // 32 + TAIL_MIN
    assert first_tail_size(30_000_000, known) == first_tail_size(30_000_000)
    assert first_tail_size(1000, [(1000, 900)]) == 1000
