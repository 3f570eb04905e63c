"""A TOC all the way: JSON, tree, index, EROFS image. Anything gives a sound image or a FormatError."""

import json

from hypothesis import given
from hypothesis import strategies as st

from snapshotter.errors import FormatError
from snapshotter.format.erofs import check_image, write_image
from snapshotter.format.index import BuildOptions, Index
from snapshotter.format.index_build import build_index
from tests.format.soundness import check_soundness
from tests.fuzz.corpus import TOCS
from tests.fuzz.mutations import Corpus, mutated, mutated_json
from tests.fuzz.rounds import bounded, fuzzed

DOCUMENTS = Corpus(json.loads(sound.toc_json) for sound in TOCS)
PLACE = b"/_abcdefghij234/node"


def check(toc: bytes, options: BuildOptions) -> None:
    """Take a TOC as far as it goes."""
    with bounded(32 << 20):
        try:
            index = Index(build_index(toc, options), "fuzzed")
        except FormatError:
            return
        check_soundness(index)
        check_positions(index)
        try:
            image = write_image(index, PLACE, lambda identity: PLACE + b"/ab/" + identity.digest.hex().encode())
        except FormatError:
            return
        check_image(image)


def check_positions(index: Index) -> None:
    """Every byte that a reader will ask for lies in the payload, and what a file's chunks cover is the file."""
    for number in range(index.member_count):
        member = index.member(number)
        assert 0 <= member.blob_offset < member.blob_end <= index.payload_end
    for node in range(index.node_count):
        size = index.attributes(node).size
        end = 0
        for chunk in index.chunks(node, 0, size):
            assert chunk.file_offset == end
            assert chunk.member < index.member_count
            end += chunk.size
        assert not index.chunk_count(node) or end == size


@fuzzed(50)
@given(mutated_json(DOCUMENTS), st.integers(0, len(TOCS) - 1), st.booleans())
def test_changed_values_give_a_sound_image_or_format_error(toc: bytes, number: int, allow: bool) -> None:
    options = TOCS[number].options
    check(toc, BuildOptions(options.codec, options.blob_size, options.payload_end, options.layer_digest, allow))


@fuzzed(50)
@given(mutated(Corpus(sound.toc_json for sound in TOCS)), st.integers(0, len(TOCS) - 1))
def test_changed_bytes_give_a_sound_image_or_format_error(toc: bytes, number: int) -> None:
    check(toc, TOCS[number].options)


@fuzzed(50)
@given(
    st.sampled_from((b"[", b'{"a":', b'{"version":1,"entries":[', b'[{"x":')),
    st.integers(1, 200_000),
    st.binary(max_size=20),
)
def test_any_depth_of_brackets_is_format_error(opening: bytes, depth: int, end: bytes) -> None:
    check(b'{"version":1,"entries":' + opening * (depth // len(opening)) + end, TOCS[0].options)
