import base64
import gzip
import hashlib
import io
import json
import tarfile
import tracemalloc
import zlib
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given

from snapshotter.errors import ConfigError, FormatError
from snapshotter.format.codec import Codec
from snapshotter.format.tar_entries import (
    NO_PREFETCH_LANDMARK,
    PREFETCH_LANDMARK,
    TOC_NAME,
    EntryType,
    TarEntry,
    scan_tar,
)
from snapshotter.format.writer.gzip_blob import external_footer, footer
from snapshotter.format.writer.options import WriterOptions
from snapshotter.format.writer.write import WrittenLayer, write_layer
from tests.format.tars import Made, entry, folder, hard_link, listing, symlink, tar, trees
from tests.format.written import OURS, POOL

SMALL = WriterOptions(chunk_size=4096)


def write(source: bytes, *prioritised: str, options: WriterOptions = SMALL) -> tuple[WrittenLayer, bytes]:
    blob = io.BytesIO()
    plain = io.BytesIO(source)
    layer = write_layer(scan_tar(plain).entries, plain, blob, POOL, options, prioritised)
    return layer, blob.getvalue()


def toc_offset(blob: bytes) -> int:
    return int(blob[-35:-19], 16)


def toc_of(blob: bytes) -> list[dict[str, Any]]:
    """The rows of the blob's TOC, read as any reader would: by the footer."""
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(blob[toc_offset(blob) : -51]))) as archive:
        (member,) = archive.getmembers()
        content = archive.extractfile(member)
        assert content is not None
        assert member.name == TOC_NAME
        return list(json.loads(content.read().decode("utf-8", "surrogateescape"))["entries"])


def contents_by_toc(blob: bytes) -> dict[str, bytes]:
    """Every file as a lazy reader gets it: each chunk from its own member, checked against its chunkDigest."""
    rows = toc_of(blob)
    offsets = sorted({row["offset"] for row in rows if "offset" in row} | {toc_offset(blob)})
    files: dict[str, bytes] = {}
    sizes: dict[str, int] = {}
    for row in rows:
        if row["type"] == "reg":
            sizes[row["name"]] = row.get("size", 0)
            files[row["name"]] = b""
        if row["type"] == "chunk" or (row["type"] == "reg" and row.get("size")):
            done = files[row["name"]]
            assert row.get("chunkOffset", 0) == len(done)
            end = offsets[offsets.index(row["offset"]) + 1]
            size = row.get("chunkSize", sizes[row["name"]] - len(done))
            piece = gzip.decompress(blob[row["offset"] : end])[:size]
            assert row["chunkDigest"] == f"sha256:{hashlib.sha256(piece).hexdigest()}"
            files[row["name"]] = done + piece
    for row in rows:
        if row["type"] == "reg" and row.get("size"):
            assert row["digest"] == f"sha256:{hashlib.sha256(files[row['name']]).hexdigest()}"
            assert len(files[row["name"]]) == row["size"]
    return files


@given(trees())
def test_blob_unpacks_to_the_source_and_its_toc_says_the_same(made: list[Made]) -> None:
    source = tar(*made)
    layer, blob = write(source)
    plain = gzip.decompress(blob)
    assert listing(plain, OURS) == listing(source)
    assert layer.diff_id == f"sha256:{hashlib.sha256(plain).hexdigest()}"
    assert (layer.digest, layer.size) == (f"sha256:{hashlib.sha256(blob).hexdigest()}", len(blob))
    assert layer.plain_size == len(plain)
    rows = {row["name"].rstrip("/"): row for row in toc_of(blob) if row["type"] != "chunk"}
    by_toc = contents_by_toc(blob)
    for info, data in made:
        row = rows[info.name]
        assert row.get("mode", 0) == info.mode
        assert (row.get("uid", 0), row.get("gid", 0)) == (info.uid, info.gid)
        xattrs = {key: base64.b64decode(value) for key, value in row.get("xattrs", {}).items()}
        assert xattrs == {
            key.removeprefix("SCHILY.xattr."): value.encode("utf-8", "surrogateescape")
            for key, value in info.pax_headers.items()
            if key.startswith("SCHILY")
        }
        if info.isreg():
            assert by_toc[info.name] == data


@pytest.mark.parametrize("form", [{}, {"min_chunk_size": 200_000}, {"compression": Codec.ZSTD}])
def test_large_layer_is_the_same_with_one_two_and_four_threads(form: dict[str, Any]) -> None:
    def how(threads: int) -> WriterOptions:
        return WriterOptions(chunk_size=65536, parallelism=threads, **form)

    source = tar(*(entry(f"f{n}", bytes([n % 251]) * 70_000 + str(n).encode() * 3000) for n in range(60)))
    blobs = set()
    for threads in (1, 2, 4):
        with ThreadPoolExecutor(threads) as pool:
            blob = io.BytesIO()
            plain = io.BytesIO(source)
            write_layer(scan_tar(plain).entries, plain, blob, pool, how(threads))
            blobs.add(blob.getvalue())
    assert len(blobs) == 1


def test_members_begin_exactly_where_contents_and_chunks_begin() -> None:
    source = tar(folder("d"), entry("d/a", b"x" * 10_000), entry("d/empty"), symlink("d/s", "a"), entry("d/b", b"y"))
    _, blob = write(source)
    starts, at = [], 0
    while at < len(blob):
        starts.append(at)
        decoder = zlib.decompressobj(31)
        decoder.decompress(blob[at:])
        at = len(blob) - len(decoder.unused_data)
    rows = toc_of(blob)
    # The first header, the landmark, three chunks of a, b, the TOC and the footer.
    assert starts == [0, *[row["offset"] for row in rows if "offset" in row], toc_offset(blob), len(blob) - 51]
    assert len(starts) == 8


def test_footer_is_an_empty_gzip_member_of_51_bytes() -> None:
    made = footer(0x1234ABCD)
    assert len(made) == 51
    assert gzip.decompress(made) == b""
    assert made[10:38] == b"\x1a\x00SG\x16\x00000000001234abcdSTARGZ"


def test_prioritised_files_come_first_in_list_order_each_after_its_directories_and_link_target() -> None:
    source = tar(
        folder("a"),
        entry("a/x", b"1"),
        folder("b"),
        folder("b/c"),
        entry("b/c/y", b"2"),
        hard_link("a/z", "b/c/y"),
        entry("rest", b"3"),
    )
    layer, blob = write(source, "/a/z", "./b/c/y", "missing", "a/x")
    names = [row["name"] for row in toc_of(blob)]
    assert names == ["b/", "b/c/", "b/c/y", "a/", "a/z", "a/x", PREFETCH_LANDMARK, "rest"]
    landmark = next(row for row in toc_of(blob) if row["name"] == PREFETCH_LANDMARK)
    assert layer.prefetch_size == landmark["offset"] > 0
    assert contents_by_toc(blob)[PREFETCH_LANDMARK] == b"\x0f"


def test_layer_without_prioritised_files_begins_with_the_other_landmark() -> None:
    layer, blob = write(tar(entry("a", b"1")), "not/here")
    assert [row["name"] for row in toc_of(blob)] == [NO_PREFETCH_LANDMARK, "a"]
    assert layer.prefetch_size == 0


def test_whiteout_stays_before_the_prioritised_file_that_replaces_it() -> None:
    source = tar(folder("d"), entry("d/.wh.f"), entry("d/g", b"2"), entry("d/f", b"1"))
    _, blob = write(source, "d/f")
    assert [row["name"] for row in toc_of(blob)] == ["d/", "d/.wh.f", "d/f", PREFETCH_LANDMARK, "d/g"]


def test_whiteout_stays_before_the_directory_of_a_prioritised_file() -> None:
    source = tar(entry(".wh.d"), folder("d"), folder("d/e"), entry("d/e/f", b"1"), entry("g", b"2"))
    _, blob = write(source, "d/e/f")
    assert [row["name"] for row in toc_of(blob)] == [".wh.d", "d/", "d/e/", "d/e/f", PREFETCH_LANDMARK, "g"]


def test_hard_links_with_different_attributes_keep_their_order_since_the_last_one_counts() -> None:
    links = [hard_link("b", "a", mode=0o600), hard_link("c", "b", mode=0o755), hard_link("e", "a", mode=0o711)]
    _, blob = write(tar(entry("x", b"1"), entry("a", b"2"), *links), "e", "c")
    assert [row["name"] for row in toc_of(blob)] == ["a", PREFETCH_LANDMARK, "x", "b", "c", "e"]


def test_long_chain_of_hard_links_is_walked_once() -> None:
    links = [hard_link(f"l{number}", f"l{number - 1}" if number else "a") for number in range(20_000)]
    _, blob = write(tar(entry("a", b"1"), *links), *(f"l{number}" for number in range(20_000)))
    assert [row["name"] for row in toc_of(blob)][-2:] == ["l19999", PREFETCH_LANDMARK]


def test_converting_a_converted_layer_changes_nothing() -> None:
    source = tar(folder("d"), entry("d/f", b"1" * 5000), entry("d/g", b"2"), hard_link("h", "d/g"))
    for prioritised in ((), ("h", "d/f")):
        _, blob = write(source, *prioritised)
        again = gzip.decompress(blob)
        assert write(again, *scan_tar(io.BytesIO(again)).prefetched)[1] == blob


def test_empty_layer_becomes_a_blob_with_a_landmark_only() -> None:
    for source in (b"", tar(), bytes(512), bytes(10240)):
        _, blob = write(source)
        assert [row["name"] for row in toc_of(blob)] == [NO_PREFETCH_LANDMARK]
        assert listing(gzip.decompress(blob), OURS) == []


def test_names_that_are_not_utf_8_stand_in_the_toc_as_their_bytes() -> None:
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        _, blob = write(tar(entry("caf\udce9", b"1"), symlink("s", "\udcff\udcfe"), form=form))
        rows = {row["name"]: row for row in toc_of(blob)}
        assert "caf\udce9" in rows
        assert rows["s"]["linkName"] == "\udcff\udcfe"


def test_fractions_of_a_second_are_kept_and_impossible_times_become_the_epoch() -> None:
    def timed(name: str, text: str) -> Made:
        return entry(name, mtime=0, pax_headers={"mtime": text})

    source = tar(timed("a", "1700000000.123456789"), timed("b", "-5.5"), timed("c", "99999999999"), timed("d", "12.5"))
    rows = {row["name"]: row["modtime"] for row in toc_of(write(source)[1])}
    assert rows["a"] == "2023-11-14T22:13:20.123456789Z"
    assert rows["b"] == rows["c"] == "1970-01-01T00:00:00Z"
    assert rows["d"] == "1970-01-01T00:00:12.5Z"


def test_user_names_are_written_at_the_first_use_of_an_id_only() -> None:
    source = tar(*(entry(name, uid=5, uname="games", gid=6, gname="g") for name in "ab"))
    rows = toc_of(write(source)[1])
    assert [row.get("userName") for row in rows] == [None, "games", None]
    assert [row.get("groupName") for row in rows] == [None, "g", None]


def test_root_entry_is_called_dot_slash() -> None:
    _, blob = write(tar(folder("./", mode=0o700), entry("./f", b"1")), "f")
    assert [(row["name"], row.get("mode")) for row in toc_of(blob)][:2] == [("./", 0o700), ("f", 0o644)]


def test_error_of_progress_ends_the_work() -> None:
    source = io.BytesIO(tar(*(entry(f"f{n}", bytes(300_000)) for n in range(9))))

    def stop(size: int) -> None:
        raise InterruptedError(size)

    with pytest.raises(InterruptedError):
        write_layer(scan_tar(source).entries, source, io.BytesIO(), POOL, SMALL, on_progress=stop)


def test_no_more_batches_are_under_way_than_asked_for() -> None:
    class Counting(ThreadPoolExecutor):
        most = 0
        waiting = 0

        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
            self.waiting += 1
            self.most = max(self.most, self.waiting)
            future = super().submit(fn, *args, **kwargs)
            result = future.result

            def taken(timeout: float | None = None) -> Any:
                self.waiting -= 1
                return result(timeout)

            future.result = taken  # type: ignore[method-assign]
            return future

    source = io.BytesIO(tar(*(entry(f"f{n}", bytes(300_000)) for n in range(20))))
    with Counting(2) as pool:
        write_layer(scan_tar(source).entries, source, io.BytesIO(), pool, WriterOptions(parallelism=2))
    assert pool.most == 4


@pytest.mark.parametrize(
    "options",
    [
        {"chunk_size": 100},
        {"chunk_size": 1 << 40},
        {"level": 0},
        {"level": 13},
        {"parallelism": 0},
        {"min_chunk_size": -1},
        {"min_chunk_size": 1 << 40},
        {"compression": Codec.ZSTD, "level": 20},
        {"compression": Codec.ZSTD, "min_chunk_size": 1},
        {"compression": Codec.ZSTD, "external_toc": True},
    ],
)
def test_options_out_of_range_or_at_odds_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        WriterOptions(**options)


def test_external_toc_is_an_archive_of_its_own_and_the_layer_ends_with_a_footer_that_says_so() -> None:
    layer, blob = write(tar(entry("a", b"1")), options=WriterOptions(external_toc=True))
    assert blob[-46:] == external_footer()
    assert external_footer()[10:33] == b"\x15\x00SG\x11\x00STARGZEXTERNALTOC"
    assert [row[0] for row in listing(gzip.decompress(blob))] == [NO_PREFETCH_LANDMARK, "a"]
    assert layer.external_toc is not None
    ((name, *_),) = listing(gzip.decompress(layer.external_toc))
    assert name == TOC_NAME


@pytest.mark.parametrize("compression", list(Codec))
def test_tar_that_became_shorter_since_it_was_scanned_is_a_format_error(compression: Codec) -> None:
    source = tar(entry("a", b"1" * 5000), entry("b", b"2" * 5000))
    entries = scan_tar(io.BytesIO(source)).entries
    for cut in (100, 600, 5000, 6200, 9000):
        with pytest.raises(FormatError, match=r"ends within '[ab]'"):
            write_layer(entries, io.BytesIO(source[:cut]), io.BytesIO(), POOL, WriterOptions(compression=compression))


def test_file_that_declares_ten_gigabytes_and_has_none_is_a_format_error() -> None:
    header = bytearray(tar(entry("a", b"1"))[:512])
    header[124:136] = b"\x80" + (10 << 30).to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    with pytest.raises(FormatError, match="ends within 'a'"):
        scan_tar(io.BytesIO(bytes(header) + bytes(10240)))


@pytest.mark.parametrize("compression", list(Codec))
def test_memory_does_not_grow_with_a_file_of_holes(compression: Codec) -> None:
    hole = TarEntry("hole", EntryType.REG, 0o644, size=64 << 20, extents=())
    options = WriterOptions(chunk_size=256 << 10, level=1, compression=compression)
    tracemalloc.start()
    try:
        layer = write_layer([hole], io.BytesIO(), io.BytesIO(), POOL, options)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    assert layer.plain_size > 64 << 20
