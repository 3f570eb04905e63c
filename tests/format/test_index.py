"""The index: any TOC, model against tables, torn files."""

import hashlib
import json
import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapshotter.errors import FormatError
from snapshotter.format.codec import Codec
from snapshotter.format.digest import from_raw
from snapshotter.format.index import BuildOptions, Index, Kind
from snapshotter.format.index_build import build_index
from snapshotter.format.layout import HEADER_SIZE
from tests.doubles.layers import block, dir, file, hardlink, layer, symlink, whiteout
from tests.format.soundness import check_soundness, content

THOROUGH = settings(max_examples=4 * settings().max_examples)

OPTIONS = BuildOptions(Codec.GZIP, 2000, 1000, from_raw(bytes(range(32))), allow_unverified=False)

RICH = layer(
    dir("etc"),
    file("etc/passwd", b"root" * 3000, xattrs={"user.a": b"\0", "security.selinux": b"label"}),
    file("etc/copy", b"root" * 3000),
    file("etc/small", b"s", xattrs={"user.a": b"\0", "security.selinux": b"label"}),
    hardlink("etc/link", "etc/passwd"),
    symlink("bin", "usr/bin"),
    block("disk", 8, 0),
    whiteout("old"),
    file("empty"),
    chunk_size=5000,
    prefetch=["etc/small"],
)


# --- reading


def test_header_tells_what_the_layer_is() -> None:
    index = RICH.index()
    assert (index.codec, index.layer_digest, index.toc_digest) == (Codec.GZIP, RICH.digest, RICH.toc_digest)
    assert (index.blob_size, index.payload_end, index.verified) == (RICH.size, RICH.payload_end, True)
    assert (index.node_count, index.entry_count, index.content_size) == (9, 9, 24_001)


def test_index_is_the_same_from_memory_and_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "i.idx"
    path.write_bytes(RICH.index_bytes())
    memory, mapped = RICH.index(), Index.open(path, check=True)
    for index in (memory, mapped):
        node = RICH.node("etc/link", index)
        assert index.attributes(node).nlink == 2
        assert content(RICH, index, node) == b"root" * 3000
        assert index.xattrs(node) == {b"user.a": b"\0", b"security.selinux": b"label"}
    mapped.close()


def test_lookup_finds_every_name_and_no_other() -> None:
    index = layer(*(file(f"d/n{number}") for number in range(100))).index()
    for number in range(100):
        node = index.lookup(1, b"n%d" % number)
        assert node is not None
        assert index.attributes(node).kind is Kind.REG
    for name in (b"", b"n", b"n100", b"zzz", b"N1", b"."):
        assert index.lookup(1, name) is None
    assert index.lookup(2, b"n1") is None


def test_entries_can_be_continued_from_any_position() -> None:
    index = RICH.index()
    whole = list(index.entries(0, 0))
    assert [name for _, name, _ in whole] == [b"bin", b"disk", b"empty", b"etc", b"old"]
    for position, _, _ in whole:
        assert list(index.entries(0, position)) == whole[position:]
    assert list(index.entries(0, 99)) == list(index.entries(RICH.node("empty"), 0)) == []


def test_children_of_a_directory_have_numbers_in_a_row() -> None:
    index = RICH.index()
    assert [node for _, _, node in index.entries(0, 0)] == [1, 2, 3, 4, 5]


def test_digests_are_sorted_distinct_and_found() -> None:
    index = RICH.index()
    table = list(index.digests())
    assert [digest for digest, _, _ in table] == sorted(
        {hashlib.sha256(data).digest() for data in (b"s", b"root" * 3000)}
    )
    for digest, size, node in table:
        assert index.find(digest) == node
        assert index.digest(node) == digest
        assert index.attributes(node).size == size
    for absent in (bytes(32), b"\xff" * 32, b"short"):
        assert index.find(absent) is None


def test_files_with_equal_content_have_one_identity() -> None:
    index = RICH.index()
    first, second = index.identity(RICH.node("etc/passwd")), index.identity(RICH.node("etc/copy"))
    assert first == second
    assert [size for _, size, _ in first.chunks] == [5000, 5000, 2000]
    assert index.digest(RICH.node("empty")) == b""
    assert index.identity(RICH.node("empty")).chunks == ()


@pytest.mark.parametrize("node", [-1, 9, 1 << 40])
def test_number_that_is_no_node_is_index_error(node: int) -> None:
    index = RICH.index()
    for method in (index.attributes, index.xattrs, index.digest, index.parent, index.readlink, index.identity):
        with pytest.raises(IndexError):
            method(node)
    with pytest.raises(IndexError):
        index.member(index.member_count)


def test_index_is_a_function_of_toc_and_options() -> None:
    assert RICH.index_bytes() == RICH.index_bytes()


def test_node_numbers_do_not_depend_on_the_order_of_the_toc() -> None:
    entries = [dir("b"), file("b/y"), file("b/x"), file("a"), symlink("c", "a"), dir("d/e")]
    paths = ["a", "b", "b/x", "b/y", "c", "d", "d/e"]
    numbers = []
    for seed in range(5):
        shuffled = random.Random(seed).sample(entries, len(entries))
        built = layer(*shuffled)
        index = built.index()
        numbers.append([built.node(path, index) for path in paths])
    assert numbers == [numbers[0]] * 5


def test_empty_layer_has_a_root() -> None:
    index = layer().index()
    assert (index.node_count, index.entry_count, index.member_count, index.content_size) == (1, 0, 0, 0)
    assert list(index.entries(0, 0)) == []


def test_an_entry_costs_at_most_250_bytes_and_its_name() -> None:
    entries = [file(f"directory/a-file-name-of-some-length-{number:06}", b"%d" % number) for number in range(2000)]
    built = layer(*entries, edit=None, level=0)
    assert len(built.index_bytes()) < 2000 * 250


def test_million_entries_become_an_index() -> None:
    digest = "sha256:" + "1" * 64
    row = '{"name":"d%03d/f%06d","type":"reg","size":9,"offset":7,"chunkDigest":"%s"}'
    rows = ",".join(row % (number // 1000, number, digest) for number in range(1_000_000))
    index = Index(build_index(('{"version":1,"entries":[' + rows + "]}").encode(), OPTIONS), "large")
    assert (index.node_count, index.member_count, index.content_size) == (1_001_001, 1, 9_000_000)


# --- torn files


def test_file_cut_off_anywhere_is_format_error(tmp_path: Path) -> None:
    data = RICH.index_bytes()
    path = tmp_path / "i.idx"
    for length in [*range(HEADER_SIZE + 2), len(data) // 2, len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(FormatError):
            Index.open(path)


def test_any_flipped_byte_of_the_header_is_format_error() -> None:
    data = RICH.index_bytes()
    for position in range(HEADER_SIZE):
        torn = bytearray(data)
        torn[position] ^= 0x20
        with pytest.raises(FormatError):
            Index(bytes(torn), "torn")


def test_damaged_body_is_found_when_asked_for(tmp_path: Path) -> None:
    data = bytearray(RICH.index_bytes())
    data[-1] ^= 1
    path = tmp_path / "i.idx"
    path.write_bytes(data)
    Index.open(path).close()
    with pytest.raises(FormatError, match="body"):
        Index.open(path, check=True)


def test_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Index.open(tmp_path / "none")


# --- any input


@given(st.binary(max_size=300))
def test_any_bytes_give_an_index_or_format_error(data: bytes) -> None:
    with suppress(FormatError):
        build_index(data, OPTIONS)


FIELDS = {
    "name": st.sampled_from(["a", "a/", "a/b", "./c", ".wh.a", ".wh..wh..opq", "a/.wh.b", "..", "", "/x", "é", "."]),
    "type": st.sampled_from(["dir", "reg", "symlink", "hardlink", "char", "block", "fifo", "chunk", "x", ""]),
    "linkName": st.sampled_from(["a", "a/b", "..", "", "c", "/a"]),
    "modtime": st.sampled_from(["", "2024-01-01T00:00:00Z", "2024-13-01T00:00:00Z", "1900-01-01T00:00:00Z"]),
    "xattrs": st.dictionaries(st.sampled_from(["user.a", "trusted.b", "x", ""]), st.sampled_from(["", "AA==", "!"])),
    "digest": st.sampled_from(["", "sha256:" + "1" * 64, "sha256:" + "2" * 64, "sha512:1"]),
    "chunkDigest": st.sampled_from(["", "sha256:" + "1" * 64, "sha256:" + "2" * 64, "?"]),
    "chunkType": st.sampled_from(["", "zeros", "x"]),
} | dict.fromkeys(
    [
        "size",
        "mode",
        "uid",
        "gid",
        "offset",
        "innerOffset",
        "devMajor",
        "devMinor",
        "chunkOffset",
        "chunkSize",
        "endOffset",
    ],
    st.sampled_from([0, 0, 1, 2, 3, 10, 999, 1000, -1, 1 << 31, 1 << 32, 1 << 63, 1 << 64]),
)

rows = st.fixed_dictionaries(
    {key: FIELDS[key] for key in ("name", "type")},
    optional={key: value for key, value in FIELDS.items() if key not in ("name", "type")},
)


@THOROUGH
@given(st.lists(rows, max_size=6), st.booleans())
def test_any_entries_give_a_readable_index_or_format_error(entries: list[dict[str, Any]], allow: bool) -> None:
    options = BuildOptions(OPTIONS.codec, 2000, 1000, OPTIONS.layer_digest, allow)
    toc = json.dumps({"version": 1, "entries": entries}).encode()
    try:
        index = Index(build_index(toc, options), "any")
    except FormatError:
        return
    check_soundness(index)


@THOROUGH
@given(st.data())
def test_sound_toc_with_one_changed_field_gives_a_sound_index_or_format_error(data: st.DataObject) -> None:
    toc = json.loads(RICH.toc_json)
    row = data.draw(st.sampled_from(toc["entries"]))
    field = data.draw(st.sampled_from(sorted(FIELDS)))
    row[field] = data.draw(FIELDS[field] | st.integers() | st.text(max_size=5) | st.none())
    try:
        index = Index(build_index(json.dumps(toc).encode(), RICH.options()), "changed")
    except FormatError:
        return
    check_soundness(index)


def test_toc_with_any_flipped_byte_gives_a_sound_index_or_format_error() -> None:
    for position in range(0, len(RICH.toc_json), 3):
        flipped = bytearray(RICH.toc_json)
        flipped[position] ^= 1 << position % 8
        try:
            index = Index(build_index(bytes(flipped), RICH.options()), "flipped")
        except FormatError:
            continue
        check_soundness(index)
