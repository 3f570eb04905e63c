"""What one daemon tells the next: read back as written, and what does not fit has a sentence."""

import json
import struct
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapshotter.errors import PlaneError
from snapshotter.plane.fuse.inodes import INODE_REVISION
from snapshotter.plane.fuse.record import RECORD_REVISION, SessionRecord, check_agreement, decode_record

RECORD = SessionRecord(
    RECORD_REVISION, INODE_REVISION, 7, b"\0init\xff", b"", "0:44", "/run/estargz/fuse", "0.1.0", take_overs=3
)

FIELDS = (
    *("record_revision", "inode_revision", "session", "init", "reply"),
    *("device", "mount_point", "version", "take_overs"),
)
"""Of revision 1: every record has them. What came later may be missing."""


@given(
    st.builds(
        SessionRecord,
        st.just(RECORD_REVISION),
        st.just(INODE_REVISION),
        st.integers(0, 1 << 40),
        st.binary(max_size=200),
        st.binary(max_size=200),
        st.text(),
        st.text(),
        st.text(),
        st.integers(0, 1 << 40),
    )
)
def test_a_record_is_read_back_as_it_was_written(record: SessionRecord) -> None:
    assert decode_record(record.encode()) == record


def test_fields_of_a_later_version_are_passed_over() -> None:
    fields = json.loads(RECORD.encode()) | {"of_tomorrow": [1], "init_too": None}
    assert decode_record(json.dumps(fields).encode()) == RECORD


def test_each_take_over_is_counted_and_changes_nothing_else() -> None:
    assert RECORD.taken_over() == replace(RECORD, take_overs=4)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"record_revision": RECORD_REVISION + 1}, f"record of revision {RECORD_REVISION + 1}, this one knows"),
        ({"inode_revision": INODE_REVISION + 1}, f"version 0.1.0 gave inode numbers of revision {INODE_REVISION + 1}"),
        ({"init": "%%%"}, "is not a record"),
        ({"init": None}, "is not a record"),
    ],
)
def test_what_this_version_cannot_serve_is_a_sentence(change: dict[str, object], sentence: str) -> None:
    fields = json.loads(RECORD.encode()) | change
    with pytest.raises(PlaneError, match=sentence):
        decode_record(json.dumps(fields).encode())


def test_a_record_of_the_first_daemon_that_kept_one_is_read() -> None:
    fields = json.loads(RECORD.encode())
    assert decode_record(json.dumps({name: fields[name] for name in FIELDS}).encode()) == RECORD


@pytest.mark.parametrize("missing", FIELDS)
def test_a_record_without_one_of_its_fields_is_none(missing: str) -> None:
    fields = json.loads(RECORD.encode())
    del fields[missing]
    with pytest.raises(PlaneError, match=f"is not a record: KeyError.'{missing}'"):
        decode_record(json.dumps(fields).encode())


@given(st.binary(max_size=100) | st.from_type(list[int]).map(lambda values: json.dumps(values).encode()))
def test_any_other_bytes_are_a_plane_error(data: bytes) -> None:
    with pytest.raises(PlaneError):
        decode_record(data)


def reply(flags: int = 1 << 22, *, max_write: int = 1 << 20, max_pages: int = 256, background: int = 12) -> bytes:
    body = struct.pack("<IIIIHHIIHH32x", 7, 31, 131072, flags, background, 9, max_write, 1, max_pages, 0)
    return struct.pack("<IiQ", 16 + len(body), 0, 2) + body


@pytest.mark.parametrize(
    "now",
    [reply(), reply(background=99), reply(1 << 22 | 1 << 18 | 1 << 23)],
    ids=["the same", "other limits", "flags that decide nothing"],
)
def test_what_decides_nothing_may_differ(now: bytes) -> None:
    check_agreement(reply(), now)


@pytest.mark.parametrize(
    ("now", "sentence"),
    [
        (reply(max_write=1 << 17), "requests of 131072 bytes and 256 pages, the kernel was told 1048576 and 256"),
        (reply(max_pages=32), "1048576 bytes and 32 pages"),
        (reply(0), "and 32 pages"),
        *((reply(1 << 22 | 1 << bit), "agrees to flags") for bit in (0, 4, 12, 13, 16, 20)),
        (b"", "this libfuse is not supported"),
    ],
)
def test_what_decides_about_buffers_or_the_form_of_replies_must_not(now: bytes, sentence: str) -> None:
    with pytest.raises(PlaneError, match=sentence):
        check_agreement(reply(), now)
