"""INIT and its reply, as bytes."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapshotter.errors import PlaneError
from snapshotter.plane.fuse.protocol import (
    CACHE_SYMLINKS,
    CONGESTION_THRESHOLD,
    MAX_BACKGROUND,
    PARALLEL_DIROPS,
    parse_init_reply,
    parse_init_request,
    patch_init_reply,
)


def init_request(flags: int, opcode: int = 26, major: int = 7) -> bytes:
    body = struct.pack("<IIIII44x", major, 45, 131072, flags, 0)
    return struct.pack("<IIQQIIIHH", 40 + len(body), opcode, 2, 0, 0, 0, 0, 0, 0) + body


def init_reply(flags: int, error: int = 0) -> bytes:
    body = struct.pack("<IIIIHHIIHHI28x", 7, 31, 131072, flags, 0, 0, 1 << 20, 1, 256, 0, 0)
    return struct.pack("<IiQ", 16 + len(body), error, 2) + body


def test_flags_that_libfuse_forgets_are_added() -> None:
    request, reply = init_request(0xFFFFFFFF), init_reply(1 << 22)
    agreed = parse_init_reply(patch_init_reply(reply, request))
    assert agreed.flags == 1 << 22 | PARALLEL_DIROPS | CACHE_SYMLINKS
    assert (agreed.max_background, agreed.congestion_threshold) == (MAX_BACKGROUND, CONGESTION_THRESHOLD)


def test_flags_that_the_kernel_does_not_offer_are_not_added() -> None:
    agreed = parse_init_reply(patch_init_reply(init_reply(0), init_request(PARALLEL_DIROPS)))
    assert agreed.flags == PARALLEL_DIROPS


@given(st.integers(0, 0xFFFFFFFF), st.integers(0, 0xFFFFFFFF))
def test_nothing_else_in_the_reply_changes(offered: int, answered: int) -> None:
    reply = init_reply(answered)
    patched = patch_init_reply(reply, init_request(offered))
    assert len(patched) == len(reply)
    assert patched[:28] == reply[:28]
    assert patched[36:] == reply[36:]


def test_patching_twice_changes_nothing_more() -> None:
    request = init_request(0xFFFFFFFF)
    once = patch_init_reply(init_reply(0), request)
    assert patch_init_reply(once, request) == once


def test_limits_fit_their_fields() -> None:
    assert CONGESTION_THRESHOLD < MAX_BACKGROUND <= 0xFFFF


@given(st.binary(max_size=200))
def test_any_first_message_is_an_init_or_a_plane_error(message: bytes) -> None:
    try:
        parse_init_request(message)
    except PlaneError:
        return
    assert struct.unpack_from("<I", message, 4) == (26,)


@given(st.binary(max_size=200))
def test_any_reply_parses_or_is_a_plane_error(message: bytes) -> None:
    try:
        parse_init_reply(message)
    except PlaneError:
        return
    assert struct.unpack_from("<I", message) == (len(message),)


@pytest.mark.parametrize("message", [init_request(0, opcode=1), init_request(0, major=8), b""])
def test_another_request_is_not_an_init(message: bytes) -> None:
    with pytest.raises(PlaneError):
        parse_init_request(message)


def test_refusal_by_libfuse_is_said() -> None:
    with pytest.raises(PlaneError, match="error -71"):
        patch_init_reply(init_reply(0, error=-71), init_request(0))
