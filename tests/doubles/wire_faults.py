"""Answers that no registry should give, for the words of `tests.doubles.script` that no HTTP library would write.

Each function answers one request for a range of a blob. What it writes goes to the socket as it is.
"""

import gzip
import socket
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from email.utils import formatdate
from time import time

from tests.doubles.server import Handler

_PIECE = 1000
_MANY = 3000


@dataclass(frozen=True, slots=True)
class Wanted:
    """A range that was asked for: who asked, the blob, its first byte and the one behind its last."""

    handler: Handler
    blob: bytes
    first: int
    end: int
    value: float

    @property
    def body(self) -> bytes:
        """The right bytes."""
        return self.blob[self.first : self.end]

    def headers(self, **changes: object) -> dict[str, str]:
        """Those of the right answer but for `changes`; None takes one out."""
        right: dict[str, object] = {
            "Content_Type": "application/octet-stream",
            "Content_Length": self.end - self.first,
            "Content_Range": f"bytes {self.first}-{self.end - 1}/{len(self.blob)}",
        }
        return {name.replace("_", "-"): str(value) for name, value in (right | changes).items() if value is not None}

    def answer(self, body: bytes, status: int = 206, **changes: object) -> None:
        """An answer with the right headers but for `changes`."""
        self.handler.begin(status, self.headers(**changes))
        self.handler.send(body)

    def last(self, *pieces: bytes) -> None:
        """Write bytes as they are, then close."""
        self.handler.close_connection = True
        for piece in pieces:
            self.handler.connection.sendall(piece)

    def head(self, line: str = "HTTP/1.1 206 Partial Content", **changes: object) -> bytes:
        """Status line and headers as bytes."""
        rows = (f"{name}: {value}\r\n" for name, value in self.headers(**changes).items())
        return f"{line}\r\n{''.join(rows)}\r\n".encode()


def _reset(wanted: Wanted) -> None:
    """Close so that the other side sees its connection reset."""
    connection = wanted.handler.connection
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wanted.handler.close_connection = True


def _reset_in_headers(wanted: Wanted) -> None:
    wanted.last(wanted.head()[:40])
    _reset(wanted)


def _reset_in_body(wanted: Wanted) -> None:
    wanted.answer(wanted.body[: int(wanted.value)])
    _reset(wanted)


def _cut_without_length(wanted: Wanted) -> None:
    wanted.last(wanted.head(Content_Length=None, Connection="close"), wanted.body[: int(wanted.value)])


def _drip(wanted: Wanted) -> None:
    """A byte every `value` seconds, until somebody has enough of it."""
    wanted.handler.close_connection = True
    wanted.handler.begin(206, wanted.headers())
    for at in range(len(wanted.body)):
        if wanted.handler.server_double.closing.wait(wanted.value):
            return
        wanted.handler.send(wanted.body[at : at + 1])


def _drip_headers(wanted: Wanted) -> None:
    wanted.handler.close_connection = True
    wanted.handler.connection.sendall(b"HTTP/1.1 206 Partial Content\r\n")
    while not wanted.handler.server_double.closing.wait(wanted.value):
        wanted.handler.connection.sendall(b"x-more: y\r\n")


def _noise(wanted: Wanted) -> None:
    wanted.handler.connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: <x>\r\n\r\n")
    wanted.answer(wanted.body)


def _endless_noise(wanted: Wanted) -> None:
    wanted.handler.close_connection = True
    while not wanted.handler.server_double.closing.wait(0.01):
        wanted.handler.connection.sendall(b"HTTP/1.1 102 Processing\r\n\r\n")


def _chunks(body: bytes) -> Iterator[bytes]:
    for at in range(0, len(body), _PIECE):
        piece = body[at : at + _PIECE]
        yield b"%x\r\n%s\r\n" % (len(piece), piece)


def _chunked(wanted: Wanted, *, stop: bytes = b"0\r\n\r\n", part: int | None = None) -> None:
    head = wanted.head(Content_Length=None, Transfer_Encoding="chunked")
    wanted.last(head, *_chunks(wanted.body[:part]), stop)


def _many_headers(wanted: Wanted) -> None:
    rows = "".join(f"x-{number}: {'y' * 100}\r\n" for number in range(_MANY))
    wanted.last(f"HTTP/1.1 206 Partial Content\r\n{rows}\r\n".encode(), wanted.body)


def _second_answer(wanted: Wanted) -> None:
    """The right answer, and behind it one to a question that nobody has asked yet."""
    wanted.answer(wanted.body)
    wanted.handler.connection.sendall(wanted.head() + bytes(len(wanted.body)))


def _flipped(wanted: Wanted) -> None:
    at = min(int(wanted.value), len(wanted.body) - 1)
    body = bytearray(wanted.body)
    body[at] ^= 0x10
    wanted.answer(bytes(body))


def _gzipped(wanted: Wanted) -> None:
    body = gzip.compress(wanted.body)
    wanted.answer(body, Content_Encoding="gzip", Content_Length=len(body))


def _of_another(wanted: Wanted) -> None:
    others = [blob for blob in _blobs(wanted) if blob is not wanted.blob and len(blob) >= wanted.end]
    wanted.answer((others or [bytes(wanted.end)])[0][wanted.first : wanted.end])


def _blobs(wanted: Wanted) -> list[bytes]:
    found: dict[str, bytes] = getattr(wanted.handler.server_double, "blobs", {})
    return list(found.values())


def _range(text: str) -> Callable[[Wanted], None]:
    """The right bytes below another Content-Range: `{first}`, `{last}` and `{size}` are those of the right one."""

    def answer(wanted: Wanted) -> None:
        names = {"first": wanted.first, "last": wanted.end - 1, "size": len(wanted.blob), "less": len(wanted.blob) - 1}
        wanted.answer(wanted.body, Content_Range=text.format(**names, past=wanted.end))

    return answer


def _later(wanted: Wanted) -> None:
    date = formatdate(time() + wanted.value, usegmt=True)
    wanted.handler.reply(503, b"", {"Retry-After": date})


def _page(wanted: Wanted) -> None:
    wanted.handler.reply(200, b"<html>Please log in to this network.</html>", {"Content-Type": "text/html"})


FAULTS: Mapping[str, Callable[[Wanted], None]] = {
    "reset": _reset,
    "reset-in-headers": _reset_in_headers,
    "reset-in-body": _reset_in_body,
    "cut-in-headers": lambda wanted: wanted.last(wanted.head()[:40]),
    "cut-without-length": _cut_without_length,
    "no-length": lambda wanted: wanted.last(wanted.head(Content_Length=None, Connection="close"), wanted.body),
    "http-1.0": lambda wanted: wanted.last(wanted.head("HTTP/1.0 206 Partial Content"), wanted.body),
    "drip": _drip,
    "drip-headers": _drip_headers,
    "noise": _noise,
    "endless-noise": _endless_noise,
    "chunked": _chunked,
    "chunked-cut": lambda wanted: _chunked(wanted, stop=b"", part=len(wanted.body) // 2),
    "chunked-without-end": lambda wanted: _chunked(wanted, stop=b""),
    "chunked-nonsense": lambda wanted: _chunked(wanted, stop=b"zz\r\nnonsense\r\n", part=len(wanted.body) // 2),
    "chunked-huge": lambda wanted: _chunked(wanted, stop=b"f" * 40 + b"\r\n", part=len(wanted.body) // 2),
    "garbage": lambda wanted: wanted.last(b"\x00\xffnot HTTP at all\r\n\r\n" * 50),
    "tls": lambda wanted: wanted.last(b"\x15\x03\x03\x00\x02\x02\x46"),
    "large-header": lambda wanted: wanted.last(wanted.head(X_Large="y" * 200_000), wanted.body),
    "many-headers": _many_headers,
    "two-lengths": lambda wanted: wanted.last(
        wanted.head().replace(b"\r\n\r\n", b"\r\nContent-Length: 3\r\n\r\n"), wanted.body
    ),
    "negative-length": lambda wanted: wanted.last(wanted.head(Content_Length=-5), wanted.body),
    "strange-status": lambda wanted: wanted.last(wanted.head("HTTP/1.1 2o6 Partial"), wanted.body),
    "empty": lambda wanted: wanted.answer(b"", Content_Length=0),
    "doubled": lambda wanted: wanted.answer(wanted.body * 2, Content_Length=2 * len(wanted.body)),
    "doubled-inside": lambda wanted: wanted.answer((wanted.body[: _PIECE // 2] * 2 + wanted.body)[: len(wanted.body)]),
    "second-answer": _second_answer,
    "flip": _flipped,
    "zeros": lambda wanted: wanted.answer(bytes(len(wanted.body))),
    "of-another": _of_another,
    "gzipped": _gzipped,
    "wrong-last": _range("bytes {first}-{past}/{size}"),
    "wrong-total": _range("bytes {first}-{last}/{less}"),
    "backward-range": _range("bytes {last}-{first}/{size}"),
    "nonsense-range": _range("octets all of them"),
    "page": _page,
    "later": _later,
}
