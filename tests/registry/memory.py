"""A registry client whose network is a function, whose clock is trio's MockClock, and whose dice always show the middle."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence

import httpx
import trio
import trio.testing

from snapshotter.config import RegistryConfig
from snapshotter.registry.client import Registry
from snapshotter.registry.credential import Credential
from snapshotter.registry.credentials import CredentialSource
from snapshotter.registry.hosts import HostsResolver
from snapshotter.registry.retry import RetryPolicy

Handler = Callable[[httpx.Request], httpx.Response]


class Pieces(httpx.AsyncByteStream):
    """A body in pieces: bytes to yield, seconds to wait, or an exception to end with."""

    def __init__(self, steps: Iterable[bytes | float | Exception]) -> None:
        self._steps = iter(steps)
        self.closed = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        for step in self._steps:
            await trio.lowlevel.checkpoint()
            if isinstance(step, bytes):
                if step:
                    return step
                continue
            if isinstance(step, Exception):
                raise step
            await trio.sleep(step)
        raise StopAsyncIteration

    async def aclose(self) -> None:
        self.closed = True


class Network(httpx.AsyncBaseTransport):
    """Answers with `handler`, and keeps every request."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self.requests: list[httpx.Request] = []
        self.times: list[float] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if isinstance(request.stream, httpx.AsyncByteStream):
            await request.aread()
        self.requests.append(request)
        self.times.append(trio.current_time())
        response = self._handler(request)
        if isinstance(response.stream, httpx.ByteStream):
            # As from the network: still to be read.
            body = Pieces([response.content])
            return httpx.Response(response.status_code, headers=response.headers, stream=body)
        return response

    @property
    def trail(self) -> list[str]:
        """Method and address of every request."""
        return [f"{request.method} {request.url}" for request in self.requests]

    def authorization(self) -> dict[str, set[str | None]]:
        """The Authorization headers that each origin saw."""
        seen: dict[str, set[str | None]] = {}
        for request in self.requests:
            origin = f"{request.url.scheme}://{request.url.netloc.decode()}"
            seen.setdefault(origin, set()).add(request.headers.get("authorization"))
        return seen


class Known:
    """A source of credentials that knows one."""

    def __init__(self, credential: Credential | None) -> None:
        self.credential = credential
        self.asked: list[tuple[str, str]] = []

    def problems(self) -> dict[str, str]:
        """None."""
        return {}

    async def lookup(self, host: str, repository: str, *, fresh: bool = False) -> Credential | None:
        """The one."""
        self.asked.append((host, repository))
        return self.credential

    def absence(self) -> str:
        """Where it is."""
        return "a test has none"


class Succession(Known):
    """A source whose credential is replaced by the next one each time it was refused; the last one stays."""

    def __init__(self, *credentials: Credential | None) -> None:
        super().__init__(credentials[0])
        self._next = list(credentials[1:])
        self.renewed = 0

    async def lookup(self, host: str, repository: str, *, fresh: bool = False) -> Credential | None:
        """The newest one."""
        if fresh:
            self.renewed += 1
            self.credential = self._next.pop(0) if self._next else self.credential
        return await super().lookup(host, repository)


class ByName(Known):
    """A source with a credential for each host, or host and repository."""

    def __init__(self, credentials: Mapping[str, Credential]) -> None:
        super().__init__(None)
        self._credentials = credentials

    async def lookup(self, host: str, repository: str, *, fresh: bool = False) -> Credential | None:
        """That of the repository, else that of the host."""
        await super().lookup(host, repository, fresh=fresh)
        return self._credentials.get(f"{host}/{repository}") or self._credentials.get(host)


def client(
    network: Network,
    *,
    credential: Credential | None = None,
    source: CredentialSource | None = None,
    hosts: HostsResolver | None = None,
    addresses: Sequence[str] = ("203.0.113.7",),
    config: RegistryConfig | None = None,
) -> Registry:
    """A client on `network`; every name resolves to `addresses`. `source` takes the place of the one that knows `credential`."""
    config = config or RegistryConfig(plain_http=("plain.test",))

    async def resolve(_: str) -> Sequence[str]:
        return addresses

    return Registry(
        config,
        hosts=hosts,
        credentials=source or Known(credential),
        transport=network,
        resolve=resolve,
        policy=RetryPolicy(config.retries, jitter=lambda: 0.5),
    )


def simulate(work: Callable[[], Awaitable[None]]) -> None:
    """Run `work` on a clock that jumps over every wait."""

    async def main() -> None:
        await work()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
