"""The tar-split of zstd:chunked layers, put together again as containers/storage does it, and compared with the TOC as it does."""

import base64
import io
import json
import tarfile
from datetime import datetime
from typing import Any

import pytest
from fastcrc import crc64
from hypothesis import given

from snapshotter.format.codec import Codec
from snapshotter.format.digest import digest_of
from snapshotter.format.tar_entries import scan_tar
from snapshotter.format.tar_headers import TYPEFLAGS, encode_header
from snapshotter.format.writer.options import WriterOptions
from snapshotter.format.writer.tar_split import is_plain_header
from snapshotter.format.zstd import zstd
from tests.format.tars import Made, entry, folder, hard_link, symlink, tar, trees
from tests.format.written import Written, written

CHUNKED = WriterOptions(chunk_size=4096, compression=Codec.ZSTD)
SPLIT_POSITION = "io.github.containers.zstd-chunked.tarsplit-position"


def split_of(found: Written) -> list[dict[str, Any]]:
    """The tar-split where the annotations say it is, checked against the TOC."""
    offset, size, raw_size = map(int, found.layer.annotations[SPLIT_POSITION].split(":"))
    packed = found.blob[offset : offset + size]
    assert found.blob[offset - 8 : offset] == b"\x50\x2a\x4d\x18" + size.to_bytes(4, "little")
    assert json.loads(found.document.decode("utf-8", "surrogateescape"))["tarSplitDigest"] == digest_of(packed)
    plain = zstd.decompress(packed)
    assert len(plain) == raw_size
    return [json.loads(line) for line in plain.splitlines()]


def name_of(line: dict[str, Any]) -> str:
    return str(line.get("name") or base64.b64decode(line["name_raw"]).decode("utf-8", "surrogateescape"))


def reassembled(found: Written) -> bytes:
    """The tar from its tar-split and the files of the lazy view."""
    out = []
    for position, line in enumerate(split_of(found)):
        assert line["position"] == position
        if line["type"] == 2:
            out.append(base64.b64decode(line["payload"]))
        elif line.get("size"):
            content = found.content(name_of(line))
            assert len(content) == line["size"]
            assert crc64.go_iso(content).to_bytes(8, "big") == base64.b64decode(line["payload"])
            out.append(content)
    return b"".join(out)


def headers_of(found: Written) -> dict[str, tuple[object, ...]]:
    """What the headers in the tar-split say, each segment read on its own; names as they are spelled."""
    headers: dict[str, tuple[object, ...]] = {}
    padding = 0
    for line in split_of(found):
        if line["type"] == 1:
            padding = -line.get("size", 0) % 512
            continue
        with tarfile.open(
            fileobj=io.BytesIO(base64.b64decode(line["payload"])[padding:] + bytes(1024)), errors="surrogateescape"
        ) as archive:
            info = archive.next()
            if info is not None:
                name = info.name + "/" if info.isdir() else info.name
                device = (info.devmajor, info.devminor)
                headers[name] = (info.linkname, info.mode, info.size, info.uid, info.gid, info.mtime, device)
                assert not {"atime", "ctime"} & info.pax_headers.keys()
    return headers


def rows_of(found: Written) -> dict[str, tuple[object, ...]]:
    """The same as the TOC says it."""
    return {
        "./" if row["name"] == "" else row["name"]: (
            row.get("linkName", ""),
            row.get("mode", 0),
            row.get("size", 0),
            row.get("uid", 0),
            row.get("gid", 0),
            datetime.fromisoformat(row["modtime"]).timestamp(),
            (row.get("devMajor", 0), row.get("devMinor", 0)),
        )
        for row in found.rows
        if row["type"] != "chunk"
    }


@given(trees())
def test_tar_is_put_together_again_and_its_headers_say_what_the_toc_says(made: list[Made]) -> None:
    found = written(tar(*made), CHUNKED)
    assert reassembled(found) == found.plain
    assert headers_of(found) == rows_of(found)


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_headers_that_say_more_or_spell_otherwise_than_the_toc_are_written_anew(form: int) -> None:
    source = tar(
        folder("./"),
        folder("./a"),
        entry("./a/b", b"1"),
        entry("//c", b"2"),
        hard_link("h", "./a/b"),
        symlink("s", "../t"),
        entry("bits", b"3", mode=0o100755),
        entry("large-id", b"4", uid=1 << 20),
        entry("d" * 90 + "/" + "e" * 90, b"5"),
        form=form,
    )
    found = written(source, CHUNKED)
    assert reassembled(found) == found.plain
    assert headers_of(found) == rows_of(found)
    assert {"./", "a/", "a/b", "c"} <= headers_of(found).keys()


def test_times_of_access_and_fractions_are_in_headers_as_the_toc_has_them() -> None:
    times = {"mtime": "1700000000.125", "atime": "1700000001.5", "ctime": "1700000002"}
    found = written(tar(entry("a", b"1", mtime=0, pax_headers=times)), CHUNKED)
    assert headers_of(found) == rows_of(found)
    assert rows_of(found)["a"][5] == 1700000000.125


@given(trees())
def test_plain_header_is_one_that_could_have_been_written_by_us(made: list[Made]) -> None:
    source = tar(*made, form=tarfile.PAX_FORMAT)
    for one in scan_tar(io.BytesIO(source)).entries:
        header = source[one.header_offset : one.header_offset + one.header_size]
        if is_plain_header(header, one):
            assert header == encode_header(one)


def test_header_with_any_other_number_name_or_type_is_not_plain() -> None:
    source = tar(entry("a", b"1", uid=3))
    (one,) = scan_tar(io.BytesIO(source)).entries
    header = source[:512]
    assert is_plain_header(header, one)
    for offset, data in (
        (0, b"b"),
        (106, b"x"),
        (110, b"7"),
        (134, b"2"),
        (146, b"1"),
        (156, b"7"),
        (157, b"l"),
        (345, b"p"),
    ):
        changed = header[:offset] + data + header[offset + len(data) :]
        assert not is_plain_header(changed, one)
    assert not is_plain_header(header[:508] + b"tar\0", one)
    assert not is_plain_header(header * 3, one)
    assert set(TYPEFLAGS.values()) == {b"0", b"1", b"2", b"3", b"4", b"5", b"6"}
