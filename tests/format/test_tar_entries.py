import io
import tarfile
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapshotter.errors import FormatError, NotLazy
from snapshotter.format import limits, tar_entries
from snapshotter.format.tar_entries import EntryType, TarEntry, clean_name, scan_tar
from snapshotter.format.tar_headers import encode_header
from snapshotter.format.writer.content import read_content
from tests.format.tars import Made, entry, folder, hard_link, symlink, tar, trees


def scan(data: bytes) -> list[TarEntry]:
    return scan_tar(io.BytesIO(data)).entries


def names(*made: Made) -> list[str]:
    return [found.name for found in scan(tar(*made))]


def raw_header(name: bytes, typeflag: bytes, size: int = 0, **at: bytes) -> bytes:
    """A GNU header by hand; `at` puts bytes at `_OFFSET`."""
    block = bytearray(512)
    block[: len(name)] = name
    block[100:108], block[108:116], block[116:124] = b"0000644\0", b"0000000\0", b"0000000\0"
    block[124:136], block[136:148] = b"%011o\0" % size, b"%011o\0" % 1_700_000_000
    block[156:157] = typeflag
    block[257:265] = b"ustar  \0"
    for key, value in at.items():
        offset = int(key.removeprefix("_"))
        block[offset : offset + len(value)] = value
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_dialect_is_read(form: int) -> None:
    long = "d/" + "n" * 90 + "/" + "m" * 90
    found = scan(tar(folder("d"), entry(long, b"1", uid=7), entry("d/x", b"", mtime=5), form=form))
    assert [(one.name, one.type) for one in found] == [("d", "dir"), (long, "reg"), ("d/x", "reg")]
    assert (found[1].uid, found[1].size) == (7, 1)
    assert found[2].mtime_ns == 5_000_000_000


def test_names_stop_at_the_root_and_lose_what_means_nothing() -> None:
    assert clean_name("/./a//b/../c/") == "a/c"
    assert clean_name("../../x") == "x"
    assert clean_name("./") == clean_name("/") == ""


def test_old_tar_directory_is_a_slash_at_the_end_of_a_file() -> None:
    header = bytearray(raw_header(b"old/", b"\0"))
    header[257:265] = bytes(8)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    assert [(one.name, one.type) for one in scan(bytes(header) + bytes(1024))] == [("old", EntryType.DIR)]


def test_slash_at_the_end_of_a_name_in_a_pax_header_says_the_same() -> None:
    made = entry("o", pax_headers={"path": "d/o/"}), entry("f", pax_headers={"path": "d/f/"})
    made[0][0].type = tarfile.AREGTYPE
    assert [(one.name, one.type) for one in scan(tar(*made))] == [("d/o", EntryType.DIR), ("d/f", EntryType.REG)]


def test_times_in_an_incremental_gnu_header_are_no_name_prefix() -> None:
    header = raw_header(b"f", b"0", _345=b"14566500000\0", _357=b"14566500000\0")
    assert [one.name for one in scan(header + bytes(1024))] == ["f"]


@pytest.fixture
def newer_tarfile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let tarfile read headers as its newer versions do, which no longer go through `frombuf`."""
    if hasattr(tarfile.TarInfo, "_frombuf"):
        return
    parse: Any = tarfile.TarInfo.frombuf

    def from_buffer(cls: Any, buf: bytes, encoding: str, errors: str, *, dircheck: bool = True) -> Any:
        return parse.__func__(cls, buf, encoding, errors)

    def from_file(cls: Any, archive: Any) -> Any:
        header = cls._frombuf(archive.fileobj.read(512), archive.encoding, archive.errors, dircheck=True)
        header.offset = archive.fileobj.tell() - 512
        return header._proc_member(archive)

    monkeypatch.setattr(tarfile.TarInfo, "_frombuf", classmethod(from_buffer), raising=False)
    monkeypatch.setattr(tarfile.TarInfo, "fromtarfile", classmethod(from_file))


@pytest.mark.usefixtures("newer_tarfile")
def test_headers_mean_the_same_whichever_way_tarfile_reads_them() -> None:
    test_times_in_an_incremental_gnu_header_are_no_name_prefix()
    with pytest.raises(FormatError, match="extension header"):
        scan(raw_header(b"a", b"x", 3 << 20) + bytes(4 << 20))


def test_global_pax_headers_change_nothing_as_in_containerd() -> None:
    records = b"18 path=elsewhere\n"
    header = raw_header(b"pax_global", b"g", len(records))
    data = header + records.ljust(512, b"\0") + tar(entry("f", b"1"))
    assert [one.name for one in scan(data)] == ["f"]


@pytest.mark.parametrize("version", ["0.0", "0.1", "1.0", "gnu"])
def test_sparse_files_are_read_with_their_holes(version: str) -> None:
    data, size = b"A" * 512 + b"B" * 512, 4096
    if version == "gnu":
        pieces = b"".join(b"%011o\0%011o\0" % pair for pair in ((1024, 512), (3000, 512), (size, 0)))
        source = raw_header(b"s", b"S", len(data), _386=pieces, _483=b"%011o\0" % size) + data
    else:
        records = {
            "0.0": [
                ("GNU.sparse.size", "4096"),
                ("GNU.sparse.numblocks", "2"),
                ("GNU.sparse.offset", "1024"),
                ("GNU.sparse.numbytes", "512"),
                ("GNU.sparse.offset", "3000"),
                ("GNU.sparse.numbytes", "512"),
            ],
            "0.1": [("GNU.sparse.size", "4096"), ("GNU.sparse.map", "1024,512,3000,512"), ("GNU.sparse.name", "s")],
            "1.0": [
                ("GNU.sparse.major", "1"),
                ("GNU.sparse.minor", "0"),
                ("GNU.sparse.name", "s"),
                ("GNU.sparse.realsize", "4096"),
            ],
        }[version]
        packed = data
        if version == "1.0":
            packed = b"2\n1024\n512\n3000\n512\n".ljust(512, b"\0") + data
        text = b"".join(_record(key, value) for key, value in records)
        source = (
            raw_header(b"x", b"x", len(text)) + text.ljust(512, b"\0") + raw_header(b"s", b"0", len(packed)) + packed
        )
    source += tar(entry("after", b"1"))
    sparse, after = scan(source)
    content = bytearray(size)
    content[1024:1536], content[3000:3512] = b"A" * 512, b"B" * 512
    assert (sparse.name, sparse.size, sparse.header_size) == ("s", size, 0)
    assert read_content(sparse, io.BytesIO(source), 0, size) == bytes(content)
    assert read_content(sparse, io.BytesIO(source), 1000, 2100) == bytes(content[1000:3100])
    assert after.name == "after"


def _record(key: str, value: str) -> bytes:
    body = f" {key}={value}\n".encode()
    size = len(body) + 1
    while len(str(size)) + len(body) != size:
        size += 1
    return str(size).encode() + body


def test_sparse_map_beyond_the_file_is_a_format_error() -> None:
    pieces = b"%011o\0%011o\0" % (4000, 512)
    source = raw_header(b"s", b"S", 512, _386=pieces, _483=b"%011o\0" % 4096) + bytes(512)
    with pytest.raises(FormatError, match="sparse"):
        scan(source + bytes(1024))


def test_later_file_replaces_an_earlier_one() -> None:
    source = tar(entry("a", b"old"), entry("b", b"1"), entry("a", b"new!"))
    found = scan(source)
    assert [one.name for one in found] == ["b", "a"]
    assert read_content(found[1], io.BytesIO(source), 0, 4) == b"new!"


def test_directory_that_comes_again_keeps_its_place_and_takes_the_new_attributes() -> None:
    found = scan(tar(folder("d", mode=0o700), entry("d/f", b"1"), folder("d", mode=0o755)))
    assert [(one.name, one.mode) for one in found] == [("d", 0o755), ("d/f", 0o644)]


def test_file_that_replaces_a_directory_takes_everything_below_with_it() -> None:
    assert names(folder("d"), entry("d/f"), folder("d/e"), entry("dx"), entry("d", b"1")) == ["dx", "d"]
    assert names(entry("d", b"1"), folder("d"), entry("d/f")) == ["d", "d/f"]


def test_toc_and_landmarks_of_an_earlier_conversion_are_dropped() -> None:
    made = (entry("stargz.index.json", b"{}"), entry("./.prefetch.landmark", b"\x0f"), entry(".no.prefetch.landmark"))
    assert names(*made, folder("d"), entry("d/stargz.index.json")) == ["d", "d/stargz.index.json"]


@pytest.mark.parametrize(
    "made",
    [
        [hard_link("b", "a"), entry("a", b"1")],
        [hard_link("b", "nowhere")],
        [hard_link("b", "b")],
        [entry("a", b"1"), hard_link("b", "a"), entry("a", b"2")],
        [entry("a", b"1"), hard_link("b", "a", uid=7), entry("b", b"2")],
        [
            *(entry("a", b"1"), hard_link("b", "a"), folder("d"), hard_link("d/c", "a")),
            *(entry("d", b"2"), entry("a", b"3")),
        ],
        [symlink("long", "t" * 5000)],
        [symlink("short", "")],
        [entry("a", pax_headers={"SCHILY.xattr.user.a": "v" * 70_000})],
        [entry("a", pax_headers={"SCHILY.xattr.user." + "a" * 300: "v"})],
        [entry("a", pax_headers={"SCHILY.xattr.": "v"})],
        [entry("d/.wh.")],
        [entry(".wh...")],
        [symlink("lib", "usr/lib"), entry("lib/x", b"1")],
        [entry("f", b"1"), entry("f/x", b"1")],
        [entry("d/f", b"1"), entry("d/.wh.f")],
        [entry("d/f", b"1"), entry(".wh.d"), folder("d"), entry("d/g", b"1")],
        [folder(".prefetch.landmark"), entry(".prefetch.landmark/x", b"1")],
        [entry("stargz.index.json/x", b"1")],
    ],
    ids=[
        "link first",
        "link to nowhere",
        "link to itself",
        "target replaced",
        "link that changed it replaced",
        "target replaced, after its last link",
        "long target",
        "empty target",
        "large attribute",
        "long attribute",
        "attribute without name",
        "whiteout of nothing",
        "whiteout of the directory above",
        "below a link",
        "below a file",
        "whiteout behind its file",
        "whiteout behind what is in its directory",
        "below a landmark",
        "below the TOC",
    ],
)
def test_what_a_toc_cannot_say_leaves_the_layer_ordinary(made: list[Made]) -> None:
    with pytest.raises(NotLazy):
        scan(tar(*made))


def test_device_that_linux_has_not_leaves_the_layer_ordinary() -> None:
    with pytest.raises(NotLazy, match="5000:1"):
        scan(raw_header(b"d", b"3", 0, _257=b"ustar\x0000", _329=b"0011610\0", _337=b"0000001\0") + bytes(1024))


def test_hard_links_may_stand_on_each_other() -> None:
    found = scan(tar(entry("a", b"1"), hard_link("b", "./a"), hard_link("c", "b")))
    assert [one.link_name for one in found] == ["", "a", "b"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (tar(entry("a", b"1" * 600))[:1024], "ends within"),
        (tar(entry("a"), entry("b"))[:700], "damaged header"),
        (raw_header(b"a", b"0", 10 << 30), "ends within"),
        (raw_header(b"a", b"V") + bytes(1024), "does not unpack"),
        (raw_header(b"a", b"x", 3 << 20) + bytes(4 << 20), "extension header"),
        (tar(entry("a", pax_headers={"uid": "7x"})), "not a number"),
        (tar(entry("a", pax_headers={"mtime": "soon"})), "not a time"),
        (tar(entry("n" * 256)), "longer than a path may be"),
        (tar(entry(".", b"1")), "root"),
        (tar(entry("a", uid=(1 << 32) - 1)), "no Linux ids"),
        (tar(folder("d"), hard_link("h", "d")), "points to the directory"),
        (b"this is no tar at all, but it is long enough for a header".ljust(2048, b"!"), "tar"),
    ],
)
def test_source_that_cannot_be_right_is_a_format_error(source: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        scan(source)


def test_one_block_of_zeros_is_an_end_only_where_nothing_follows() -> None:
    file = raw_header(b"a", b"0")
    assert [one.name for one in scan(file + bytes(512))] == ["a"]
    for behind in (raw_header(b"b", b"0"), bytes(100)):
        with pytest.raises(FormatError, match="lone block of zeros"):
            scan(file + bytes(512) + behind)


def test_sparse_file_without_the_bytes_that_its_map_names_is_a_format_error() -> None:
    pieces = b"%011o\0%011o\0" % (0, 1024)
    source = raw_header(b"s", b"S", 512, _386=pieces, _483=b"%011o\0" % 4096) + b"A" * 512
    with pytest.raises(FormatError, match="fewer bytes"):
        scan(source + tar(entry("after", b"not of it")))


def test_damaged_header_is_an_error_and_not_the_end_of_the_archive() -> None:
    source = bytearray(tar(entry("a", b"1"), entry("b", b"2"), entry("c", b"3"), form=tarfile.GNU_FORMAT))
    source[1024 + 5] ^= 0xFF
    with pytest.raises(FormatError, match="damaged header"):
        scan(bytes(source))


@given(trees(), st.lists(st.tuples(st.integers(0, 1 << 30), st.integers(1, 255)), min_size=1, max_size=4))
def test_any_damage_is_an_error_of_ours_or_still_a_tar(made: list[Made], flips: list[tuple[int, int]]) -> None:
    source = bytearray(tar(*made))
    for at, mask in flips:
        source[at % len(source)] ^= mask
    with suppress(FormatError, NotLazy):
        scan(bytes(source))


@given(st.binary(max_size=3000))
def test_any_bytes_are_entries_or_an_error_of_ours(data: bytes) -> None:
    with suppress(FormatError, NotLazy):
        scan(data)


@given(trees())
def test_header_written_anew_says_the_same(made: list[Made]) -> None:
    for found in scan(tar(*made)):
        again = (
            scan(encode_header(found) + bytes(found.size + -found.size % 512) + bytes(1024))[0]
            if (found.type is not EntryType.HARDLINK)
            else found
        )
        wanted = {name: getattr(found, name) for name in _SAID}
        assert {name: getattr(again, name) for name in _SAID} == wanted


_SAID = ("name", "type", "mode", "uid", "gid", "user_name", "mtime_ns", "size", "link_name", "device", "xattrs")


def test_whiteouts_of_landmarks_are_dropped_as_every_layer_gets_a_new_one() -> None:
    made = (entry(".wh..prefetch.landmark"), entry(".wh..no.prefetch.landmark"), entry("d/.wh..prefetch.landmark"))
    assert names(*made) == ["d/.wh..prefetch.landmark"]


def test_directories_that_are_replaced_all_the_time_do_not_take_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    made = [one for _ in range(10) for one in (entry("d/f"), folder("d"), entry("d", b"1"))]
    assert names(*made) == ["d"]
    monkeypatch.setattr(tar_entries, "_LOOKED_AT_MAX", 19)
    with pytest.raises(NotLazy, match="too many"):
        scan(tar(*made))


@pytest.mark.parametrize(
    ("made", "least"),
    [
        ([entry("n" * 100)], 100),
        ([symlink("l", "t" * 99)], 100),
        ([entry("a/b/c/d")], 7 + 5 + 3 + 1),
        ([entry("x", pax_headers={"SCHILY.xattr.user.a": "v" * 100})], 107),
    ],
)
def test_layer_with_more_text_than_memory_is_for_stays_ordinary(
    made: list[Made], least: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "TAR_TEXT", least)
    assert len(scan(tar(*made))) == 1
    monkeypatch.setattr(limits, "TAR_TEXT", least - 1)
    with pytest.raises(NotLazy, match="names and attributes"):
        scan(tar(*made))


def test_layer_with_more_entries_than_can_be_mounted_stays_ordinary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "TOC_ENTRIES", 2)
    assert names(entry("a"), entry("b")) == ["a", "b"]
    with pytest.raises(NotLazy, match="more than 2 entries"):
        scan(tar(entry("a"), entry("b"), entry("c")))


def test_what_checking_raises_ends_the_reading() -> None:
    def check() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        scan_tar(io.BytesIO(tar(entry("a"))), check)


def test_what_lay_in_front_of_a_landmark_is_told_unless_it_is_gone() -> None:
    made = (folder("d"), entry("d/a", b"1"), entry("b"), entry(".prefetch.landmark", b"\x0f"), entry("c"), folder("b"))
    for front, rest in ((made, ["d", "d/a", "b"]), ((*made, entry("d/a", b"2")), ["d", "d/a", "b"]), (made[4:], [])):
        assert scan_tar(io.BytesIO(tar(*front))).prefetched == rest
    assert scan_tar(io.BytesIO(tar(*made, entry("d")))).prefetched == ["d", "b"]
