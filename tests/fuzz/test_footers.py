"""Footers and annotations that were sound: whatever is changed in them, what they point at lies inside the blob."""

from hypothesis import given
from hypothesis import strategies as st

from snapshotter.errors import FormatError
from snapshotter.format.footer import Flavor, Footer, footer_from_annotations, parse_footer, toc_anchor, toc_json
from snapshotter.format.limits import TOC_COMPRESSED, TOC_RAW
from tests.fuzz.corpus import BLOBS, BUILT
from tests.fuzz.mutations import BORDERS, TEXTS, Corpus, mutated
from tests.fuzz.rounds import bounded, fuzzed

POSITIONS = [
    {key: value for key, value in built.annotations.items() if "chunked" in key}
    for built in BUILT
    if built.flavor is Flavor.ZSTD_CHUNKED
]


def check(footer: Footer, blob_size: int) -> None:
    """What every user of a footer relies on."""
    assert 0 <= footer.payload_end <= footer.toc_offset <= footer.toc_end <= blob_size
    assert footer.toc_end - footer.toc_offset <= TOC_COMPRESSED
    assert footer.toc_raw_size is None or 0 <= footer.toc_raw_size <= TOC_RAW


@fuzzed(50)
@given(mutated(Corpus(blob[-400:] for blob in BLOBS), spare=72), st.sampled_from((0, 1, 5000, 1 << 33, 1 << 62)))
def test_changed_footer_points_into_the_blob_or_is_format_error(tail: bytes, before: int) -> None:
    size = len(tail) + before
    try:
        footer = parse_footer(tail, size)
    except FormatError:
        return
    check(footer, size)


@fuzzed(50)
@given(mutated(Corpus(BLOBS), spare=600))
def test_changed_blob_gives_a_toc_of_bounded_size_or_format_error(blob: bytes) -> None:
    with bounded(8 << 20):
        try:
            footer = parse_footer(blob, len(blob))
            check(footer, len(blob))
            plain = toc_json(footer, blob[footer.toc_offset : footer.toc_end])
        except FormatError:
            return
        assert len(plain) <= TOC_RAW


NUMBERS = st.sampled_from(BORDERS).map(str) | st.sampled_from(
    ("", "-1", "+1", "1e3", "0x10", " 1", "１", "1_0", "9" * 30)
)


@fuzzed(50)
@given(
    st.sampled_from(POSITIONS),
    st.lists(NUMBERS, min_size=1, max_size=5).map(":".join) | st.sampled_from(TEXTS) | st.text(max_size=30),
    st.sampled_from(TEXTS) | st.text(max_size=80),
    st.sampled_from((0, 100, 10_000, 1 << 40)),
)
def test_changed_annotations_give_a_footer_inside_the_blob_or_format_error(
    sound: dict[str, str], position: str, checksum: str, size: int
) -> None:
    changed = {key: position if "position" in key else checksum for key in sound}
    try:
        footer = footer_from_annotations(changed, size)
    except FormatError:
        footer = None
    if footer is not None:
        check(footer, size)
    try:
        anchor = toc_anchor(changed)
    except FormatError:
        return
    assert anchor == checksum
