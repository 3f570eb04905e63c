"""Checks of single entries."""

import os
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapshotter.errors import FormatError
from snapshotter.format.attributes import (
    Clock,
    check_device,
    check_digest,
    check_owner,
    check_target,
    check_xattrs,
    encode,
    show,
    split_path,
)
from snapshotter.format.toc import Entry


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        (b"a", [b"a"]),
        (b"./a/b/", [b"a", b"b"]),
        (b"a//b/./c", [b"a", b"b", b"c"]),
        (b"./", []),
        (b".", []),
        (b"/", []),
        (b"..a/b..", [b"..a", b"b.."]),
        (b"\xff" * 255, [b"\xff" * 255]),
    ],
)
def test_names_are_cleaned(name: bytes, parts: list[bytes]) -> None:
    assert split_path(name) == parts


@pytest.mark.parametrize(
    "name", [b"", b"/a", b"//", b"..", b"a/../b", b"a/..", b"x" * 256, b"d/" + b"x" * 256 + b"/f", b"ab/" * 1366]
)
def test_names_that_no_layer_may_have_are_format_errors(name: bytes) -> None:
    with pytest.raises(FormatError):
        split_path(name)


@pytest.mark.parametrize("text", ["a\0b", "\ud800"])
def test_text_that_no_file_system_takes_is_format_error(text: str) -> None:
    with pytest.raises(FormatError):
        encode(text, "name")


def test_names_in_messages_are_quoted_and_short() -> None:
    assert show(b"a\xff\n") == r"'a\\xff\n'"
    assert len(show(b"x" * 4000)) <= 120


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, 0),
        ("", 0),
        ("1970-01-01T00:00:00Z", 0),
        ("2024-02-29T12:30:45Z", 1_709_209_845_000_000_000),
        ("2024-02-29T12:30:45.5Z", 1_709_209_845_500_000_000),
        ("2024-02-29T12:30:45.123456789Z", 1_709_209_845_123_456_789),
        ("2024-02-29T12:30:45+01:00", 1_709_206_245_000_000_000),
        ("1969-12-31T23:59:59Z", 0),
        ("0001-01-01T00:00:00Z", 0),
        ("9999-12-31T23:59:59Z", 0),
        ("2262-04-11T23:47:16Z", 9_223_372_036_000_000_000),
        ("2262-04-11T23:47:17Z", 0),
    ],
)
def test_times_are_nanoseconds_and_bounded_as_unpacking_bounds_them(text: str | None, expected: int) -> None:
    clock = Clock()
    assert clock.mtime_ns(text) == clock.mtime_ns(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "2024-02-30T00:00:00Z",
        "2024-01-01T00:00:00",
        "2024-01-01",
        "2024-01-01T24:00:01Z",
        "2024-01-01T00:00:60Z",
        "0000-01-01T00:00:00Z",
        "2024-01-01T00:00:00+99:00",
        "٢024-01-01T00:00:00Z",
    ],
)
def test_times_that_are_none_are_format_errors(text: str) -> None:
    with pytest.raises(FormatError):
        Clock().mtime_ns(text)


@given(st.text(max_size=30))
def test_any_time_gives_nanoseconds_or_format_error(text: str) -> None:
    with suppress(FormatError):
        assert Clock().mtime_ns(text) >= 0


def test_mode_keeps_its_permission_bits_only() -> None:
    assert check_owner(Entry(mode=0o106755, uid=4_294_967_294, gid=70_000)) == (0o6755, 4_294_967_294, 70_000)


@pytest.mark.parametrize("field", ["mode", "uid", "gid"])
@pytest.mark.parametrize("value", [-1, 1 << 32, 1 << 80])
def test_mode_and_ids_out_of_range_are_format_errors(field: str, value: int) -> None:
    entry = Entry(name="n")
    setattr(entry, field, value)
    with pytest.raises(FormatError):
        check_owner(entry)


def test_id_that_means_unchanged_is_format_error() -> None:
    with pytest.raises(FormatError):
        check_owner(Entry(uid=4_294_967_295))


@given(st.integers(0, 4095), st.integers(0, (1 << 20) - 1))
def test_device_numbers_are_those_of_stat(major: int, minor: int) -> None:
    assert check_device(Entry(dev_major=major, dev_minor=minor)) == os.makedev(major, minor)


@pytest.mark.parametrize(("major", "minor"), [(-1, 0), (0, -1), (4096, 0), (0, 1 << 20)])
def test_device_numbers_out_of_range_are_format_errors(major: int, minor: int) -> None:
    with pytest.raises(FormatError):
        check_device(Entry(dev_major=major, dev_minor=minor))


def test_link_targets_have_1_to_4095_bytes() -> None:
    assert len(check_target(Entry(link_name="é" * 2047 + "x"))) == 4095
    for target in ("", "é" * 2048, "a\0"):
        with pytest.raises(FormatError):
            check_target(Entry(link_name=target))


def test_only_attributes_that_unpacking_sets_are_kept() -> None:
    kept: dict[str, bytes | None] = {
        "user.a": b"\0\xff",
        "user.empty": b"",
        "security.capability": b"cap",
        "system.posix_acl_access": b"acl",
        "system.posix_acl_default": b"acl",
    }
    dropped: dict[str, bytes | None] = {
        "trusted.overlay.redirect": b"/x",
        "trusted.a": b"",
        "com.apple.quarantine": b"q",
        "system.nfs4_acl": b"n",
    }
    assert check_xattrs(Entry(xattrs=kept | dropped)) == {name.encode(): value for name, value in kept.items()}


@pytest.mark.parametrize(
    "xattrs",
    [
        {"": b""},
        {"plain": b""},
        {".a": b""},
        {"user.": b""},
        {"user.a\0": b""},
        {"user." + "a" * 251: b""},
        {"user.a": bytes(65537)},
        {f"user.{number}": bytes(65536) for number in range(17)},
    ],
)
def test_attributes_the_kernel_would_refuse_are_format_errors(xattrs: dict[str, bytes | None]) -> None:
    with pytest.raises(FormatError):
        check_xattrs(Entry(name="n", xattrs=xattrs))


def test_attributes_at_the_kernels_limits_are_kept() -> None:
    assert check_xattrs(Entry(xattrs={"user." + "a" * 250: bytes(65536)}))


@pytest.mark.parametrize(
    "text",
    [
        "sha256:",
        "sha256:" + "g" * 64,
        "sha256:" + "A" * 64,
        "sha256:" + "a " * 32,
        "sha512:" + "a" * 64,
        "sha256:" + "0" * 64,
    ],
)
def test_digests_that_are_not_sha256_are_format_errors(text: str) -> None:
    with pytest.raises(FormatError):
        check_digest(text, "n")
