"""Where members begin: with a least size, at landmarks, behind long rows of headers."""

import gzip
import zlib

from hypothesis import given
from hypothesis import strategies as st

from snapshotter.format.tar_entries import NO_PREFETCH_LANDMARK, PREFETCH_LANDMARK
from snapshotter.format.writer.options import WriterOptions
from tests.format.tars import entry, folder, tar
from tests.format.written import Written, written

CHUNK = 64 << 10


def options(least: int) -> WriterOptions:
    return WriterOptions(chunk_size=CHUNK, min_chunk_size=least)


def member_starts(blob: bytes) -> list[int]:
    starts, at = [], 0
    while at < len(blob):
        starts.append(at)
        decoder = zlib.decompressobj(31)
        decoder.decompress(blob[at:])
        at = len(blob) - len(decoder.unused_data)
    return starts


def landmark(found: Written, name: str) -> tuple[int, int]:
    row = next(row for row in found.rows if row["name"] == name)
    return row["offset"], row.get("innerOffset", 0)


def test_small_files_share_a_member_until_it_holds_the_least_size() -> None:
    names = [f"f{number}" for number in range(20)]
    found = written(tar(*(entry(name, name.encode() * 400) for name in names)), options(10_000))
    members = [found.place(name)[0] for name in names]
    assert members == sorted(members)
    assert 3 <= len(set(members)) <= 5
    for name in names:
        offset, inner = found.place(name)
        assert inner == 0 or offset == found.place(names[names.index(name) - 1])[0] or name == names[0]
        assert found.content(name) == name.encode() * 400


def test_member_of_less_than_the_least_size_is_followed_by_a_large_file_of_its_own() -> None:
    found = written(tar(entry("a", b"1"), entry("large", b"2" * 20_000), entry("b", b"3")), options(10_000))
    assert found.place("large")[1] == 0
    assert found.place("large")[0] > found.place("a")[0]
    assert found.place("b")[0] > found.place("large")[0]


def test_chunks_of_a_large_file_are_members_of_their_own_and_a_short_last_one_takes_others_in() -> None:
    found = written(tar(entry("large", b"1" * (2 * CHUNK + 100)), entry("b", b"3")), options(2000))
    chunks = found.index.chunks(found.node("large"), 0, 2 * CHUNK + 100)
    offsets = [found.index.member(chunk.member).blob_offset for chunk in chunks]
    assert len(set(offsets)) == 3
    assert found.place("b") == (offsets[2], 1024)
    assert found.content("large") == b"1" * (2 * CHUNK + 100)


def test_landmark_begins_a_member_whatever_the_least_size_is() -> None:
    made = [entry(f"f{number}", b"1" * 300) for number in range(9)]
    for least in (0, 1, 1 << 20):
        found = written(tar(*made), options(least), ["f3", "f7"])
        assert landmark(found, PREFETCH_LANDMARK) == (found.layer.prefetch_size, 0)
        assert found.layer.prefetch_size in member_starts(found.blob)
        assert found.place("f7")[0] < found.layer.prefetch_size <= found.place("f0")[0]
        assert landmark(written(tar(*made), options(least)), NO_PREFETCH_LANDMARK)[1] == 0


def test_long_row_of_headers_is_cut_and_read_all_the_same() -> None:
    many = [folder(f"d{number:05}") for number in range(5000)]
    found = written(tar(entry("a", b"1"), *many, entry("b", b"2")), options(0))
    members = [len(zlib.decompressobj(31).decompress(found.blob[at:])) for at in member_starts(found.blob)]
    toc_member = members[-2]
    assert max(size for size in members if size != toc_member) < (1 << 20) + 1024
    assert (found.content("a"), found.content("b")) == (b"1", b"2")
    assert gzip.decompress(found.blob) == found.plain
    assert sum(1 for _ in found.index.rows()) >= 5003


@given(st.lists(st.integers(1, 9000), max_size=12), st.sampled_from([0, 1, 512, 4000, 1 << 20]))
def test_every_content_is_found_whatever_the_least_size(sizes: list[int], least: int) -> None:
    made = [entry(f"f{number}", bytes([number + 1]) * size) for number, size in enumerate(sizes)]
    found = written(tar(*made), WriterOptions(chunk_size=4096, min_chunk_size=least))
    for info, content in made:
        assert found.content(info.name) == content
    starts = set(member_starts(found.blob))
    assert {found.place(info.name)[0] for info, _ in made} <= starts
