"""Who gets to see a credential: each rule with a test of its own."""

import logging
from collections.abc import Sequence

import httpx
import pytest

from snapshotter.config import RegistryConfig
from snapshotter.errors import RegistryDenied, RegistryError
from snapshotter.registry.client import Registry
from snapshotter.registry.credential import Credential
from snapshotter.registry.hosts import Endpoint
from tests.registry.memory import Known, client, simulate
from tests.registry.servers import (
    BASIC,
    BEARER,
    DATA,
    DIGEST,
    ME,
    blob,
    demands,
    denied,
    denies,
    network,
    read,
    redirects,
    run,
    serve,
    tells_a_secret,
    token,
)

pytestmark = pytest.mark.usefixtures("no_secret_told")


def test_a_credential_is_not_sent_where_nobody_asks_for_it() -> None:
    net = network({"https://r.test": serve})
    run(net, ME, times=3)
    assert net.authorization() == {"https://r.test": {None}}


def test_basic_goes_to_the_registry_that_asks_and_is_then_sent_at_once() -> None:
    net = network({"https://r.test": demands("Basic realm=x", lambda header: header == BASIC)})
    run(net, ME, times=3)
    assert [request.headers.get("authorization") for request in net.requests] == [None, BASIC, BASIC, BASIC]


def test_a_token_is_fetched_once_with_the_credential_and_sent_to_the_registry_only() -> None:
    net = network({
        "https://r.test": demands(BEARER, lambda header: header == "Bearer t0ken"),
        "https://auth.test": lambda _: token(),
    })  # fmt: skip
    run(net, ME, times=3)
    assert net.authorization() == {"https://r.test": {None, "Bearer t0ken"}, "https://auth.test": {BASIC}}
    asked = [request.url for request in net.requests if request.url.host == "auth.test"]
    assert [sorted(url.params.multi_items()) for url in asked] == [
        [("account", "me"), ("scope", "repository:a/b:pull"), ("service", "reg")]
    ]


def test_without_a_credential_the_token_is_anonymous() -> None:
    net = network({
        "https://r.test": demands(BEARER, lambda header: header == "Bearer t0ken"),
        "https://auth.test": lambda _: token(),
    })  # fmt: skip
    run(net)
    assert net.authorization()["https://auth.test"] == {None}


def test_no_header_of_ours_follows_a_redirect_to_another_host() -> None:
    routes = {
        "https://r.test": lambda request: (
            redirects("https://cdn.test/blob?sig=1")(request)
            if "authorization" in request.headers
            else denies("Basic")(request)
        ),
        "https://cdn.test": serve,
    }
    net = network(routes)
    run(net, ME, times=2)
    assert net.authorization()["https://cdn.test"] == {None}


@pytest.mark.parametrize("location", ["https://r.test:8443/x", "http://r.test:8080/x"])
def test_another_port_or_a_downgraded_scheme_gets_no_authorization(location: str) -> None:
    origin = location.removesuffix("/x").removesuffix(":80")
    asks = denies("Basic")
    net = network({
        "https://r.test": lambda q: redirects(location)(q) if "authorization" in q.headers else asks(q),
        origin: serve,
    })  # fmt: skip
    run(net, ME)
    assert net.authorization()[origin] == {None}


def test_a_redirect_within_the_registry_keeps_the_authorization() -> None:
    def registry(request: httpx.Request) -> httpx.Response:
        if request.headers.get("authorization") != BASIC:
            return denies("Basic")(request)
        return serve(request) if request.url.path == "/store" else redirects("/store")(request)

    net = network({"https://r.test": registry})
    run(net, ME, times=2)
    assert net.trail[-1] == "GET https://r.test/store"


@pytest.mark.parametrize("status", [401, 403])
def test_a_challenge_from_a_redirect_target_is_not_answered(status: int) -> None:
    net = network({
        "https://r.test": redirects("https://cdn.test/x"),
        "https://cdn.test": lambda _: httpx.Response(
            status, headers={"www-authenticate": 'Bearer realm="https://evil.test/token"'}
        ),
    })  # fmt: skip
    denied(net, ME, match="cdn.test answers HTTP")
    assert net.authorization() == {"https://r.test": {None}, "https://cdn.test": {None}}


def test_a_realm_without_tls_is_refused_for_a_registry_with_it() -> None:
    net = network({"https://r.test": denies('Bearer realm="http://auth.test/token"')})
    denied(net, ME, match="unencrypted")
    assert net.trail == [f"GET https://r.test/v2/a/b/blobs/{DIGEST}"]


def test_a_registry_without_tls_may_name_a_realm_without_it() -> None:
    net = network({
        "http://plain.test": demands('Bearer realm="http://auth.test/token"', lambda header: header == "Bearer t0ken"),
        "http://auth.test": lambda _: token(),
    })  # fmt: skip
    run(net, ME, host="plain.test")
    assert net.authorization()["http://auth.test"] == {BASIC}


def test_a_redirect_to_a_link_local_address_is_not_followed() -> None:
    net = network({"https://r.test": redirects("http://169.254.169.254/latest/meta-data")})

    async def work() -> None:
        async with client(net) as registry:
            with pytest.raises(RegistryError, match="link-local"):
                await read(registry)

    simulate(work)
    assert len(net.requests) == 1


def test_a_realm_at_a_link_local_address_gets_nothing() -> None:
    net = network({"http://plain.test": denies('Bearer realm="http://metadata.test/token"')})

    async def work() -> None:
        async with client(net, credential=ME, addresses=["169.254.169.254"]) as registry:
            with pytest.raises(RegistryError, match="link-local"):
                await read(registry, "plain.test")

    simulate(work)
    assert len(net.requests) == 1


def test_the_redirect_of_a_token_server_is_not_followed() -> None:
    net = network({"https://r.test": denies(BEARER), "https://auth.test": redirects("https://evil.test/token")})

    async def work() -> None:
        async with client(net, credential=ME) as registry:
            with pytest.raises(RegistryError, match="answers HTTP 307 instead of a token"):
                await read(registry)

    simulate(work)


def test_configured_headers_stay_with_their_host_and_a_mirror_is_told_its_registry() -> None:
    class Mirror:
        def endpoints(self, host: str) -> Sequence[Endpoint]:
            return [Endpoint("https://m.test", host, headers={"x-mirror-key": "s3cr3t"}, namespace=host)]

    net = network({"https://m.test": redirects("https://cdn.test/x"), "https://cdn.test": serve})

    async def work() -> None:
        async with Registry(RegistryConfig(), hosts=Mirror(), credentials=Known(None), transport=net) as registry:
            await read(registry)

    simulate(work)
    assert net.requests[0].url.params["ns"] == "r.test"
    assert [request.headers.get("x-mirror-key") for request in net.requests] == ["s3cr3t", None]


def test_the_next_server_is_asked_when_the_first_has_nothing() -> None:
    class Two:
        def endpoints(self, host: str) -> Sequence[Endpoint]:
            return [Endpoint("https://m.test", host, namespace=host), Endpoint("https://r.test", host)]

    net = network({"https://m.test": lambda _: httpx.Response(404), "https://r.test": serve})

    async def work() -> None:
        async with Registry(RegistryConfig(), hosts=Two(), credentials=Known(None), transport=net) as registry:
            found = blob(registry)
            assert await found.read_range(0, 10) == DATA[:10]
            assert await found.read_range(10, 10) == DATA[10:20]

    simulate(work)
    assert [request.url.host for request in net.requests] == ["m.test", "r.test", "r.test"]


def test_a_remembered_redirect_target_that_asks_for_credentials_gets_none() -> None:
    asks = {"now": False}

    def store(request: httpx.Request) -> httpx.Response:
        if not asks["now"]:
            return serve(request)
        return httpx.Response(401, headers={"www-authenticate": 'Bearer realm="https://evil.test/token"'})

    def registry(request: httpx.Request) -> httpx.Response:
        if request.headers.get("authorization") != BASIC:
            return denies("Basic")(request)
        return serve(request) if asks["now"] else redirects("https://cdn.test/x")(request)

    net = network({"https://r.test": registry, "https://cdn.test": store})

    async def work() -> None:
        async with client(net, credential=ME) as made:
            found = blob(made)
            assert await found.read_range(0, 10) == DATA[:10]
            asks["now"] = True
            assert await found.read_range(10, 10) == DATA[10:20]

    simulate(work)
    assert net.authorization()["https://cdn.test"] == {None}
    assert "https://evil.test" not in net.authorization()


def test_a_target_that_sends_us_home_learns_nothing_and_home_is_asked_as_usual() -> None:
    def registry(request: httpx.Request) -> httpx.Response:
        if request.headers.get("authorization") != BASIC:
            return denies("Basic")(request)
        return serve(request) if request.url.path == "/store" else redirects("https://cdn.test/x")(request)

    net = network({"https://r.test": registry, "https://cdn.test": redirects("https://r.test/store")})
    run(net, ME)
    assert net.authorization() == {"https://r.test": {None, BASIC}, "https://cdn.test": {None}}


def test_a_registry_that_redirects_to_its_own_name_without_tls_is_asked_over_tls() -> None:
    def registry(request: httpx.Request) -> httpx.Response:
        if request.headers.get("authorization") != BASIC:
            return denies("Basic")(request)
        return serve(request) if request.url.path == "/store" else redirects("http://r.test/store")(request)

    net = network({"https://r.test": registry})
    run(net, ME)
    assert set(net.authorization()) == {"https://r.test"}


@pytest.mark.parametrize(
    "realm",
    [
        "http://169.254.169.254/t",
        "http://[fe80::1]/t",
        "http://[::ffff:169.254.169.254]/t",
        "http://[fe80::1%25eth0]/t",
    ],
)
def test_a_realm_that_is_a_link_local_address_gets_nothing(realm: str) -> None:
    net = network({"http://plain.test": denies(f'Bearer realm="{realm}"')})

    async def work() -> None:
        async with client(net, credential=ME) as registry:
            with pytest.raises(RegistryError, match=r"link-local|no http address|no address"):
                await read(registry, "plain.test")

    simulate(work)
    assert len(net.requests) == 1


def test_a_challenge_with_several_realms_is_answered_once() -> None:
    both = 'Bearer realm="https://auth.test/token", Bearer realm="https://other.test/token"'
    net = network({
        "https://r.test": demands(both, lambda header: header == "Bearer t0ken"),
        "https://auth.test": lambda _: token(),
    })  # fmt: skip
    run(net, ME)
    assert set(net.authorization()) == {"https://r.test", "https://auth.test"}


def test_a_credential_is_shown_in_no_representation() -> None:
    text = repr([ME, Credential(refresh_token="s3cr3t-a", registry_token="s3cr3t-b"), Known(ME)])
    assert tells_a_secret(text) == []


def test_no_secret_is_logged_or_raised(caplog: pytest.LogCaptureFixture) -> None:
    secrets = ["s3cr3t", "t0ken", BASIC.removeprefix("Basic ")]
    echo = httpx.Response(403, content=b'{"errors":[{"code":"DENIED","message":"s3cr3t-password t0ken"}]}')
    net = network({
        "https://r.test": lambda q: redirects("https://cdn.test/x?sig=s3cr3t")(q) if "authorization" in q.headers else denies(BEARER)(q),
        "https://auth.test": lambda _: token(),
        "https://cdn.test": lambda _: echo,
    })  # fmt: skip
    messages: list[str] = []

    async def work() -> None:
        async with client(net, credential=ME) as registry:
            try:
                await read(registry)
            except RegistryDenied as error:
                messages.append(repr(error))

    with caplog.at_level(logging.DEBUG):
        simulate(work)
    assert "DENIED" in messages[0]
    assert [secret for secret in secrets if secret in caplog.text + messages[0]] == []
