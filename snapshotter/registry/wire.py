"""The pooled HTTP clients, one for each way of TLS, and the bodies of their answers."""

import http.cookiejar
import logging
import math
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing

import httpcore
import httpx
import trio

from snapshotter.errors import HostsError, RegistryError, RegistryUntrusted
from snapshotter.registry.faults import fault_of
from snapshotter.registry.lookups import SharedLookups
from snapshotter.registry.redirect import AddressCheck, Resolve, shown
from snapshotter.registry.retry import PROGRESS_MIN, Attempts, RetryPolicy, Returned, Transient, parse_retry_after
from snapshotter.registry.tls import Tls

# httpx logs whole addresses, whose query may be a signature, and httpcore logs headers.
for _name in ("httpx", "httpcore"):
    logging.getLogger(_name).setLevel(logging.WARNING)

# httpcore's own 64 KiB cost 0.73 s of CPU per GiB, these 0.29 s; and each piece costs every room above a round as well.
httpcore.AsyncHTTP11Connection.READ_NUM_BYTES = 256 << 10

HEADERS_MAX = 100 << 10
"""Bytes of an answer's status line and headers together."""
httpcore.AsyncHTTP11Connection.MAX_INCOMPLETE_EVENT_SIZE = HEADERS_MAX

# A connection idle for so long is closed; registries and load balancers keep theirs for one minute or more.
_KEEPALIVE_S = 55.0
# What is read of a body that nobody wants, to get the connection back.
_DISCARD_MAX = 64 << 10
_DISCARD_TIMEOUT_S = 1.0
# How long the end of a complete body is awaited before its connection is given up.
_END_TIMEOUT_S = 0.1

# Clients for other ways of TLS than the usual one; a renewed certificate needs a new one. The oldest goes, and whoever reads
# through it reads on through another: a body that breaks off is resumed.
_CLIENTS_KEPT = 64

_HEADERS = {"user-agent": "estargz-snapshotter", "accept-encoding": "identity"}
_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})


Listen = Callable[[Callable[[], None]], Awaitable[None]]
"""Returns when a request should be made anew instead of being waited for; it may have it made once more beside itself."""


class Wire:
    """Connections to every host. The pool has no upper bound, so that no read waits in it behind a bulk transfer."""

    def __init__(
        self,
        policy: RetryPolicy,
        *,
        connect_timeout_s: float,
        read_timeout_s: float,
        idle_connections: int,
        transport: httpx.AsyncBaseTransport | None = None,
        resolve: Resolve | None = None,
    ) -> None:
        """`transport` takes the place of the network in tests; proxies come from the environment."""
        self.addresses = AddressCheck(resolve)
        self._policy = policy
        self._transport = transport
        self._timeout = httpx.Timeout(read_timeout_s, connect=connect_timeout_s, pool=None)
        self._limits = httpx.Limits(
            max_connections=None, max_keepalive_connections=idle_connections, keepalive_expiry=_KEEPALIVE_S
        )
        self._usual = self._new_client(self._context(Tls()))
        self._clients: dict[Tls, httpx.AsyncClient] = {}
        trio.socket.set_custom_hostname_resolver(SharedLookups())

    def _context(self, tls: Tls) -> ssl.SSLContext | None:
        """The system's certificates, as every other program on the node trusts them, and not those of a package; and `tls`.

        None without a network. Raises HostsError: a certificate cannot be read.
        """
        return tls.context() if self._transport is None else None

    def _new_client(self, context: ssl.SSLContext | None) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            transport=self._transport,
            verify=context or False,
            headers=_HEADERS,
            cookies=http.cookiejar.CookieJar(http.cookiejar.DefaultCookiePolicy(allowed_domains=[])),
            timeout=self._timeout,
            limits=self._limits,
            follow_redirects=False,
        )

    async def _client(self, tls: Tls) -> httpx.AsyncClient:
        """The client for this way of TLS.

        Raises RegistryUntrusted: a certificate that belongs to it cannot be read.
        """
        if tls.usual:
            return self._usual
        client = self._clients.pop(tls, None)
        if client is None:
            try:
                context = await trio.to_thread.run_sync(self._context, tls)
            except HostsError as error:
                raise RegistryUntrusted(str(error)) from None
            # Another request may have made it meanwhile.
            client = self._clients.pop(tls, None) or self._new_client(context)
        self._clients[tls] = client
        if len(self._clients) > _CLIENTS_KEPT:
            oldest = self._clients.pop(next(iter(self._clients)))
            with trio.CancelScope(shield=True):
                await oldest.aclose()
        return client

    def attempts(self, what: str) -> Attempts:
        """A new count of tries for the operation `what`."""
        return Attempts(self._policy, what)

    def request(
        self,
        method: str,
        url: httpx.URL | str,
        *,
        headers: Mapping[str, str],
        content: bytes | httpx.AsyncByteStream | None = None,
        timeout_s: float | None = None,
        connect_timeout_s: float | None = None,
    ) -> httpx.Request:
        """A request; `timeout_s` replaces the read timeout where an answer takes long, `connect_timeout_s` the other."""
        timeout = self._timeout
        if timeout_s is not None or connect_timeout_s is not None:
            timeout = httpx.Timeout(
                timeout_s if timeout_s is not None else timeout.read,
                connect=connect_timeout_s if connect_timeout_s is not None else timeout.connect,
                pool=None,
            )
        plain = content if isinstance(content, bytes) else None
        built = self._usual.build_request(method, url, headers=headers, content=plain, timeout=timeout)
        if isinstance(content, httpx.AsyncByteStream):
            built = httpx.Request(method, url, headers=built.headers, stream=content, extensions=built.extensions)
        return built

    async def send(self, request: httpx.Request, tls: Tls, listen: Listen | None = None) -> httpx.Response:
        """The response with its body still to be read; the caller closes it.

        Raises:
            Transient: no connection, no answer, a broken one.
            Returned: no answer before `listen` returned.
            RegistryUntrusted: what another try would not change: TLS that is not trusted, or none at all; or a certificate of
                `tls` that cannot be read.
            RegistryError: an answer that no client can read.
        """
        client = await self._client(tls)
        try:
            with trio.fail_after(self._answer_timeout_s(request)):
                if listen is None:
                    return await client.send(request, stream=True)
                return await _unless(listen, client, request)
        except httpx.HTTPError as error:
            raise fault_of(error, request.url, tls) from None
        except httpx.InvalidURL:
            # httpx reads a Location also where it is not told to follow it.
            raise RegistryError(f"{shown(request.url)} redirects to an address that cannot be read") from None
        except trio.TooSlowError:
            raise Transient(f"{shown(request.url)}: no answer in time") from None

    def _answer_timeout_s(self, request: httpx.Request) -> float:
        """How long the headers of an answer may take in all: httpx's own timeouts begin anew with every byte."""
        if isinstance(request.stream, httpx.ByteStream):
            timeouts = request.extensions["timeout"]
            return float(timeouts["connect"] + timeouts["write"] + timeouts["read"])
        return math.inf

    async def small_answer(self, request: httpx.Request, limit: int, tls: Tls) -> tuple[int, bytes]:
        """Status and body (at most `limit` bytes) of one request that is neither redirected nor authenticated.

        Raises:
            Transient: also for a status that may be another the next time.
            RegistryError: the body is longer.
        """
        async with aclosing(await self.send(request, tls)) as response:
            if (again := transient_status(response)) is not None:
                raise again
            return response.status_code, await read_bounded(response, limit)

    async def aclose(self) -> None:
        """Close all connections."""
        for client in (self._usual, *self._clients.values()):
            await client.aclose()


async def _unless(listen: Listen, client: httpx.AsyncClient, request: httpx.Request) -> httpx.Response:
    """The response, if it comes before `listen` returns; of those that it has made beside each other the first.

    Raises Returned, and as `client.send`.
    """
    responses: list[httpx.Response] = []
    errors: list[httpx.HTTPError | httpx.InvalidURL] = []
    asked = 0

    async def ask() -> None:
        nonlocal asked
        asked += 1
        try:
            response = await client.send(request, stream=True)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            errors.append(error)
            if len(errors) == asked:
                nursery.cancel_scope.cancel()
            return
        responses.append(response)
        nursery.cancel_scope.cancel()
        if len(responses) > 1:
            with trio.CancelScope(shield=True):
                await response.aclose()

    async def listening() -> None:
        await listen(lambda: nursery.start_soon(ask))
        nursery.cancel_scope.cancel()

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listening)
            nursery.start_soon(ask)
    except BaseException:
        # Cancelled between an answer and here.
        with trio.CancelScope(shield=True):
            for response in responses:
                await response.aclose()
        raise
    if responses:
        return responses[0]
    if errors:
        raise errors[-1]
    raise Returned(f"{shown(request.url)}: no answer, and a server that was away is back")


class Body:
    """The body of a response, read piece by piece, and left at any point without harm. Use it with `aclosing`.

    httpx nests asynchronous generators; one that is dropped half read would be collected by the interpreter, with a
    warning, at some later time. So what is left is ended here: by a cancelled scope, in which the first wait for the
    network unwinds them all and closes the connection.
    """

    def __init__(self, response: httpx.Response, *, expected: int | None = None) -> None:
        """`expected` bytes are wanted: when they have come, the connection is worth a short wait for the body's end."""
        self._url = response.request.url
        self._pieces = response.aiter_raw()
        self._left = expected
        self._ended = False
        self._patience_s = float(response.request.extensions["timeout"]["read"])
        self._waited_s = 0.0
        self._arrived = 0

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        """The next piece.

        Raises:
            Transient: the body broke off, stalled, or came too slowly: each stretch of the read timeout that was spent
                waiting must bring `PROGRESS_MIN` bytes, else a server could drip a body for ever.
        """
        before = trio.current_time()
        try:
            piece = await anext(self._pieces)
        except StopAsyncIteration:
            self._ended = True
            raise
        except httpx.HTTPError as error:
            self._ended = True
            raise fault_of(error, self._url) from None
        except BaseException:
            self._ended = True
            raise
        if self._left is not None:
            self._left -= len(piece)
        self._waited_s += trio.current_time() - before
        self._arrived += len(piece)
        if self._waited_s > self._patience_s:
            if self._arrived < PROGRESS_MIN and self._left != 0:
                raise Transient(f"{shown(self._url)}: {self._arrived} bytes in {self._waited_s:.0f} s")
            self._waited_s, self._arrived = 0.0, 0
        return piece

    async def aclose(self) -> None:
        """Give the connection back if the body has ended, else close it."""
        if self._ended:
            return
        self._ended = True
        complete = self._left == 0
        with trio.move_on_after(_END_TIMEOUT_S if complete else 0) as scope:
            try:
                async for _ in self._pieces:
                    scope.cancel()
            except httpx.HTTPError:
                return


async def read_bounded(response: httpx.Response, limit: int) -> bytes:
    """The whole body.

    Raises:
        Transient: it broke off.
        RegistryError: it is longer than `limit` bytes.
    """
    pieces: list[bytes] = []
    size = 0
    async with aclosing(Body(response)) as body:
        async for piece in body:
            size += len(piece)
            if size > limit:
                raise RegistryError(f"{shown(response.request.url)} answers more than {limit} bytes; refused")
            pieces.append(piece)
    return b"".join(pieces)


async def discard(response: httpx.Response) -> None:
    """Read a body that nobody wants, if it is short, so that the connection can be used again."""
    left = _DISCARD_MAX
    async with aclosing(Body(response)) as body:
        with trio.move_on_after(_DISCARD_TIMEOUT_S):
            try:
                async for piece in body:
                    left -= len(piece)
                    if left < 0:
                        return
            except Transient:
                return


def transient_status(response: httpx.Response) -> Transient | None:
    """The fault behind a status that may be another the next time, None for every other status."""
    status = response.status_code
    if status not in _AGAIN and not (status > 505 and status < 600):
        return None
    wait_s = parse_retry_after(response.headers.get("retry-after"))
    return Transient(f"{shown(response.request.url)} answers HTTP {status}", wait_s)
