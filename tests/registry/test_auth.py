"""Tokens: asked for, kept, renewed, and refused in words."""

import base64
from collections.abc import Callable, Mapping

import httpx
import pytest
import trio

from snapshotter.errors import RegistryDenied, RegistryError, RegistryUnreachable
from snapshotter.registry import auth
from snapshotter.registry.auth import merged_scopes
from snapshotter.registry.credential import Credential
from tests.registry.memory import Known, Network, Succession, client, simulate
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

pytestmark = pytest.mark.usefixtures("no_secret_told")


def basic(pair: str) -> str:
    return f"Basic {base64.b64encode(pair.encode()).decode()}"


def reads(net: Network, source: Known, *, then: Callable[[], None] = lambda: None) -> None:
    """Read, do `then`, and read on."""

    async def work() -> None:
        async with client(net, source=source) as registry:
            await read(registry)
            then()
            await read(registry)

    simulate(work)


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


def test_a_successor_that_is_refused_gives_way_to_the_identity_token_that_was_written_down() -> None:
    posted: list[str] = []

    def give(request: httpx.Request) -> httpx.Response:
        posted.append(httpx.QueryParams(request.content.decode())["refresh_token"])
        if posted[-1] == "s3cr3t-second":
            return httpx.Response(400, content=b'{"error": "invalid_grant"}')
        return token(f"t0ken-{len(posted)}", expires_in=60, refresh_token="s3cr3t-second")

    net = network({"https://r.test": demands(BEARER, lambda header: header == f"Bearer t0ken-{len(posted)}"), "https://auth.test": give})  # fmt: skip

    async def work() -> None:
        async with client(net, credential=Credential("me", refresh_token="s3cr3t-first")) as registry:
            await read(registry)
            await trio.sleep(100)
            await read(registry)

    simulate(work)
    assert posted == ["s3cr3t-first", "s3cr3t-second", "s3cr3t-first"]


def test_an_identity_token_that_is_refused_is_looked_up_once_more() -> None:
    def give(request: httpx.Request) -> httpx.Response:
        good = httpx.QueryParams(request.content.decode())["refresh_token"] == "s3cr3t-new"
        return token(expires_in=60) if good else httpx.Response(401)

    source = Succession(Credential(refresh_token="s3cr3t-old"), Credential(refresh_token="s3cr3t-new"))
    net = network({"https://r.test": demands(BEARER, lambda header: header == "Bearer t0ken"), "https://auth.test": give})  # fmt: skip
    reads(net, source)
    assert source.renewed == 1


def test_a_registry_token_that_was_replaced_is_taken_within_the_read() -> None:
    source = Succession(Credential(registry_token="r3gistry-1"), Credential(registry_token="r3gistry-2"))
    good = ["Bearer r3gistry-1"]
    net = network({"https://r.test": demands(BEARER, lambda header: header in good)})
    reads(net, source, then=lambda: good.__setitem__(0, "Bearer r3gistry-2"))
    assert source.renewed == 1


@pytest.mark.parametrize("status", [401, 403])
def test_a_password_that_expired_is_looked_up_once_more_within_the_read(status: int) -> None:
    source = Succession(Credential("AWS", "s3cr3t-1"), Credential("AWS", "s3cr3t-2"))
    good = [basic("AWS:s3cr3t-1")]

    def registry(request: httpx.Request) -> httpx.Response:
        header = request.headers.get("authorization")
        if header == good[0]:
            return serve(request)
        return httpx.Response(status if header else 401, headers={"www-authenticate": "Basic"})

    reads(network({"https://r.test": registry}), source, then=lambda: good.__setitem__(0, basic("AWS:s3cr3t-2")))
    assert source.renewed == 1


def test_a_password_that_expired_is_replaced_also_for_a_repository_that_was_not_read_before() -> None:
    source = Succession(Credential("AWS", "s3cr3t-1"), Credential("AWS", "s3cr3t-2"))
    good = [basic("AWS:s3cr3t-1")]

    def registry(request: httpx.Request) -> httpx.Response:
        header = request.headers.get("authorization")
        if header == good[0]:
            return serve(request)
        return httpx.Response(403 if header else 401, headers={"www-authenticate": "Basic"})

    net = network({"https://r.test": registry})

    async def work() -> None:
        async with client(net, source=source) as made:
            await read(made)
            good[0] = basic("AWS:s3cr3t-2")
            await read(made, repository="c/d")

    simulate(work)
    assert len(net.requests) == 4


def test_a_403_that_no_other_password_changes_is_told_in_the_registrys_words() -> None:
    source = Succession(ME)
    net = network({"https://r.test": lambda q: httpx.Response(403 if "authorization" in q.headers else 401, headers={"www-authenticate": "Basic"})})  # fmt: skip

    async def work() -> None:
        async with client(net, source=source) as registry:
            for _ in range(2):
                with pytest.raises(RegistryDenied, match=r"r.test answers HTTP 403 .* do not allow it"):
                    await read(registry)

    simulate(work)
    assert len(net.requests) == 3


def test_a_password_that_the_token_server_refuses_is_looked_up_once_more() -> None:
    source = Succession(Credential("me", "s3cr3t-1"), Credential("me", "s3cr3t-2"))
    good = [basic("me:s3cr3t-1")]

    def give(request: httpx.Request) -> httpx.Response:
        return token("t0ken", expires_in=60) if request.headers["authorization"] in good else httpx.Response(401)

    net = network({"https://r.test": demands(BEARER, lambda header: header.startswith("Bearer t0ken")), "https://auth.test": give})  # fmt: skip

    async def work() -> None:
        async with client(net, source=source) as registry:
            await read(registry)
            good[0] = basic("me:s3cr3t-2")
            await trio.sleep(100)
            await read(registry)

    simulate(work)
    assert source.renewed == 1


def test_a_password_that_is_refused_again_though_looked_up_once_more_is_a_denial() -> None:
    source = Succession(Credential("me", "s3cr3t-1"), Credential("me", "s3cr3t-2"), Credential("me", "s3cr3t-3"))
    net = network({"https://r.test": denies(BEARER), "https://auth.test": lambda _: httpx.Response(401)})

    async def work() -> None:
        async with client(net, source=source) as registry:
            with pytest.raises(RegistryDenied, match="gives no token for a/b to user 'me'"):
                await read(registry)

    simulate(work)
    assert source.renewed == 1


def test_where_nothing_is_known_the_denial_says_where_was_looked() -> None:
    denied(
        network({"https://r.test": denies("Basic")}), match=r"there are none \(a test has none\): run `docker login`"
    )
    net = network({"https://r.test": denies(BEARER), "https://auth.test": lambda _: httpx.Response(401)})
    denied(net, match=r"to the anonymous user \(a test has none\)")


def test_what_is_remembered_is_bounded_and_the_newest_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "KEPT", 3)
    kept: dict[str, int] = {}
    for number, name in enumerate(["a", "b", "c", "a", "d"]):
        auth.keep(kept, name, number)
    assert kept == {"c": 2, "a": 3, "d": 4}


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
