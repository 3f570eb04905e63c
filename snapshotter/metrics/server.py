"""GET /metrics: a small HTTP server on threads of its own.

Whoever reaches the address may ask. So no connection lasts longer than `ANSWER_S`, and when there are too many of them the
oldest is closed: a scraper that hangs takes nothing from the node, nor from one that works.
"""

import logging
import socket
import sys
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer, ThreadingMixIn
from typing import Any, TypeAlias

from snapshotter.errors import ConfigError, SnapshotterError

CONNECTIONS_MAX = 8
ANSWER_S = 10.0
"""From connecting to the last byte of the answer; Prometheus gives up after its scrape_timeout, 10 s unless set."""

POLL_S = 0.2
"""How often old connections are looked for, and how long stopping may take."""

PAGE = b"estargz-snapshotter: the figures for Prometheus are at /metrics\n"

Render: TypeAlias = Callable[[str], tuple[str, bytes]]
"""Makes content type and body from an Accept header."""

log = logging.getLogger(__name__)


class MetricsServer:
    """Answers scrapes from `start` until `stop`."""

    def __init__(self, address: str, render: Render) -> None:
        """Listen at `address`, a host and a port; without a host at every address of the machine.

        Raises:
            ConfigError: it cannot be listened at.
        """
        self._server = _Server(_listener(address), render)
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": POLL_S}, name="metrics", daemon=True
        )

    @property
    def port(self) -> int:
        """The port, also where port 0 left the choice to the kernel."""
        return int(self._server.socket.getsockname()[1])

    def start(self) -> None:
        """Answer from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Close the address and every connection."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(ANSWER_S)


def _listener(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    try:
        if not host:
            both = socket.has_dualstack_ipv6()
            family = socket.AF_INET6 if both else socket.AF_INET
            return socket.create_server(("", int(port)), family=family, dualstack_ipv6=both)
        family, _, _, _, place = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0]
        return socket.create_server(place[:2], family=family)
    except OSError as error:
        raise ConfigError(
            f"metrics.address {address} cannot be listened at: {error.strerror or error}; choose an address of this machine "
            "and a free port, then restart the daemon"
        ) from error


class _Server(ThreadingMixIn, TCPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, listener: socket.socket, render: Render) -> None:
        super().__init__(("", 0), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self._render = render
        # One at a time: whoever asks without a pause gets one processor's attention and not all.
        self._rendering = threading.Lock()
        self._lock = threading.Lock()  # guards _open
        self._open: dict[Any, float] = {}

    def render(self, accept: str) -> tuple[str, bytes]:
        """Content type and body for an Accept header. Raises SnapshotterError."""
        with self._rendering:
            return self._render(accept)

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection. One that cannot be accepted (no descriptors left) stays: without a pause the loop would spin."""
        try:
            return super().get_request()
        except OSError:
            time.sleep(POLL_S)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer a new connection in a thread of its own."""
        with self._lock:
            self._open[request] = time.monotonic() + ANSWER_S
            surplus = list(self._open)[:-CONNECTIONS_MAX]
        for oldest in surplus:
            _break(oldest)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """The connection has its answer, or broke."""
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Called every `POLL_S`: end connections that take too long."""
        now = time.monotonic()
        with self._lock:
            late = [request for request, deadline in self._open.items() if deadline < now]
        for request in late:
            _break(request)

    def server_close(self) -> None:
        """Close the address and every connection."""
        super().server_close()
        with self._lock:
            left = list(self._open)
        for request in left:
            _break(request)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 (socketserver's)
        """An answer failed: called inside the handler of the exception."""
        error = sys.exception()
        level = logging.DEBUG if isinstance(error, OSError) else logging.ERROR  # a client that went away is no fault
        log.log(level, "a scrape from %s was not answered", client_address, exc_info=error)


class _Handler(BaseHTTPRequestHandler):
    """One connection, one request: HTTP/1.0."""

    server: _Server
    server_version = "estargz-snapshotter"
    sys_version = ""
    timeout = ANSWER_S

    def do_GET(self) -> None:
        """Answer with the figures, or with a word where they are."""
        path = self.path.partition("?")[0]
        if path == "/metrics":
            try:
                self._answer(HTTPStatus.OK, *self.server.render(self.headers.get("accept", "")))
            except SnapshotterError as error:
                self._answer(HTTPStatus.INTERNAL_SERVER_ERROR, "text/plain; charset=utf-8", f"{error}\n".encode())
        elif path == "/":
            self._answer(HTTPStatus.OK, "text/plain; charset=utf-8", PAGE)
        else:
            self._answer(HTTPStatus.NOT_FOUND, "text/plain; charset=utf-8", PAGE)

    def _answer(self, status: HTTPStatus, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", content_type)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (http.server's)
        """Say it where debugging is wanted only."""
        log.debug("%s: %s", self.address_string(), format % args)


def _break(connection: socket.socket) -> None:
    """End a connection that another thread reads or writes: its call returns at once."""
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # it has ended by itself
