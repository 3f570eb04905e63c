"""What a registry says in headers, and what a token server answers: no word of theirs leads a credential astray."""

import ipaddress
import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import httpx
from hypothesis import given
from hypothesis import strategies as st

from snapshotter.errors import RegistryError
from snapshotter.registry.challenge import HEADER_MAX, parse_challenges
from tests.fuzz.mutations import Corpus, mutated, mutated_json
from tests.fuzz.rounds import bounded, fuzzed
from tests.registry.memory import Network, client, simulate
from tests.registry.servers import BASIC, DATA, ME, read, serve, tells_a_secret

BEARER = b'Bearer realm="https://auth.test/token",service="reg",scope="repository:a/b:pull"'
HEADERS = Corpus([
    BEARER,
    b'Basic realm="a \\"quoted\\" b", ' + BEARER,
    b"Negotiate YWJj=, " + BEARER + b', error="invalid_token"',
    b'Bearer realm="http://auth.test/token"',
    b"Digest qop=auth, nonce=1",
    b'Bearer realm="http://169.254.169.254/latest",service=x',
    b'Bearer realm="https://user:pw@auth.test:443/token?a=b#c"',
])  # fmt: skip
LOCATIONS = Corpus([
    b"https://cdn.test/blob?X-Signature=abc%2Fd", b"/v2/other", b"//cdn.test/x", b"http://r.test/store", b"http://[::1]:80/x",
    b"https://169.254.169.254/x", b"https://[fe80::1%25eth0]/x", b"ftp://cdn.test/x", b"https://user:pw@cdn.test/",
])  # fmt: skip
TOKENS: Corpus[Any] = Corpus([
    {"token": "t0ken", "expires_in": 300, "issued_at": "2024-01-01T00:00:00Z"},
    {"access_token": "t0ken", "refresh_token": "t0ken-2", "expires_in": 60},
])  # fmt: skip


@fuzzed(50)
@given(st.lists(mutated(HEADERS), min_size=1, max_size=3), st.sampled_from((1, 1, 1, 500)))
def test_changed_headers_give_some_challenges_in_bounded_time(raw: list[bytes], times: int) -> None:
    with bounded(32 << 20):
        for challenge in parse_challenges(header.decode("latin-1") * times for header in raw):
            assert challenge.scheme
            assert challenge.scheme == challenge.scheme.lower()
            assert all(
                name == name.lower() and len(value) <= HEADER_MAX for name, value in challenge.parameters.items()
            )


def printable(raw: bytes) -> str:
    """A header as it can arrive: HTTP libraries let no line ends through."""
    return raw.decode("latin-1").translate(dict.fromkeys((0, 10, 13)))


def answers(challenge: str, location: str, token: bytes, status: int) -> Callable[[httpx.Request], httpx.Response]:
    """A registry that challenges, then redirects; every other host gives tokens and bytes."""

    def handler(request: httpx.Request) -> httpx.Response:
        if request.url.host == "r.test" and request.url.path.startswith("/v2/a/b/blobs/"):
            if "authorization" not in request.headers:
                return httpx.Response(401, headers=[(b"www-authenticate", challenge.encode("latin-1"))])
            return httpx.Response(307, headers=[(b"location", location.encode("latin-1"))])
        return serve(request) if "range" in request.headers else httpx.Response(status, content=token)

    return handler


@fuzzed(50)
@given(
    mutated(HEADERS).map(printable),
    mutated(LOCATIONS).map(printable),
    mutated_json(TOKENS) | mutated(Corpus(json.dumps(one).encode() for one in TOKENS)),
    st.sampled_from((200, 200, 200, 200, 201, 401, 404, 500)),
)
def test_no_header_and_no_token_leads_a_credential_astray(
    challenge: str, location: str, token: bytes, status: int
) -> None:
    net = Network(answers(challenge, location, token, status))
    said: list[str] = []

    async def work() -> None:
        async with client(net, credential=ME) as registry:
            try:
                assert await read(registry) == DATA[:10]
            except RegistryError as error:
                said.append(f"{error!r} {error}")

    simulate(work)
    assert tells_a_secret("".join(said)) == []
    # httpx reads headers as UTF-8 where they are.
    arrived = httpx.Headers([(b"www-authenticate", challenge.encode("latin-1"))]).get_list("www-authenticate")
    realms = {one.parameters.get("realm", "") for one in parse_challenges(arrived)}
    hosts = {"r.test"}
    for realm in realms:
        with suppress(httpx.InvalidURL, ValueError):
            hosts.add(httpx.URL(realm).host)
    for request in net.requests:
        header = request.headers.get("authorization")
        if header is not None and not request.url.userinfo:  # what a redirect itself brings is its own affair
            assert request.url.scheme == "https"
            assert request.url.host in hosts
            assert header.isascii()
        if header == BASIC:
            assert request.url.scheme == "https"
            assert request.url.host in hosts
        with suppress(ValueError):
            assert not ipaddress.ip_address(request.url.host).is_link_local
