"""One blob of a registry, read in byte ranges that resume where they broke.

Source: OCI Distribution Specification 1.1, pulling blobs; RFC 9110 section 14 (ranges).
"""

import hashlib
import re
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass

import httpx

from snapshotter.errors import FormatError, IntegrityError, RangeUnsupported, RegistryError
from snapshotter.registry.auth import Need
from snapshotter.registry.exchange import Answer, Call, Exchange, at_endpoint, refusal
from snapshotter.registry.redirect import shown
from snapshotter.registry.retry import Transient
from snapshotter.registry.wire import Body

PIECE_MAX = 1 << 20
# TLS comes in records of 16 KiB, and every piece costs each room above a round: small ones are put together.
GATHER = 64 << 10

_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)", re.IGNORECASE)


@dataclass(slots=True)
class _Source:
    """A server that has the blob, and where it last redirected to."""

    need: Need
    target: httpx.URL | None = None

    def forget(self, target: httpx.URL) -> None:
        """Drop `target`, unless another reader has learned a newer one meanwhile."""
        if self.target is target:
            self.target = None


class Blob:
    """A blob that a manifest names: `size` bytes with the sha256 `digest`, at `host`. Safe for many readers at once.

    Nothing is verified here but by `read_whole`: chunks have digests of their own.
    """

    def __init__(self, exchange: Exchange, needs: Sequence[Need], digest: str, size: int) -> None:
        """`needs` are the servers that have it, best first."""
        self.digest = digest
        self.size = size
        self.host = needs[0].endpoint.host
        self._exchange = exchange
        self.name = f"{needs[0].endpoint.registry}/{needs[0].repository}"
        """Registry and repository."""
        self._what = f"blob {digest[:19]}… of {self.name}"
        self._sources = [_Source(need) for need in needs]

    async def read_range(self, start: int, length: int) -> bytes:
        """Return exactly `length` bytes of the blob beginning at `start`.

        Raises:
            RegistryUnreachable: no answer after all retries; asking again may help.
            RegistryDenied: credentials refused; asking again will not.
            BlobMissing: the registry does not have the blob.
            RangeUnsupported: the registry answers with something else than the range.
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

    def forget_redirects(self) -> None:
        """Ask the registry itself the next time: what a remembered address served was wrong."""
        for source in self._sources:
            source.target = None

    async def _pieces(self, start: int, end: int) -> AsyncGenerator[bytes, None]:
        position = start
        sources = tuple(self._sources)
        for source in sources:
            try:
                async with aclosing(self._from_source(source, position, end)) as pieces:
                    async for piece in pieces:
                        position += len(piece)
                        yield piece
                return
            except RegistryError:
                if source is sources[-1]:
                    raise
                # The next read begins with a server that may be in better health.
                self._sources = [*(other for other in self._sources if other is not source), source]

    async def _from_source(self, source: _Source, start: int, end: int) -> AsyncGenerator[bytes, None]:
        position = start
        attempts = self._exchange.wire.attempts(self._what)
        while position < end:
            try:
                async with self._answer(source, position, end) as answer:
                    stop = self._granted(answer, position, end)
                    async with aclosing(self._body(answer.response, stop - position)) as pieces:
                        async for piece in pieces:
                            position += len(piece)
                            attempts.progressed(len(piece))
                            yield piece
            except Transient as fault:
                await attempts.pause(fault)

    @asynccontextmanager
    async def _answer(self, source: _Source, position: int, end: int) -> AsyncIterator[Answer]:
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
