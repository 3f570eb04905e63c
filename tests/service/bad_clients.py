"""Clients of the socket that behave badly: bytes put together by hand, and calls that stop half way."""

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc

SERVICE = "/containerd.services.snapshots.v1.Snapshots/"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _SETTINGS = 0, 1, 4
_END_STREAM, _END_HEADERS = 1, 4


@contextmanager
def half_open(address: Path, method: str, count: int) -> Iterator[None]:
    """So many calls whose headers are sent and whose request never is, until the block ends."""
    end = threading.Event()

    def never() -> Iterator[bytes]:
        end.wait()
        yield from ()

    with grpc.insecure_channel(f"unix:{address}") as channel:
        call = channel.stream_unary(SERVICE + method, None, None)
        calls = [call.future(never()) for _ in range(count)]
        try:
            yield
        finally:
            end.set()
            for one in calls:
                one.cancel()  # type: ignore[no-untyped-call]


@contextmanager
def unread(address: Path, method: str, request: bytes, count: int) -> Iterator[None]:
    """So many calls of a stream of which no message is read, until the block ends; each on a connection of its own."""
    with ExitStack() as undo:
        for _ in range(count):
            connection = undo.enter_context(connected(address))
            connection.sendall(opening() + call_frames(1, method, request))
        yield


@contextmanager
def connected(address: Path) -> Iterator[socket.socket]:
    """A connection of bytes; writing gives up after a while, as the other side need not read."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(str(address))
        yield connection


def opening() -> bytes:
    """What a client of HTTP/2 says first. Source: RFC 9113, 3.4."""
    return PREFACE + frame(_SETTINGS, 0, 0, b"")


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """One frame. Source: RFC 9113, 4.1."""
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def call_frames(stream: int, method: str, request: bytes) -> bytes:
    """One call of gRPC, whole. Header fields are literals without a name of the table (RFC 7541, 6.2.2)."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": SERVICE + method,
        ":authority": "localhost",
        "te": "trailers",
        "content-type": "application/grpc",
    }
    block = b"".join(
        b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
        for name, value in fields.items()
    )
    message = b"\0" + struct.pack(">I", len(request)) + request
    return frame(_HEADERS, _END_HEADERS, stream, block) + frame(_DATA, _END_STREAM, stream, message)
