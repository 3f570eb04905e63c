"""Chunks: coverage of their file, place in the blob, digests, members."""

import hashlib
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from snapshotter.errors import FormatError
from snapshotter.format import chunks
from snapshotter.format.digest import raw
from snapshotter.format.footer import Flavor
from snapshotter.format.index import Index
from snapshotter.format.index_build import build_index
from snapshotter.format.limits import CHUNK_SIZE, FILE_SIZE
from tests.doubles.layers import BuiltLayer, Entry, file, layer, sha256

DATA = bytes(range(256)) * 40  # 10 240 bytes: chunks of 4096, 4096 and 2048


def edited(*changes: tuple[int, str, Any], data: bytes = DATA, **more: Any) -> BuiltLayer:
    """A layer of one file in three chunks; each change sets a field of a row, or drops it if None."""

    def edit(toc: dict[str, Any]) -> None:
        for row, field, value in changes:
            toc["entries"][row][field] = value
            if value is None:
                del toc["entries"][row][field]

    return layer(file("f", data), chunk_size=4096, edit=edit, **more)


def test_three_chunks_are_found_by_range() -> None:
    index = edited().index()
    chunks = index.chunks(1, 0, len(DATA))
    assert [(chunk.ordinal, chunk.file_offset, chunk.size, chunk.member) for chunk in chunks] == [
        (0, 0, 4096, 0),
        (1, 4096, 4096, 1),
        (2, 8192, 2048, 2),
    ]
    assert [chunk.digest for chunk in chunks] == [
        hashlib.sha256(DATA[at : at + 4096]).digest() for at in (0, 4096, 8192)
    ]
    assert [chunk.ordinal for chunk in index.chunks(1, 4095, 2)] == [0, 1]
    assert [chunk.ordinal for chunk in index.chunks(1, 4096, 1)] == [1]
    assert index.chunks(1, len(DATA), 10) == index.chunks(1, 0, 0) == index.chunks(0, 0, 10) == ()
    assert index.chunk_count(1) == 3


def test_missing_size_of_the_last_chunk_is_what_remains() -> None:
    assert edited((2, "chunkSize", None)).index().chunks(1, 9000, 1)[0].size == 2048


@pytest.mark.parametrize(
    "changes",
    [
        [(1, "chunkOffset", 4095)],
        [(1, "chunkOffset", 4097)],
        [(1, "chunkOffset", 0)],
        [(1, "chunkOffset", -1)],
        [(0, "chunkOffset", 1)],
        [(0, "chunkSize", 4095)],
        [(0, "chunkSize", 4097)],
        [(0, "chunkSize", None)],
        [(0, "chunkSize", -1)],
        [(0, "chunkSize", 1 << 70)],
        [(1, "chunkSize", None)],
        [(2, "chunkSize", 2049)],
        [(2, "chunkSize", 2047)],
        [(0, "size", 10239)],
        [(0, "size", 10241)],
        [(0, "size", 0)],
        [(0, "size", -1)],
        [(0, "size", FILE_SIZE + 1)],
        [(0, "size", 1 << 80)],
        [(2, "name", "g")],
        [(2, "type", "reg")],
        [(0, "type", "dir")],
    ],
)
def test_chunks_that_do_not_cover_their_file_exactly_are_format_errors(changes: list[tuple[int, str, Any]]) -> None:
    with pytest.raises(FormatError):
        edited(*changes).index()


def test_missing_chunk_is_format_error() -> None:
    for row in (1, 2):

        def drop(toc: dict[str, Any], row: int = row) -> None:
            del toc["entries"][row]

        with pytest.raises(FormatError, match="chunk"):
            layer(file("f", DATA), chunk_size=4096, edit=drop).index()


@pytest.mark.parametrize("field", ["offset", "innerOffset"])
@pytest.mark.parametrize("value", [-1, 1 << 40, 1 << 63, 1 << 64])
def test_positions_outside_of_the_blob_are_format_errors(field: str, value: int) -> None:
    with pytest.raises(FormatError):
        edited((1, field, value)).index()


def test_chunk_in_the_toc_or_the_footer_is_format_error() -> None:
    built = edited()
    with pytest.raises(FormatError):
        edited((2, "offset", built.payload_end)).index()


def test_chunk_beyond_the_limit_is_format_error() -> None:
    size = CHUNK_SIZE + 1
    with pytest.raises(FormatError, match="limit"):
        edited((0, "size", size), (0, "digest", None), data=b"x").index()


@pytest.mark.parametrize("codec", [Flavor.ESTARGZ, Flavor.ZSTD_CHUNKED])
def test_member_that_cannot_unfold_to_what_is_claimed_is_format_error(codec: Flavor) -> None:
    with pytest.raises(FormatError, match="cannot unfold"):
        edited((0, "size", 500 << 20), data=b"x", flavor=codec).index()


def test_chunks_that_overlap_inside_a_member_are_format_errors() -> None:
    def overlap(toc: dict[str, Any]) -> None:
        toc["entries"][1]["innerOffset"] = toc["entries"][0]["innerOffset"] + 99

    entries = file("a", b"1" * 100), file("b", b"2" * 100)
    assert layer(*entries, share=1 << 20).index().member_count == 1
    with pytest.raises(FormatError, match="overlap"):
        layer(*entries, share=1 << 20, edit=overlap).index()


def test_two_files_may_lie_in_the_same_bytes() -> None:
    def deduplicate(toc: dict[str, Any]) -> None:
        first, second = toc["entries"]
        second["offset"] = first["offset"]

    index = layer(file("a", b"same"), file("b", b"same"), edit=deduplicate).index()
    assert index.member_count == 1
    assert [chunk.node for chunk in index.member_chunks(0)] == [1, 2]


@pytest.mark.parametrize("value", ["", "sha256:", "md5:00", "sha256:" + "0" * 64])
def test_missing_or_unreadable_chunk_digest_is_format_error(value: str) -> None:
    with pytest.raises(FormatError):
        edited((1, "chunkDigest", value)).index()


def test_layer_without_digests_is_refused_in_a_sentence() -> None:
    with pytest.raises(FormatError, match=r"cannot be verified \(legacy stargz\)"):
        edited(flavor=Flavor.STARGZ).index()


def test_layer_without_digests_gets_names_of_its_own_when_allowed() -> None:
    index = edited(flavor=Flavor.STARGZ).index(allow_unverified=True)
    identity = index.identity(1)
    assert (index.verified, identity.derived, identity.size, len(identity.digest)) == (False, True, len(DATA), 32)
    assert [digest for _, _, digest in identity.chunks] == [b""] * 3
    assert index.find(identity.digest) == 1
    other = layer(file("f", DATA + b"!"), flavor=Flavor.STARGZ, chunk_size=4096).index(allow_unverified=True)
    assert other.identity(1).digest != identity.digest


def test_digest_of_a_file_verifies_its_only_chunk() -> None:
    index = layer(file("f", b"data"), digests="file").index()
    assert index.verified
    assert index.chunks(1, 0, 4)[0].digest == index.digest(1) == raw(sha256(b"data"))


def test_digest_of_a_file_does_not_verify_several_chunks() -> None:
    with pytest.raises(FormatError, match="verified"):
        edited(digests="file").index()


def test_file_whose_chunks_have_digests_but_not_itself_gets_a_derived_name() -> None:
    index = edited((0, "digest", None)).index()
    assert index.verified
    assert index.identity(1).derived
    assert all(digest for _, _, digest in index.identity(1).chunks)


def test_only_chunk_names_a_file_without_digest() -> None:
    identity = edited((0, "digest", None), data=b"data").index().identity(1)
    assert (identity.digest, identity.derived) == (raw(sha256(b"data")), False)


def test_digests_that_contradict_each_other_are_format_errors() -> None:
    with pytest.raises(FormatError, match="differ"):
        edited((0, "digest", sha256(b"other")), data=b"data").index()


def test_one_digest_for_two_sizes_is_format_error() -> None:
    def edit(toc: dict[str, Any]) -> None:
        for row in toc["entries"]:
            row["digest"] = row["chunkDigest"] = sha256(b"x")

    with pytest.raises(FormatError, match="files of"):
        layer(file("a", b"1"), file("b", b"22"), edit=edit).index()


def test_zeros_are_chunks_without_a_member() -> None:
    data = b"a" * 4096 + bytes(4096) + b"b" * 100
    built = layer(file("f", data), file("g", b"g"), chunk_size=4096, flavor=Flavor.ZSTD_CHUNKED, storage=True)
    index = built.index()
    assert [chunk.member for chunk in index.chunks(built.node("f"), 0, len(data))] == [0, -1, 1]
    assert index.member_count == 3


def zeros_of(*sizes: int, digests: Mapping[int, str] | None = None, **more: Any) -> BuiltLayer:
    """A layer of one file for each size, called by it: one byte, then so many zeros, whose chunk digest may be given."""

    def edit(toc: dict[str, Any]) -> None:
        rows = []
        for row in toc["entries"]:
            size = int(row["name"])
            rows.append(row | {"size": 1 + size, "chunkSize": 1, "digest": sha256(row["name"].encode())})
            zeros = {"name": row["name"], "type": "chunk", "chunkOffset": 1, "chunkSize": size, "chunkType": "zeros"}
            digest = (digests or {}).get(size)
            rows.append(zeros | ({"chunkDigest": digest} if digest else {}))
        toc["entries"] = rows

    return layer(*(file(str(size), b"a") for size in sizes), edit=edit, **more)


@pytest.mark.parametrize("digest", [sha256(b"x"), sha256(bytes(99)), sha256(b"")])
@pytest.mark.parametrize("allow_unverified", [False, True])
def test_zeros_with_a_digest_that_zeros_do_not_have_are_format_error(digest: str, allow_unverified: bool) -> None:
    with pytest.raises(FormatError, match="it is 100 zeros, and gives it another digest"):
        zeros_of(7, 100, digests={100: digest}).index(allow_unverified=allow_unverified)


def test_one_chunk_of_data_that_is_called_zeros_is_format_error() -> None:
    with pytest.raises(FormatError, match="it is 4096 zeros"):
        edited((1, "chunkType", "zeros")).index()
    with pytest.raises(FormatError, match="it is 4 zeros"):
        edited((0, "chunkType", "zeros"), (0, "chunkDigest", None), data=b"data").index()


def test_a_replaced_file_may_not_lie_about_zeros_either() -> None:
    def lie(toc: dict[str, Any]) -> None:
        toc["entries"][0]["chunkType"] = "zeros"

    with pytest.raises(FormatError, match="another digest"):
        layer(file("f", b"old"), file("f", b"new"), edit=lie).index()


@pytest.mark.parametrize("given", [True, False])
def test_zeros_have_the_digest_of_zeros_whether_the_toc_gives_it_or_not(given: bool) -> None:
    sizes = 100, 1, (1 << 20) + 1, 4096, 100_000
    true = {size: sha256(bytes(size)) for size in sizes}
    built = zeros_of(*sizes, digests=true if given else None)
    index = built.index()
    assert index.verified
    for size in sizes:
        (first, zeros) = index.chunks(built.node(str(size)), 0, 1 + size)
        assert (first.digest, zeros.digest, zeros.member) == (raw(sha256(b"a")), raw(true[size]), -1)


def test_what_is_said_of_zeros_without_a_digest_makes_the_same_identity() -> None:
    """Two images of one file share it, though the maker of one left out what everybody knows."""
    true = {100: sha256(bytes(100))}
    identities = {zeros_of(100, digests=given).index().identity(1) for given in (true, None)}
    assert len(identities) == 1


def test_zeros_of_however_many_sizes_are_hashed_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed = 0

    class Counting:
        def __init__(self) -> None:
            self.real = hashlib.sha256()

        def update(self, data: bytes) -> None:
            nonlocal hashed
            hashed += len(data)
            self.real.update(data)

        def copy(self) -> Any:
            return self.real.copy()

    sizes = [*range(1, 400), 5 << 20, (5 << 20) + 3]
    built = zeros_of(*sizes)
    options, toc = built.options(), built.toc_json
    with monkeypatch.context() as patch:
        patch.setattr(chunks, "hashlib", SimpleNamespace(sha256=Counting, blake2b=hashlib.blake2b))
        index = Index(build_index(toc, options), "of a test")
    assert hashed == max(sizes)
    for size in (1, 399, 5 << 20, (5 << 20) + 3):
        node = index.lookup(0, str(size).encode())
        assert node is not None
        assert index.chunks(node, 1, size)[0].digest == raw(sha256(bytes(size)))


def test_unknown_chunk_type_is_format_error() -> None:
    with pytest.raises(FormatError, match="unknown type"):
        edited((1, "chunkType", "lz4")).index()


@pytest.mark.parametrize("value", [-1, 1, 1 << 40])
def test_end_offset_outside_of_the_blob_is_format_error(value: int) -> None:
    with pytest.raises(FormatError):
        edited((0, "endOffset", value)).index()


def members(index: Index) -> list[tuple[int, int]]:
    return [(index.member(number).blob_offset, index.member(number).blob_end) for number in range(index.member_count)]


def test_members_end_where_the_next_one_or_the_toc_begins() -> None:
    built = edited()
    starts = [chunk[0] for chunk in members(built.index())]
    assert members(built.index()) == list(zip(starts, [*starts[1:], built.payload_end], strict=True))


def test_member_ends_at_its_end_offset() -> None:
    built = layer(file("f", DATA), flavor=Flavor.ZSTD_CHUNKED, storage=True)
    [(_, end)] = members(built.index())
    assert end < built.payload_end


def test_members_are_found_by_range_of_the_blob() -> None:
    entries: list[Entry] = [file(f"f{number}", bytes([number]) * 600) for number in range(5)]
    index = layer(*entries).index()
    spans = members(index)
    assert index.members_between(0, spans[0][0]) == range(0)
    assert index.members_between(0, spans[0][0] + 1) == range(1)
    assert index.members_between(spans[1][1] - 1, spans[3][0]) == range(1, 3)
    assert index.members_between(spans[2][0], spans[2][0]) == range(2, 2)
    assert index.members_between(0, index.blob_size) == range(5)
    assert list(index.members_between(index.payload_end, index.blob_size)) == []


def test_chunks_of_a_shared_member_come_in_order_of_their_inner_offset() -> None:
    index = layer(file("b", b"1" * 700), file("a", b"2" * 700), file("c", DATA), share=1 << 20, chunk_size=4096).index()
    chunks = index.member_chunks(0)
    assert [chunk.inner_offset for chunk in chunks] == sorted(chunk.inner_offset for chunk in chunks)
    assert [(chunk.node, chunk.ordinal) for chunk in chunks] == [(2, 0), (1, 0), (3, 0), (3, 1), (3, 2)]
    assert index.chunks(3, 4096, 1) == (chunks[3],)


def test_content_of_replaced_files_keeps_bounding_members() -> None:
    built = layer(file("f", b"old" * 100), file("f", b"new" * 100), file("g", b"last"))
    index = built.index()
    assert index.member_count == 2
    assert index.content_size == 304
    assert index.members_between(0, built.size) == range(2)
