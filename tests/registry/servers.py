"""Servers made of small functions, for tests of who is sent what."""

import base64
import json
from collections.abc import Callable, Mapping

import httpx
import pytest

from snapshotter.errors import RegistryDenied
from snapshotter.registry.blob import Blob
from snapshotter.registry.client import Registry
from snapshotter.registry.credential import Credential
from snapshotter.registry.reference import parse_reference
from tests.doubles.registry import digest_of
from tests.registry.memory import Network, client, simulate

DATA = b"0123456789" * 10
DIGEST = digest_of(DATA)
ME = Credential("me", "s3cr3t-password")
BASIC = "Basic " + base64.b64encode(b"me:s3cr3t-password").decode()
SECRET_MARKS = ("s3cr3t", "t0ken", BASIC.removeprefix("Basic ")[:12])
"""Each secret of these tests has one of them, as it is or as a Basic header."""
BEARER = 'Bearer realm="https://auth.test/token",service="reg"'

Routes = Mapping[str, Callable[[httpx.Request], httpx.Response]]


def serve(request: httpx.Request) -> httpx.Response:
    """The range of DATA that was asked for."""
    first, last = (int(part) for part in request.headers["range"].removeprefix("bytes=").split("-"))
    headers = {"content-range": f"bytes {first}-{last}/{len(DATA)}"}
    return httpx.Response(206, headers=headers, content=DATA[first : last + 1])


def denies(challenge: str) -> Callable[[httpx.Request], httpx.Response]:
    return lambda _: httpx.Response(401, headers={"www-authenticate": challenge})


def demands(challenge: str, good: Callable[[str], bool]) -> Callable[[httpx.Request], httpx.Response]:
    """Serves whoever sends a good Authorization; the others get the challenge."""

    def handler(request: httpx.Request) -> httpx.Response:
        if good(request.headers.get("authorization", "")):
            return serve(request)
        return httpx.Response(401, headers={"www-authenticate": challenge})

    return handler


def redirects(location: str) -> Callable[[httpx.Request], httpx.Response]:
    return lambda _: httpx.Response(307, headers={"location": location})


def token(text: str = "t0ken", **more: object) -> httpx.Response:
    return httpx.Response(200, content=json.dumps({"token": text, **more}).encode())


def numbered_tokens(**more: object) -> tuple[Callable[[httpx.Request], httpx.Response], list[str]]:
    """A token endpoint that numbers its tokens, and the list of those that it gave."""
    given: list[str] = []

    def handler(_: httpx.Request) -> httpx.Response:
        given.append(f"t0ken-{len(given)}")
        return token(given[-1], **more)

    return handler, given


def network(routes: Routes) -> Network:
    """Answers by scheme and host; what nobody expects is an error."""
    return Network(lambda request: routes[f"{request.url.scheme}://{request.url.netloc.decode()}"](request))


def tells_a_secret(text: str) -> list[str]:
    """The marks of these tests' secrets that `text` has."""
    return [mark for mark in SECRET_MARKS if mark in text]


async def read(registry: Registry, host: str = "r.test", repository: str = "a/b") -> bytes:
    return await blob(registry, host, repository).read_range(0, 10)


def blob(registry: Registry, host: str = "r.test", repository: str = "a/b") -> Blob:
    return registry.blob(parse_reference(f"{host}/{repository}"), DIGEST, len(DATA))


def run(net: Network, credential: Credential | None = None, *, times: int = 1, host: str = "r.test") -> None:
    async def work() -> None:
        async with client(net, credential=credential) as registry:
            for _ in range(times):
                assert await read(registry, host) == DATA[:10]

    simulate(work)


def denied(net: Network, credential: Credential | None = None, *, match: str, host: str = "r.test") -> None:
    async def work() -> None:
        async with client(net, credential=credential) as registry:
            with pytest.raises(RegistryDenied, match=match) as caught:
                await read(registry, host)
            assert tells_a_secret(f"{caught.value!r} {caught.value}") == []

    simulate(work)
