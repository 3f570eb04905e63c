"""Decoding of the TOC's JSON."""

import json
from typing import Any

import pytest

from snapshotter.errors import FormatError
from snapshotter.format import toc
from snapshotter.format.toc import Entry, decode_entries


def decode(*rows: Any, version: Any = 1) -> list[Entry]:
    return list(decode_entries(json.dumps({"version": version, "entries": rows}).encode()))


def test_fields_have_the_names_of_the_format() -> None:
    [entry] = decode(
        {
            "name": "a",
            "type": "reg",
            "size": 1,
            "modtime": "t",
            "linkName": "l",
            "mode": 2,
            "uid": 3,
            "gid": 4,
            "offset": 5,
            "innerOffset": 6,
            "devMajor": 7,
            "devMinor": 8,
            "xattrs": {"user.a": "/w==", "user.none": None},
            "digest": "d",
            "chunkOffset": 9,
            "chunkSize": 10,
            "chunkDigest": "c",
            "chunkType": "z",
            "endOffset": 11,
            "userName": "ignored",
            "NumLink": 0,
            "accesstime": None,
        }
    )
    assert (entry.link_name, entry.inner_offset, entry.dev_major, entry.dev_minor) == ("l", 6, 7, 8)
    assert (entry.chunk_offset, entry.chunk_size, entry.chunk_digest, entry.chunk_type) == (9, 10, "c", "z")
    assert (entry.end_offset, entry.xattrs) == (11, {"user.a": b"\xff", "user.none": None})


@pytest.mark.parametrize("entries", [b"[]", b"null"])
def test_toc_without_entries_is_valid(entries: bytes) -> None:
    assert list(decode_entries(b'{"version":1,"entries":' + entries + b"}")) == []


@pytest.mark.parametrize("version", [0, 2, "1", None, 1.5])
def test_other_versions_are_format_errors(version: Any) -> None:
    with pytest.raises(FormatError):
        decode(version=version)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b'{"version":1,"entries":{}}',
        b'{"version":1,"entries":[0]}',
        b'{"version":1,"entries":[{"name":1}]}',
        b'{"version":1,"entries":[{"size":"1"}]}',
        b'{"version":1,"entries":[{"size":1e400}]}',
        b'{"version":1,"entries":[{"xattrs":{"a":"!"}}]}',
        b'{"version":1,"entries":[{"name":"\\udcff"}]}',
        b'{"version":1,"entries":[{"x":' + b"[" * 100_000,
        b'{"version":1,"entries":[]}trailing',
        b'{"version":1,"entries":[{"name":"\xff","size":"x"}]}',
        b'{"version":1,"entries":[{"name":"\xff","size":' + b"9" * 5000 + b"}]}",
    ],
)
def test_json_of_another_shape_is_format_error(data: bytes) -> None:
    with pytest.raises(FormatError):
        list(decode_entries(data))


def test_bytes_that_are_not_utf8_come_back_as_surrogate_escapes() -> None:
    row = b'{"name":"caf\xe9/\xff","type":"symlink","linkName":"\x80","xattrs":{"user.a":"AAE="}}'
    [plain, entry] = decode_entries(b'{"version":1,"entries":[{"name":"caf\xc3\xa9"},' + row + b"]}")
    assert plain.name == "café"
    assert entry.name.encode("utf-8", "surrogateescape") == b"caf\xe9/\xff"
    assert (entry.link_name, entry.xattrs) == ("\udc80", {"user.a": b"\0\1"})


@pytest.mark.parametrize("field", ["name", "linkName"])
def test_name_that_lost_bytes_in_gos_encoder_is_format_error(field: str) -> None:
    with pytest.raises(FormatError, match="dropped bytes"):
        list(decode_entries(b'{"version":1,"entries":[{"name":"n","' + field.encode() + b'":"a\\ufffdb"}]}'))


def test_replacement_character_that_was_really_in_a_name_is_kept() -> None:
    rows = b'{"name":"a\xef\xbf\xbd"},{"name":"b","userName":"\\ufffd"}'
    assert [entry.name for entry in decode_entries(b'{"version":1,"entries":[' + rows + b"]}")] == ["a\ufffd", "b"]


def test_more_entries_than_the_limit_are_format_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toc, "TOC_ENTRIES", 3)
    assert len(decode({}, {}, {})) == 3
    with pytest.raises(FormatError, match="the limit is 3"):
        decode({}, {}, {}, {})
    with pytest.raises(FormatError, match="more than 3"):
        decode(*[{}] * 20)


def test_row_that_is_no_object_stops_a_huge_toc_before_it_takes_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toc, "TOC_ENTRIES", 3)
    monkeypatch.setattr(toc, "_TOC", None)
    with pytest.raises(FormatError, match="expected shape"):
        decode(*range(20))


def test_json_over_the_limit_is_format_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toc, "TOC_RAW", 10)
    with pytest.raises(FormatError, match="the limit is 10"):
        decode()
