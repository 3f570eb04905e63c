"""A loopback HTTP/1.1 server in threads of its own, which records what it was asked and what it sent."""

import os
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self
from urllib.parse import SplitResult, urlsplit

_SETTLE_S = 5.0


@dataclass(slots=True)
class Recorded:
    """One request. `headers` have lower-case names; `sent` counts bytes of the response's body."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    connection: int
    body: bytes = b""
    status: int = 0
    sent: int = 0
    done: bool = False

    @property
    def range(self) -> tuple[int, int] | None:
        """First and last byte of a single range, None without one."""
        first, _, last = self.headers.get("range", "").removeprefix("bytes=").partition("-")
        return (int(first), int(last)) if first and last else None


@dataclass(slots=True)
class _State:
    requests: list[Recorded] = field(default_factory=list)
    connections: int = 0


class LoopbackServer:
    """Serves on 127.0.0.1 while its context is open. Subclasses give `answer`."""

    def __init__(self, *, tls: ssl.SSLContext | None = None) -> None:
        """`tls` makes it speak https; its certificate is the caller's."""
        self._state = _State()
        # Guards the state; waited on by `requests`.
        self._changed = threading.Condition()
        # Set when the context ends: handlers that hold a connection let go of it.
        self.closing = threading.Event()
        outer = self

        class Bound(Handler):
            server_double = outer

        self._tls = tls
        self._server = _Server(("127.0.0.1", 0), Bound)
        self.port: int = self._server.server_address[1]
        self.host = f"127.0.0.1:{self.port}"
        self.url = f"{'https' if tls else 'http'}://{self.host}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, handler: "Handler", record: Recorded, url: SplitResult) -> None:
        """Answer one request with the handler's `reply` and friends."""
        raise NotImplementedError

    @property
    def requests(self) -> list[Recorded]:
        """All requests so far, oldest first, once none is being answered but those that are held on purpose."""
        deadline = time.monotonic() + _SETTLE_S
        with self._changed:
            while not all(record.done for record in self._state.requests) and time.monotonic() < deadline:
                self._changed.wait(0.05)
            return list(self._state.requests)

    @property
    def bytes_sent(self) -> int:
        """Bytes of all bodies."""
        return sum(record.sent for record in self.requests)

    @property
    def connections(self) -> int:
        """How many connections were opened."""
        with self._changed:
            return self._state.connections

    def forget(self) -> None:
        """Drop what was recorded."""
        self.requests  # noqa: B018 - waits for the last one
        with self._changed:
            self._state.requests.clear()

    def wrapped(self, connection: socket.socket) -> socket.socket:
        """The connection, after the handshake if there is TLS."""
        if self._tls is None:
            return connection
        encrypted = self._tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        try:
            encrypted.do_handshake()
        except ssl.SSLError:
            with encrypted, socket.socket(fileno=os.dup(encrypted.fileno())) as raw:
                _drain(raw)
            raise
        return encrypted

    def opened(self) -> int:
        """Number a new connection."""
        with self._changed:
            self._state.connections += 1
            return self._state.connections

    def record(self, record: Recorded) -> None:
        """Add a request."""
        with self._changed:
            self._state.requests.append(record)

    def settled(self, record: Recorded) -> None:
        """A request is answered, or held for good."""
        with self._changed:
            record.done = True
            self._changed.notify_all()


def _drain(connection: socket.socket) -> None:
    """Read until the client closes: to close with bytes unread would reset the connection, and take the alert from it."""
    connection.settimeout(_SETTLE_S)
    with suppress(OSError):
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(4096):
            pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that closes early is what half of the tests are about."""


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server_double: LoopbackServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 0

    def setup(self) -> None:
        self.request = self.server_double.wrapped(self.request)
        super().setup()
        self.number = self.server_double.opened()
        self.current: Recorded | None = None

    def finish(self) -> None:
        super().finish()
        # The server closes the socket that it accepted, which TLS has taken out of its hands.
        self.connection.close()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the base class's
        """Quiet: tests read the records."""

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        record = Recorded(self.command, url.path, url.query, headers, self.number)
        self.current = record
        self.server_double.record(record)
        try:
            record.body = self._read_body()
            self.server_double.answer(self, record, url)
        except OSError:
            self.close_connection = True
        finally:
            self.server_double.settled(record)

    do_HEAD = do_POST = do_PUT = do_PATCH = do_GET  # noqa: N815 - names that http.server looks for

    def _read_body(self) -> bytes:
        if "chunked" in self.headers.get("transfer-encoding", ""):
            pieces = []
            while size := int(self.rfile.readline(), 16):
                pieces.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(pieces)
        size = int(self.headers.get("content-length", 0))
        body = self.rfile.read(size)
        if len(body) < size:
            raise ConnectionError("the client left amid its request")
        return body

    def reply(self, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
        """A whole answer."""
        self.begin(status, {"Content-Length": str(len(body)), **(headers or {})})
        self.send(body)

    def begin(self, status: int, headers: Mapping[str, str]) -> None:
        """Status line and headers."""
        if self.current is not None:
            self.current.status = status
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def send(self, body: bytes) -> None:
        """Some of the body; nothing for HEAD."""
        if self.command == "HEAD":
            return
        view = memoryview(body)
        while view:
            sent = self.connection.send(view)
            view = view[sent:]
            if self.current is not None:
                self.current.sent += sent

    def hold(self) -> None:
        """Keep the connection, silent, until the client or the server closes."""
        if self.current is not None:
            self.server_double.settled(self.current)
        self.close_connection = True
        self.connection.settimeout(0.05)
        while not self.server_double.closing.is_set():
            try:
                if not self.connection.recv(1):
                    return
            except TimeoutError:
                continue
