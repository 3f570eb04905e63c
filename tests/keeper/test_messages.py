"""Packets between daemon and keeper: any bytes are a message or none, and no descriptor is left open."""

import os
import socket
from array import array
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from snapshotter.keeper.messages import MAX_MESSAGE, Message, pack_kept, peer, receive, send, unpack_kept

HEADER = 12
Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with one, other:
        for end in (one, other):
            end.settimeout(60)
        yield one, other


def open_descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


shared = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@shared
@given(
    st.builds(
        Message,
        st.integers(0, 0xFFFF),
        st.integers(0, 0xFFFF),
        st.integers(0, 0xFFFFFFFF),
        st.binary(max_size=2000),
        st.just(()),
    )
)
def test_what_is_sent_is_received(pair: Pair, message: Message) -> None:
    send(pair[0], message)
    assert receive(pair[1]) == message


@shared
@given(st.binary(min_size=1, max_size=100) | st.binary(max_size=60).map(lambda rest: b"EKP1" + rest))
def test_any_bytes_are_a_message_or_none(pair: Pair, packet: bytes) -> None:
    pair[0].send(packet)
    message = receive(pair[1])
    assert (message is not None) == (packet[:4] == b"EKP1" and len(packet) >= HEADER)


def test_descriptors_travel_beside_a_message_and_are_closed_in_children(pair: Pair) -> None:
    with open("/dev/null") as file:
        send(pair[0], Message(4, payload=b"x", fds=(file.fileno(),)))
    message = receive(pair[1])
    assert message is not None
    (fd,) = message.fds
    try:
        assert os.readlink(f"/proc/self/fd/{fd}") == "/dev/null"
        assert not os.get_inheritable(fd)
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("packet", "count"),
    [(b"EKP1", 1), (b"XXXX" + bytes(8), 2), (b"EKP1" + bytes(8), 5), (b"EKP1" + bytes(MAX_MESSAGE), 1)],
    ids=["too short", "not ours", "too many descriptors", "too long"],
)
def test_descriptors_beside_what_is_no_message_are_closed(pair: Pair, packet: bytes, count: int) -> None:
    before = open_descriptors()
    with open("/dev/null") as file:
        rights = array("i", [file.fileno()] * count)
        pair[0].sendmsg([packet], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
    assert receive(pair[1]) is None
    assert open_descriptors() <= before


def test_the_end_of_the_other_side_is_no_message(pair: Pair) -> None:
    pair[0].close()
    assert receive(pair[1]) is None


@given(st.integers(0, 0xFFFFFFFF), st.binary(max_size=200))
def test_what_is_kept_is_unpacked_as_it_was_packed(minor: int, record: bytes) -> None:
    assert unpack_kept(pack_kept(minor, record)) == (minor, record)


def test_the_other_end_is_known(pair: Pair) -> None:
    assert peer(pair[0]) == (os.getpid(), os.geteuid())
