"""One blob of a registry, read in byte ranges that resume where they broke.

Source: OCI Distribution Specification 1.1, pulling blobs; RFC 9110 section 14 (ranges).
"""

import hashlib
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass

import httpx
import trio

from snapshotter.errors import (
    BlobMissing,
    FormatError,
    HostsError,
    IntegrityError,
    RangeUnsupported,
    RegistryError,
    RegistryUnreachable,
    RegistryUntrusted,
)
from snapshotter.registry.auth import Need
from snapshotter.registry.exchange import Answer, Call, Exchange, at_endpoint, refusal
from snapshotter.registry.health import Complaints, Health
from snapshotter.registry.knock import listener
from snapshotter.registry.redirect import shown
from snapshotter.registry.reference import Reference, canonical_host
from snapshotter.registry.retry import Returned, Transient
from snapshotter.registry.wire import Body

PIECE_MAX = 1 << 20
# TLS comes in records of 16 KiB, and every piece costs each room above a round: small ones are put together.
GATHER = 64 << 10

BEHIND_S = 60.0
"""How long a server that refused a blob, or sent something else, is asked after the others."""

_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)", re.IGNORECASE)


@dataclass(slots=True)
class _Source:
    """A server that has the blob, and where it last redirected to."""

    need: Need
    target: httpx.URL | None = None

    @property
    def key(self) -> tuple[str, str]:
        """Which server, whatever is configured for it."""
        return self.need.endpoint.base, self.need.endpoint.prefix

    def forget(self, target: httpx.URL) -> None:
        """Drop `target`, unless another reader has learned a newer one meanwhile."""
        if self.target is target:
            self.target = None


class Blob:
    """A blob that a manifest names: `size` bytes with the sha256 `digest`, at `host`. Safe for many readers at once.

    Nothing is verified here but by `read_whole`: chunks have digests of their own.
    """

    def __init__(
        self,
        exchange: Exchange,
        health: Health,
        ref: Reference,
        digest: str,
        size: int,
        needs: Callable[[], Sequence[Need]],
    ) -> None:
        """`needs` says which servers have it, best first. It is asked for each read: a layer outlives configurations."""
        self.digest = digest
        self.size = size
        self.host = ref.api_host
        """The registry's own server, mirrors or not: the name that counts for waiting, breaking off and complaints."""
        self.serving = self.host
        """The server that delivered last."""
        self.name = f"{canonical_host(ref.host)}/{ref.repository}"
        """Registry and repository."""
        self._exchange = exchange
        self._health = health
        self._needs = needs
        self._what = f"blob {digest[:19]}… of {self.name}"
        self._sources: dict[tuple[str, str], _Source] = {}
        self._last: _Source | None = None
        # Servers that are asked after the others: what they sent was wrong, or they refused this blob, until then.
        self._behind: dict[tuple[str, str], float] = {}

    async def read_range(self, start: int, length: int) -> bytes:
        """Return exactly `length` bytes of the blob beginning at `start`.

        Raises:
            RegistryUnreachable: no answer after all retries; asking again may help.
            RegistryDenied: credentials refused; asking again will not.
            BlobMissing: the registry does not have the blob.
            RangeUnsupported: the registry answers with something else than the range, and did so twice.
        """
        async with self.open_range(start, length) as pieces:
            return b"".join([piece async for piece in pieces])

    async def read_whole(self, limit: int) -> bytes:
        """Return the whole blob, verified; for small ones such as an image's configuration.

        Raises:
            FormatError: the blob is larger than `limit` bytes.
            IntegrityError: twice, the bytes did not have the digest.
            RegistryError: as `read_range`.
        """
        if self.size > limit:
            raise FormatError(f"{self._what} has {self.size} bytes; the limit is {limit}")
        for _ in range(2):
            data = await self.read_range(0, self.size)
            if f"sha256:{hashlib.sha256(data).hexdigest()}" == self.digest:
                return data
            self.forget_redirects()
        raise IntegrityError(f"{self._what}: the registry sends other bytes than the digest names")

    def open_range(self, start: int, length: int) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Stream exactly `length` bytes beginning at `start`, in pieces of at most 1 MiB.

        A body that breaks off or stalls is resumed where it broke. Progress earns new tries, but each stretch of
        `read_timeout_s` spent waiting must bring 16 KiB, so that the whole takes bounded time. The context may be left
        at any point.

        Raises (while iterating): as `read_range`.
        """
        if start < 0 or length < 0 or start + length > self.size:
            raise RegistryError(f"{self._what}: bytes {start} to {start + length} are not all among its {self.size}")
        return aclosing(self._pieces(start, start + length))

    @property
    def redirects_to(self) -> str | None:
        """Host and port to which reads are redirected, as far as is known; no more of an address that may be signed."""
        return next(
            (source.target.netloc.decode() for source in self._sources.values() if source.target is not None), None
        )

    def forget_redirects(self) -> None:
        """What was served was wrong: ask another server the next time, and the registry itself where it redirected."""
        for source in self._sources.values():
            source.target = None
        if self._last is not None:
            self._behind[self._last.key] = trio.current_time() + BEHIND_S

    def _in_order(self) -> list[_Source]:
        """The servers to ask, best first: as configured now, then the sick ones, then those of no use for this blob.

        Raises RegistryUnreachable: the configuration is wrong; asking again helps once it is right.
        """
        try:
            needs = self._needs()
        except HostsError as error:
            unreachable = RegistryUnreachable(f"{self._what}: {error}")
            unreachable.reason = error.reason
            raise unreachable from None
        self._sources = {source.key: source for source in map(self._source, needs)}
        self._behind = {key: until for key, until in self._behind.items() if key in self._sources}
        ordered = self._health.ordered(self._sources.values(), lambda source: source.need)
        now = trio.current_time()
        return sorted(ordered, key=lambda source: self._behind.get(source.key, now) > now)

    def _source(self, need: Need) -> _Source:
        known = self._sources.get((need.endpoint.base, need.endpoint.prefix))
        if known is not None and known.need == need:
            return known
        return _Source(need, known.target if known is not None else None)

    async def _pieces(self, start: int, end: int) -> AsyncGenerator[bytes, None]:
        """The bytes from whoever has them. All servers are asked before one of them is asked again."""
        position = start
        attempts = self._exchange.wire.attempts(self._what)
        complaints = Complaints()
        refused: dict[tuple[str, str], RegistryError] = {}
        doubted: set[tuple[str, str]] = set()
        returned = False
        while position < end:
            sources = [source for source in self._in_order() if source.key not in refused]
            if not sources:
                last = _most_telling(refused.values())
                raise type(last)(complaints.beside(last))
            fault: Transient | None = None
            for source in sources:
                began = position
                self._health.asking(source.need)
                # A request that was given up for a newer one is followed by one that is not: a server may be slow in all it does.
                patient = returned and not self._health.is_sick(source.need)
                others = None if patient else [other.need for other in sources if other is not source]
                try:
                    async with aclosing(self._from_source(source, position, end, others)) as pieces:
                        async for piece in pieces:
                            position += len(piece)
                            attempts.progressed(len(piece))
                            yield piece
                    fault = None
                    break
                except Returned as news:
                    complaints.note(source.need, news)
                    # Whoever is back has not been asked yet: at once, and without counting.
                    fault, returned = None, True
                    break
                except Transient as broken:
                    fault = broken
                    complaints.note(source.need, broken)
                    if position > began:
                        break  # it was sending: it is the first to be asked for the rest
                    self._health.failed(source.need)
                except RegistryError as error:
                    complaints.note(source.need, error)
                    self._behind[source.key] = trio.current_time() + BEHIND_S
                    if isinstance(error, RangeUnsupported) and source.key not in doubted:
                        # A proxy's page, or an answer to somebody else's question: what a server cannot do it cannot do twice.
                        doubted.add(source.key)
                        source.target = None
                        fault = Transient(str(error))
                        continue
                    refused[source.key] = error
                    if isinstance(error, RegistryUntrusted):
                        self._health.failed(source.need)
            if fault is not None:
                returned = False
                await attempts.pause(Transient(complaints.beside(fault), fault.retry_after_s))

    async def _from_source(
        self, source: _Source, position: int, end: int, others: Sequence[Need] | None
    ) -> AsyncGenerator[bytes, None]:
        """What one request brings: it may stop earlier than `end`. Returned where one of `others`, or itself, has come back."""
        async with self._answer(source, position, end, others) as answer:
            stop = self._granted(answer, position, end)
            async with aclosing(self._body(answer.response, stop - position)) as pieces:
                async for piece in pieces:
                    self._health.answered(source.need)
                    self._last, self.serving = source, source.need.endpoint.host
                    yield piece

    @asynccontextmanager
    async def _answer(
        self, source: _Source, position: int, end: int, others: Sequence[Need] | None
    ) -> AsyncIterator[Answer]:
        """The answer to one range request: 200, 206, or an error raised.

        A remembered redirect target that refuses has expired, in one of the many ways in which stores say so: the
        registry is then asked once for a new one.
        """
        need = source.need
        call = Call(
            need,
            "GET",
            at_endpoint(need, f"blobs/{self.digest}"),
            self._what,
            headers={"range": f"bytes={position}-{end - 1}"},
            listen=None if others is None else listener(self._exchange.wire, self._health, need, others),
        )
        target = source.target
        if target is not None:
            try:
                async with self._exchange.open(call, target) as answer:
                    if answer.response.status_code in {200, 206}:
                        yield answer
                        return
            except Transient:
                # No answer, or a body that broke: the registry may know a store in better health.
                source.forget(target)
                raise
            source.forget(target)
        async with self._exchange.open(call) as answer:
            if answer.response.status_code not in {200, 206}:
                raise await self._refused(answer, position, end)
            source.target = answer.url if answer.redirected else None
            yield answer

    async def _refused(self, answer: Answer, position: int, end: int) -> RegistryError:
        if answer.response.status_code == 416:
            return RangeUnsupported(
                f"{self._what}: {shown(answer.url)} has no bytes {position}-{end - 1}; the manifest says {self.size} bytes"
            )
        return await refusal(answer, self._what)

    def _granted(self, answer: Answer, position: int, end: int) -> int:
        """Where the bytes of this answer end; RangeUnsupported if they do not begin at `position`.

        A 206 may stop earlier than asked (RFC 9110 section 15.3.7): the rest is asked for again.
        """
        response = answer.response
        where = f"{self._what}: {shown(answer.url)}"
        encoding = response.headers.get("content-encoding", "identity").lower()
        if encoding not in {"", "identity"}:
            raise RangeUnsupported(f"{where} sends it encoded as {encoding[:40]!r}; only the plain bytes have a digest")
        if response.status_code == 200:
            if position == 0 and end == self.size and response.headers.get("content-length", str(end)) == str(end):
                return end
            raise RangeUnsupported(f"{where} answers with the whole blob to a request for bytes {position}-{end - 1}")
        match = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", "").strip())
        if match is None:
            raise RangeUnsupported(f"{where} answers 206 without a Content-Range that could be read")
        first, last, total = int(match[1]), int(match[2]), match[3]
        if total not in {"*", str(self.size)}:
            raise RangeUnsupported(f"{where} has {total} bytes; the manifest says {self.size}")
        if first != position or not first <= last < end:
            raise RangeUnsupported(f"{where} sends bytes {first}-{last} instead of {position}-{end - 1}")
        return last + 1

    async def _body(self, response: httpx.Response, length: int) -> AsyncGenerator[bytes, None]:
        """Exactly `length` bytes of a body; Transient, after all that came, if it ends earlier."""
        left = length
        gathered: list[bytes] = []
        held = 0
        fault: Transient | None = None
        async with aclosing(Body(response, expected=length)) as body:
            while left and fault is None:
                try:
                    piece = (await anext(body, b""))[:left]
                except Transient as broken:
                    fault, piece = broken, b""
                else:
                    if not piece:
                        fault = Transient(f"{shown(response.request.url)}: the body ended {left} bytes early")
                left -= len(piece)
                held += len(piece)
                gathered.append(piece)
                if held >= GATHER or not left or fault is not None:
                    whole = gathered[0] if len(gathered) == 1 else b"".join(gathered)
                    gathered, held = [], 0
                    for at in range(0, len(whole), PIECE_MAX):
                        yield whole[at : at + PIECE_MAX]
        if fault is not None:
            raise fault


def _most_telling(errors: Collection[RegistryError]) -> RegistryError:
    """The last server's error, which is the registry's own; that a blob is not there says less than any other."""
    others = [error for error in errors if not isinstance(error, BlobMissing)]
    return (others or list(errors))[-1]
