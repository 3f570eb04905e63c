"""Tokens: asked for, kept, renewed, and refused in words."""

from collections.abc import Mapping

import httpx
import pytest
import trio

from snapshotter.errors import RegistryDenied, RegistryError, RegistryUnreachable
from snapshotter.registry.auth import merged_scopes
from snapshotter.registry.credential import Credential
from tests.registry.memory import client, simulate
from tests.registry.servers import (
    BEARER,
    DATA,
    ME,
    demands,
    denied,
    denies,
    network,
    numbered_tokens,
    read,
    run,
    serve,
    token,
)


def test_an_expired_token_is_replaced_before_it_is_sent() -> None:
    give, given = numbered_tokens(expires_in=300)
    net = network({"https://r.test": demands(BEARER, lambda header: header == f"Bearer {given[-1]}" if given else False), "https://auth.test": give})  # fmt: skip

    async def work() -> None:
        async with client(net) as registry:
            for _ in range(4):
                await read(registry)
                await trio.sleep(100)

    simulate(work)
    assert given == ["t0ken-0", "t0ken-1"]
    assert [request.headers.get("authorization") for request in net.requests if request.url.host == "r.test"] == [
        None, *["Bearer t0ken-0"] * 3, "Bearer t0ken-1"
    ]  # fmt: skip


@pytest.mark.parametrize("status", [401, 403])
def test_a_revoked_token_is_replaced_after_the_refusal(status: int) -> None:
    give, given = numbered_tokens()
    revoked = {"Bearer t0ken-0"}

    def registry(request: httpx.Request) -> httpx.Response:
        header = request.headers.get("authorization")
        if header in revoked and len(net.requests) > 3:
            return httpx.Response(status, headers={"www-authenticate": BEARER})
        return serve(request) if header else denies(BEARER)(request)

    net = network({"https://r.test": registry, "https://auth.test": give})
    run(net, times=3)
    assert given == ["t0ken-0", "t0ken-1"]


def test_a_token_that_is_refused_though_new_is_a_denial() -> None:
    net = network({"https://r.test": denies(BEARER), "https://auth.test": lambda _: token()})
    denied(net, ME, match="r.test answers HTTP 401")
    assert len(net.requests) == 3


def test_many_readers_fetch_one_token() -> None:
    give, given = numbered_tokens()
    net = network(
        {"https://r.test": demands(BEARER, lambda header: header == "Bearer t0ken-0"), "https://auth.test": give}
    )

    async def work() -> None:
        async with client(net) as registry, trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(read, registry)

    simulate(work)
    assert given == ["t0ken-0"]


def test_the_next_repository_of_a_host_needs_no_refusal_first() -> None:
    give, _ = numbered_tokens()
    net = network(
        {"https://r.test": demands(BEARER, lambda header: header.startswith("Bearer")), "https://auth.test": give}
    )

    async def work() -> None:
        async with client(net) as registry:
            await read(registry)
            await read(registry, repository="c/d")

    simulate(work)
    assert [request.url.host for request in net.requests] == ["r.test", "auth.test", "r.test", "auth.test", "r.test"]


def test_a_public_repository_beside_a_private_one_is_read_without_a_credential() -> None:
    def registry(request: httpx.Request) -> httpx.Response:
        return serve(request) if "/public/" in request.url.path else denies("Basic")(request)

    net = network({"https://r.test": registry})

    async def work() -> None:
        async with client(net) as registry:
            with pytest.raises(RegistryDenied, match="docker login"):
                await read(registry, repository="private/x")
            assert await read(registry, repository="public/x") == DATA[:10]

    simulate(work)


def test_an_identity_token_is_posted_and_its_successor_used() -> None:
    posted: list[Mapping[str, str]] = []

    def give(request: httpx.Request) -> httpx.Response:
        posted.append(dict(httpx.QueryParams(request.content.decode())))
        return httpx.Response(
            200, json={"access_token": f"t0ken-{len(posted)}", "expires_in": 60, "refresh_token": "second"}
        )

    net = network({"https://r.test": demands(BEARER, lambda header: header == f"Bearer t0ken-{len(posted)}"), "https://auth.test": give})  # fmt: skip

    async def work() -> None:
        async with client(net, credential=Credential("me", refresh_token="first")) as registry:
            await read(registry)
            await trio.sleep(100)
            await read(registry)

    simulate(work)
    assert [form["refresh_token"] for form in posted] == ["first", "second"]
    assert posted[0]["grant_type"] == "refresh_token"
    assert posted[0]["scope"] == "repository:a/b:pull"
    assert net.authorization()["https://auth.test"] == {None}


def test_a_registry_token_is_sent_as_it_is() -> None:
    net = network({"https://r.test": demands(BEARER, lambda header: header == "Bearer r3gistry")})
    run(net, Credential(registry_token="r3gistry"))


@pytest.mark.parametrize(
    ("challenge", "match"),
    [
        ("", "without a readable WWW-Authenticate"),
        ("Negotiate", "asks for negotiate"),
        ("Negotiate, NTLM", "asks for negotiate, ntlm"),
        ("???", "only Basic and Bearer"),
        ("Bearer", "no http address"),
        ('Bearer realm="/token"', "no http address"),
        ('Bearer realm="ftp://auth.test/"', "no http address"),
        ('Bearer realm="https://user:pw@auth.test/"', "no http address"),
        ('Bearer realm="https://[::1"', "no address"),
        ('Bearer realm="https://auth.test:99999/"', "no http address"),
        ("Bearer realm=\"https://auth.test/\x01\"", "no address|no http address"),
    ],
)  # fmt: skip
def test_a_strange_challenge_is_a_denial_that_says_so(challenge: str, match: str) -> None:
    denied(network({"https://r.test": denies(challenge)}), ME, match=match)


@pytest.mark.parametrize("credential", [None, Credential("me"), Credential(refresh_token="x")])
def test_basic_without_a_password_is_a_denial_that_says_what_to_do(credential: Credential | None) -> None:
    denied(network({"https://r.test": denies("Basic")}), credential, match="docker login")


def test_a_refused_password_is_not_sent_again() -> None:
    net = network({"https://r.test": denies("Basic")})
    denied(net, ME, match="HTTP 401")
    assert len(net.requests) == 2


@pytest.mark.parametrize(
    ("answer", "match"),
    [
        (httpx.Response(401), "user 'me'"),
        (httpx.Response(403), "check that the image exists"),
        (httpx.Response(400), "gives no token"),
        (httpx.Response(404), "HTTP 404"),
        (httpx.Response(200, content=b"<html>"), "not a token"),
        (httpx.Response(200, content=b"[]"), "not a token"),
        (httpx.Response(200, content=b"{}"), "without a token"),
        (httpx.Response(200, content=b'{"token": 7}'), "not a token"),
        (httpx.Response(200, content=b" " * 300_000), "more than"),
        (token("line\nfeed"), "no header can carry"),
        (token("ünïcode"), "no header can carry"),
    ],
)
def test_a_token_server_that_gives_no_token_is_a_clear_error(answer: httpx.Response, match: str) -> None:
    net = network({"https://r.test": denies(BEARER), "https://auth.test": lambda _: answer})

    async def work() -> None:
        async with client(net, credential=ME) as registry:
            with pytest.raises(RegistryError, match=match):
                await read(registry)

    simulate(work)


def test_an_ill_token_server_is_asked_again() -> None:
    answers = [httpx.Response(503), httpx.Response(429, headers={"retry-after": "7"}), token()]
    net = network({"https://r.test": demands(BEARER, lambda header: header == "Bearer t0ken"), "https://auth.test": lambda _: answers.pop(0)})  # fmt: skip
    run(net)
    assert net.times[-1] >= 7


def test_a_token_server_that_stays_ill_is_unreachable() -> None:
    net = network({"https://r.test": denies(BEARER), "https://auth.test": lambda _: httpx.Response(500)})

    async def work() -> None:
        async with client(net) as registry:
            with pytest.raises(RegistryUnreachable, match=r"auth.test/token answers HTTP 500 \(tried 5 times\)"):
                await read(registry)

    simulate(work)


def test_scopes_are_merged_by_resource() -> None:
    assert merged_scopes(["repository:a:pull"], ["repository:a:push,pull", "registry:catalog:*", "odd"]) == (
        "odd",
        "registry:catalog:*",
        "repository:a:pull,push",
    )
