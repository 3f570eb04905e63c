"""Under which name a server is shown a credential: mirrors, repositories, and servers that stand for several registries."""

import base64
from collections.abc import Sequence

import httpx
import pytest

from snapshotter.registry.credential import Credential
from snapshotter.registry.hosts import Endpoint
from tests.registry.memory import ByName, client, simulate
from tests.registry.servers import BASIC, BEARER, DATA, ME, demands, denies, network, read, token

pytestmark = pytest.mark.usefixtures("no_secret_told")


class Servers:
    """The servers that stand for a registry, best first."""

    def __init__(self, *servers: Endpoint) -> None:
        self._servers = servers

    def endpoints(self, host: str) -> Sequence[Endpoint]:
        return self._servers


MIRRORED = Servers(Endpoint("https://m.test", "r.test", namespace="r.test"), Endpoint("https://r.test", "r.test"))
OF_THE_MIRROR = Credential("mirror", "s3cr3t-of-the-mirror")


def basic_of(credential: Credential) -> str:
    return "Basic " + base64.b64encode(f"{credential.username}:{credential.password}".encode()).decode()


def test_a_mirror_is_shown_its_own_credential_and_the_registry_its_own() -> None:
    net = network(
        {"https://m.test": denies("Basic"), "https://r.test": demands("Basic", lambda header: header == BASIC)}
    )

    async def work() -> None:
        source = ByName({"r.test": ME, "m.test": OF_THE_MIRROR})
        async with client(net, source=source, hosts=MIRRORED) as registry:
            assert await read(registry) == DATA[:10]

    simulate(work)
    assert net.authorization() == {"https://m.test": {None, basic_of(OF_THE_MIRROR)}, "https://r.test": {None, BASIC}}


def test_a_mirror_for_which_nothing_is_known_is_shown_nothing() -> None:
    net = network(
        {"https://m.test": denies("Basic"), "https://r.test": demands("Basic", lambda header: header == BASIC)}
    )

    async def work() -> None:
        async with client(net, source=ByName({"r.test": ME}), hosts=MIRRORED) as registry:
            assert await read(registry) == DATA[:10]

    simulate(work)
    assert net.authorization()["https://m.test"] == {None}


def test_the_realm_of_a_mirror_is_shown_the_mirrors_credential_only() -> None:
    net = network({
        "https://m.test": denies('Bearer realm="https://realm.test/token"'),
        "https://realm.test": lambda _: httpx.Response(401),
        "https://r.test": demands("Basic", lambda header: header == BASIC),
    })  # fmt: skip

    async def work() -> None:
        for source in (ByName({"r.test": ME}), ByName({"r.test": ME, "m.test": OF_THE_MIRROR})):
            async with client(net, source=source, hosts=MIRRORED) as registry:
                assert await read(registry) == DATA[:10]

    simulate(work)
    assert net.authorization()["https://realm.test"] == {None, basic_of(OF_THE_MIRROR)}


def test_an_identity_token_goes_to_the_realm_of_its_registry_only() -> None:
    net = network({
        "https://m.test": denies('Bearer realm="https://realm-of-m.test/token"'),
        "https://realm-of-m.test": lambda _: httpx.Response(401),
        "https://r.test": demands(BEARER, lambda header: header == "Bearer t0ken"),
        "https://auth.test": lambda _: token(),
    })  # fmt: skip

    async def work() -> None:
        source = ByName({"r.test": Credential(refresh_token="s3cr3t-identity")})
        async with client(net, source=source, hosts=MIRRORED) as registry:
            assert await read(registry) == DATA[:10]

    simulate(work)
    shown = {request.url.host for request in net.requests if b"s3cr3t" in request.content}
    assert shown == {"auth.test"}


def test_each_repository_is_shown_its_own_credential() -> None:
    other = Credential("team", "s3cr3t-of-the-team")
    net = network({"https://r.test": demands("Basic", lambda header: header in {BASIC, basic_of(other)})})

    async def work() -> None:
        async with client(net, source=ByName({"r.test": ME, "r.test/team/x": other})) as registry:
            for repository in ("a/b", "team/x", "a/b", "team/x"):
                assert await read(registry, repository=repository) == DATA[:10]

    simulate(work)
    shown = {(q.url.path.split("/blobs")[0], q.headers.get("authorization")) for q in net.requests}
    assert shown == {("/v2/a/b", None), ("/v2/a/b", BASIC), ("/v2/team/x", basic_of(other))}


def test_a_server_that_stands_for_two_registries_is_shown_the_credential_of_each_in_its_turn() -> None:
    class Shared:
        def endpoints(self, host: str) -> Sequence[Endpoint]:
            return [Endpoint("https://shared.test", host)]

    other = Credential("other", "s3cr3t-other")
    net = network({"https://shared.test": demands("Basic", lambda header: header.startswith("Basic"))})

    async def work() -> None:
        async with client(net, source=ByName({"r.test": ME, "q.test": other}), hosts=Shared()) as registry:
            for host in ("r.test", "q.test", "r.test"):
                await read(registry, host)

    simulate(work)
    assert [q.headers.get("authorization") for q in net.requests] == [None, BASIC, basic_of(other), BASIC]
