"""Headers that tarfile reads otherwise than Go does, which unpacks layers; what Go makes of each was tried with its 1.26."""

import io
import tarfile

import pytest

from snapshotter.errors import FormatError, NotLazy
from snapshotter.format.tar_reading import tar_headers
from tests.format.test_tar_entries import raw_header

END = bytes(1024)


def read(*parts: bytes) -> list[tarfile.TarInfo]:
    return list(tar_headers(io.BytesIO(b"".join(parts) + END)))


def extension(kind: bytes, body: bytes) -> bytes:
    return raw_header(b"extension", kind, len(body)) + body.ljust(-(-len(body) // 512) * 512, b"\0")


PATH = extension(b"x", b"16 path=another\n")
TIME = extension(b"x", b"11 mtime=7\n")
NOTHING = extension(b"x", b"8 path=\n")
ANYBODY = extension(b"g", b"15 comment=any\n")
NAME = extension(b"L", b"long\0")
LINK = extension(b"K", b"target\0")
FILE = raw_header(b"file", b"0")


@pytest.mark.parametrize(
    "chain",
    [
        [PATH, ANYBODY],  # Go: file
        [NAME, ANYBODY],  # Go: file
        [PATH, TIME],  # Go: file, with the time
        [PATH, NAME],  # Go: long; tarfile: another
        [NAME, PATH],
        [NAME, extension(b"L", b"longer\0")],  # Go: longer; tarfile: long
        [extension(b"X", b"16 path=another\n")],  # Go: an entry of its own
        [NOTHING],  # Go: file; tarfile: no name
        [extension(b"L", b"\0")],
        [extension(b"K", b"")],
    ],
    ids=["x g", "L g", "x x", "x L", "L x", "L L", "X", "empty x", "empty L", "empty K"],
)
def test_extensions_that_go_joins_otherwise_leave_the_layer_ordinary(chain: list[bytes]) -> None:
    with pytest.raises(NotLazy, match="understand differently"):
        read(*chain, FILE)


def test_extensions_that_all_read_alike_are_read() -> None:
    link = raw_header(b"link", b"2")
    both = read(ANYBODY, PATH, FILE, LINK, NAME, link, NAME, LINK, link, LINK, link)
    assert [(one.name, one.linkname) for one in both] == [
        ("another", ""),
        ("long", "target"),
        ("long", "target"),
        ("link", "target"),
    ]


@pytest.mark.parametrize(
    ("magic", "name"),
    [
        (b"ustar\x0000", "front/file"),
        (b"ustar\0xx", "front/file"),
        (b"ustar  \0", "front/file"),  # as Go wrote it before its 1.8
        (bytes(8), "file"),
        (b"ustar 00", "file"),
    ],
)
def test_prefix_of_a_name_counts_where_go_counts_it(magic: bytes, name: str) -> None:
    assert [one.name for one in read(raw_header(b"file", b"0", _257=magic, _345=b"front"))] == [name]


def test_prefix_of_a_star_header_ends_before_its_times() -> None:
    star = {"_257": b"ustar\x0000", "_345": b"p" * 131, "_476": b"14566500000 ", "_508": b"tar\0"}
    assert [one.name for one in read(raw_header(b"file", b"0", 0, **star))] == ["p" * 131 + "/file"]


def test_devices_and_owners_of_old_headers_are_not_there() -> None:
    old = {"_257": bytes(8), "_265": b"somebody", "_297": b"some", "_329": b"0000007\0", "_337": b"0000007\0"}
    assert [
        (one.uname, one.gname, one.devmajor, one.devminor) for one in read(raw_header(b"file", b"3", 0, **old))
    ] == [("", "", 0, 0)]


@pytest.mark.parametrize("number", [b"-000644\0", b"+000644\0", b"0_00644\0", b"\t000644\0", b"\x0000644\0"])
@pytest.mark.parametrize("place", [100, 108, 116, 329])
def test_number_that_go_refuses_or_reads_otherwise_is_a_format_error(number: bytes, place: int) -> None:
    with pytest.raises(FormatError, match="damaged header"):
        read(raw_header(b"file", b"0", 0, **{f"_{place}": number}))


@pytest.mark.parametrize(
    "header",
    [
        raw_header(b"file", b"0", 0, _136=b"\x80\0\0\0\x80" + bytes(7)),
        raw_header(b"file", b"S", 0, _257=b"ustar\x0000"),
    ],
    ids=["time beyond 63 bits", "sparse file without GNU's mark"],
)
def test_header_that_go_refuses_is_a_format_error(header: bytes) -> None:
    with pytest.raises(FormatError, match="damaged header"):
        read(header)


@pytest.mark.parametrize("number", [b"0000644\0", b"    644 ", b"644\0junk", b"644\0\0\0\0\0", b"0000644 "])
def test_number_in_any_manner_of_tools_is_read(number: bytes) -> None:
    assert [one.mode for one in read(raw_header(b"file", b"0", _100=number))] == [0o644]
