import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapshotter.errors import FormatError
from snapshotter.image.optimize.record_file import Recorded, format_record, in_image, parse_record
from tests.format.tars import entry, folder, symlink
from tests.image.test_tree import tree

DIGEST = "sha256:" + 64 * "a"


def test_line_is_as_the_other_tool_writes_it() -> None:
    line = b'{"path":"usr/bin/env","manifestDigest":"%s","layerIndex":0}\n' % DIGEST.encode()
    assert format_record([Recorded("usr/bin/env", DIGEST, 0)]) == line
    assert parse_record(line) == [Recorded("usr/bin/env", DIGEST, 0)]


def test_first_place_of_a_path_counts_and_unknown_members_do_not() -> None:
    data = b'{"path":"/b"}\r\n\n{"path":"a","more":[1]}\n{"path":"./b","layerIndex":2}'
    assert parse_record(data) == [Recorded("b"), Recorded("a")]


@pytest.mark.parametrize(
    "bad",
    [
        b"usr/bin/env",
        b"[]",
        b"{}",
        b'{"path":""}',
        b'{"path":"/"}',
        b'{"path":1}',
        b'{"path":"a\\u0000b"}',
        b'{"path":"a","layerIndex":-1}',
        b'{"path":"a","layerIndex":true}',
        b'{"path":"a","manifestDigest":1}',
        b'{"path":"\xff"}',
        b"[" * 100_000,
    ],
)
def test_bad_line_is_named(bad: bytes) -> None:
    with pytest.raises(FormatError, match="line 3 of the record"):
        parse_record(b'{"path":"a"}\n\n' + bad + b"\n")


@given(st.lists(st.binary(min_size=1, max_size=9).filter(lambda name: not {0, 47} & {*name} and name.strip(b"."))))
def test_any_name_comes_back(names: list[bytes]) -> None:
    records = [
        Recorded(name.decode(errors="surrogateescape"), DIGEST, n) for n, name in enumerate(dict.fromkeys(names))
    ]
    data = format_record(records)
    assert parse_record(data) == records
    assert len([json.loads(line) for line in data.splitlines() if line]) == len(records)


def test_only_files_of_the_image_count_each_with_the_layer_that_shows_it() -> None:
    image = tree([folder("d"), entry("d/a"), entry("b"), symlink("l", "b")], [entry("b"), entry("d/.wh.a"), entry("c")])
    recorded = in_image(["/b", "d/a", "d", "l", "made", "c"], image, DIGEST)
    assert recorded == [Recorded("b", DIGEST, 1), Recorded("c", DIGEST, 1)]
