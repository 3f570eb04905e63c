"""Manifests over the wire, and the client as a whole."""

import json

import pytest
import trio

from snapshotter.config import RegistryConfig
from snapshotter.errors import (
    BlobMissing,
    FormatError,
    IntegrityError,
    RegistryDenied,
    RegistryError,
    RegistryUnreachable,
)
from snapshotter.registry.client import Registry
from snapshotter.registry.credential import Credential
from snapshotter.registry.hosts import Endpoint
from snapshotter.registry.manifest import DOCKER_MANIFEST, MANIFEST_MAX, OCI_MANIFEST, Manifest
from snapshotter.registry.reference import parse_reference
from snapshotter.registry.retry import RetryPolicy
from tests.doubles.registry import LoopbackRegistry
from tests.doubles.relay import Relay
from tests.doubles.token_server import TokenServer
from tests.registry.holding import READ_TIMEOUT_S, HoldingRegistry, run_hurried
from tests.registry.memory import Known

HASTY = RetryPolicy(2, first_s=0.001, retry_after_longest_s=0.01)
CONFIG = RegistryConfig(read_timeout_s=READ_TIMEOUT_S, retries=2)
DOCUMENT = {
    "schemaVersion": 2,
    "mediaType": OCI_MANIFEST,
    "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": "sha256:" + "1" * 64, "size": 2},
    "layers": [],
}
RAW = json.dumps(DOCUMENT).encode()

pytestmark = pytest.mark.usefixtures("nobody_knocks")


def fetch(
    server: LoopbackRegistry,
    suffix: str = ":latest",
    *,
    digest: str | None = None,
    credential: Credential | None = None,
) -> Manifest:
    async def main() -> Manifest:
        async with Registry(CONFIG, credentials=Known(credential), policy=HASTY) as registry:
            ref = parse_reference(f"{server.host}/{server.repository}{suffix}")
            return await registry.manifest(ref, digest)

    return run_hurried(main, server) if isinstance(server, HoldingRegistry) else trio.run(main)


@pytest.mark.parametrize("by", ["tag", "digest", "both", "argument"])
def test_a_manifest_is_fetched_by_tag_or_digest_and_comes_as_it_is(by: str) -> None:
    with LoopbackRegistry() as server:
        digest = server.add_manifest(RAW, tag="v1")
        suffix = {"tag": ":v1", "digest": f"@{digest}", "both": f":other@{digest}", "argument": ":other"}[by]
        found = fetch(server, suffix, digest=digest if by == "argument" else None)
        assert found == Manifest(RAW, OCI_MANIFEST, digest)
        (record,) = server.requests
        assert OCI_MANIFEST in record.headers["accept"]
        assert "manifest.list.v2" in record.headers["accept"]


def test_the_media_type_comes_from_the_document_if_the_registry_does_not_know_it() -> None:
    with LoopbackRegistry() as server:
        server.add_manifest({**DOCUMENT, "mediaType": DOCKER_MANIFEST}, media_type="application/octet-stream")
        assert fetch(server).media_type == DOCKER_MANIFEST


@pytest.mark.parametrize("script", ["503 ok", "close ok", "cut@10 ok", "stall@10 ok", "corrupt ok", "hang ok"])
def test_a_fault_that_passes_does_not_matter(script: str) -> None:
    with HoldingRegistry() as server:
        server.add_manifest(RAW)
        server.script("manifests/latest", script)
        assert fetch(server).raw == RAW
        assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("script", "kind", "match"),
    [
        ("404", BlobMissing, "HTTP 404"),
        ("403", RegistryDenied, "HTTP 403"),
        ("401", RegistryDenied, "docker login"),
        ("400", RegistryError, "HTTP 400"),
        ("500*", RegistryUnreachable, "tried 3 times"),
        ("corrupt*", IntegrityError, "not sha256:"),
        ("endless", RegistryError, "more than 8388608 bytes"),
        ("redirect-loop*", RegistryError, "circle"),
    ],
)
@pytest.mark.parametrize("by_digest", [True, False])
def test_a_fault_that_stays_is_an_error_of_its_own_kind(
    script: str, kind: type[Exception], match: str, by_digest: bool
) -> None:
    with LoopbackRegistry() as server:
        digest = server.add_manifest(RAW)
        suffix = f"@{digest}" if by_digest else ":latest"
        server.script(suffix[1:], script)
        with pytest.raises(kind, match=match) as caught:
            fetch(server, suffix)
        assert type(caught.value) is kind


def test_a_document_that_is_no_manifest_is_a_format_error() -> None:
    with LoopbackRegistry() as server:
        server.add_manifest(b"<html>Welcome</html>", media_type="text/html")
        with pytest.raises(FormatError):
            fetch(server)


def test_a_manifest_over_the_limit_is_not_read_to_its_end() -> None:
    with LoopbackRegistry() as server:
        server.add_manifest(b" " * (4 * MANIFEST_MAX))
        with pytest.raises(RegistryError, match="more than"):
            fetch(server)
        assert server.bytes_sent < 4 * MANIFEST_MAX


@pytest.mark.parametrize("users", [{}, {"me": "pw"}])
def test_tokens_of_a_token_server_open_the_registry(users: dict[str, str]) -> None:
    with LoopbackRegistry() as server, TokenServer(users=users) as auth:
        server.tokens, server.challenge = auth, auth.challenge()
        server.add_manifest(RAW)
        assert fetch(server, credential=Credential("me", "pw")).raw == RAW
        assert [record.status for record in server.requests] == [401, 200]
        assert len(auth.requests) == 1


def test_an_identity_token_opens_the_registry() -> None:
    with LoopbackRegistry() as server, TokenServer() as auth:
        server.tokens, server.challenge = auth, auth.challenge()
        auth.refresh_tokens = {"identity"}
        server.add_manifest(RAW)
        assert fetch(server, credential=Credential("me", refresh_token="identity")).raw == RAW


def test_a_wrong_password_is_a_denial_that_names_the_user_only() -> None:
    with LoopbackRegistry() as server, TokenServer(users={"me": "right"}) as auth:
        server.tokens, server.challenge = auth, auth.challenge()
        with pytest.raises(RegistryDenied, match="user 'me'") as caught:
            fetch(server, credential=Credential("me", "wr0ng-pw"))
        assert "wr0ng-pw" not in str(caught.value)


def test_basic_opens_the_registry() -> None:
    with LoopbackRegistry() as server:
        server.users = {"me": "pw"}
        server.add_manifest(RAW)
        assert fetch(server, credential=Credential("me", "pw")).raw == RAW


def test_the_first_bytes_of_an_image_cost_two_requests_on_one_connection() -> None:
    blob = bytes(1000)
    with LoopbackRegistry() as server, Relay("127.0.0.1", server.port, delay_s=0.001) as relay:
        server.add_manifest(RAW)
        digest = server.add_blob(blob)

        async def main() -> None:
            async with Registry(CONFIG, credentials=Known(None)) as registry:
                ref = parse_reference(f"{relay.address}/{server.repository}")
                await registry.manifest(ref)
                assert await registry.blob(ref, digest, 1000).read_range(500, 500) == blob[500:]

        trio.run(main)
        assert (len(server.requests), relay.connections) == (2, 1)
        assert relay.down >= 500 + len(RAW)


def test_the_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with LoopbackRegistry() as proxy:
        proxy.add_manifest(RAW)
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)

        async def main() -> None:
            config = RegistryConfig(plain_http=("far.test",))
            async with Registry(config, credentials=Known(None)) as registry:
                ref = parse_reference(f"far.test/{proxy.repository}:latest")
                assert (await registry.manifest(ref)).raw == RAW

        trio.run(main)


def test_a_registry_without_tls_is_named_as_such() -> None:
    class Tls:
        def endpoints(self, host: str) -> list[Endpoint]:
            return [Endpoint(f"https://{host}", host)]

    with LoopbackRegistry() as server:

        async def main() -> None:
            async with Registry(CONFIG, credentials=Known(None), hosts=Tls()) as registry:
                with pytest.raises(RegistryError, match="does not speak TLS"):
                    await registry.manifest(parse_reference(server.reference()))

        trio.run(main)
