"""Storing blobs and manifests."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from urllib.parse import SplitResult

import httpx
import pytest
import trio

from snapshotter.config import RegistryConfig
from snapshotter.errors import FormatError, RegistryDenied, RegistryError, RegistryUnreachable
from snapshotter.registry.client import Registry
from snapshotter.registry.credential import Credential
from snapshotter.registry.manifest import OCI_MANIFEST
from snapshotter.registry.push import Source
from snapshotter.registry.reference import Reference, parse_reference
from snapshotter.registry.retry import RetryPolicy
from tests.doubles.registry import LoopbackRegistry, digest_of
from tests.doubles.server import Handler, Recorded
from tests.doubles.token_server import TokenServer
from tests.registry.memory import Known, Network, client, simulate

DATA = bytes(range(256)) * 4000
DIGEST = digest_of(DATA)
HASTY = RetryPolicy(2, first_s=0.001, retry_after_longest_s=0.01)


def source(data: bytes = DATA) -> Callable[[], AsyncGenerator[bytes, None]]:
    async def pieces() -> AsyncGenerator[bytes, None]:
        for at in range(0, len(data), 100_000):
            await trio.lowlevel.checkpoint()
            yield data[at : at + 100_000]

    return pieces


def pushing(
    server: LoopbackRegistry, work: Callable[[Registry, Reference], Awaitable[None]], user: Credential | None = None
) -> None:
    async def main() -> None:
        async with Registry(RegistryConfig(), credentials=Known(user), policy=HASTY) as registry:
            await work(registry, parse_reference(server.reference()))

    trio.run(main)


def push(
    content: Source, size: int = len(DATA), *, sent: bool = True
) -> Callable[[Registry, Reference], Awaitable[None]]:
    async def work(registry: Registry, ref: Reference) -> None:
        assert await registry.push_blob(ref, DIGEST, size, content) is sent

    return work


def mount(*, taken: bool) -> Callable[[Registry, Reference], Awaitable[None]]:
    async def work(registry: Registry, ref: Reference) -> None:
        assert await registry.mount_blob(ref, DIGEST, "other/image") is taken

    return work


def refused(
    kind: type[Exception], match: str, content: Source | None = None, size: int = len(DATA)
) -> Callable[[Registry, Reference], Awaitable[None]]:
    async def work(registry: Registry, ref: Reference) -> None:
        with pytest.raises(kind, match=match):
            await registry.push_blob(ref, DIGEST, size, content or source())

    return work


@pytest.mark.parametrize("kind", ["file", "stream"])
def test_a_blob_is_stored_as_it_is(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "blob"
    path.write_bytes(DATA)
    with LoopbackRegistry() as server:
        pushing(server, push(path if kind == "file" else source()))
        assert server.blobs == {DIGEST: DATA}
        assert [record.method for record in server.requests] == ["HEAD", "POST", "PUT"]
        put = server.requests[-1]
        assert put.headers["content-length"] == str(len(DATA))
        assert put.query.startswith("state=a%2Bb&digest=sha256%3A")


def test_an_empty_blob_is_stored() -> None:
    async def work(registry: Registry, ref: Reference) -> None:
        assert await registry.push_blob(ref, digest_of(b""), 0, source(b""))

    with LoopbackRegistry() as server:
        pushing(server, work)
        assert server.blobs == {digest_of(b""): b""}


def test_a_blob_that_is_there_is_not_sent() -> None:
    with LoopbackRegistry() as server:
        server.add_blob(DATA)
        pushing(server, push(source(), sent=False))
        assert [record.method for record in server.requests] == ["HEAD"]


def test_a_blob_in_a_store_behind_a_redirect_is_there() -> None:
    async def work(registry: Registry, ref: Reference) -> None:
        assert await registry.blob_exists(ref, DIGEST)

    with LoopbackRegistry() as server:
        server.redirects["store"] = "http://127.0.0.1:9"
        server.script("", "redirect:store")
        pushing(server, work)


def test_a_blob_of_another_repository_is_mounted() -> None:
    with LoopbackRegistry() as server:
        server.add_blob(DATA)
        pushing(server, mount(taken=True))
        assert "from=other%2Fimage" in server.requests[-1].query or "from=other/image" in server.requests[-1].query
        assert [(record.method, record.status) for record in server.requests] == [("POST", 201)]


def test_a_mount_that_does_not_happen_is_told() -> None:
    with LoopbackRegistry() as server:
        pushing(server, mount(taken=False))
        assert [(record.method, record.status) for record in server.requests] == [("POST", 202)]


def test_a_blob_whose_answer_was_lost_is_not_sent_again() -> None:
    with LoopbackRegistry() as server:
        stored = server.answer

        def lost(handler: Handler, record: Recorded, url: SplitResult) -> None:
            if record.method == "PUT":
                server.add_blob(record.body)
                handler.close_connection = True
                return
            stored(handler, record, url)

        server.answer = lost  # type: ignore[method-assign]
        pushing(server, push(source()))
        assert [record.method for record in server.requests] == ["HEAD", "POST", "PUT", "HEAD"]


def test_progress_counts_what_was_sent_once() -> None:
    told: list[int] = []

    async def work(registry: Registry, ref: Reference) -> None:
        assert await registry.push_blob(ref, DIGEST, len(DATA), source(), told.append)

    with LoopbackRegistry() as server:
        server.script("", "500 ok", method="PUT")
        pushing(server, work)
        assert sum(told) == len(DATA)
        assert -len(DATA) in told


@pytest.mark.parametrize(
    ("method", "script"), [("POST", "503 ok"), ("PUT", "503 ok"), ("PUT", "close ok"), ("PUT", "429@1 500 ok")]
)
def test_a_fault_that_passes_begins_the_content_anew(method: str, script: str) -> None:
    with LoopbackRegistry() as server:
        server.script("", script, method=method)
        pushing(server, push(source()))
        assert server.blobs[DIGEST] == DATA


@pytest.mark.parametrize(
    ("script", "kind", "match"),
    [
        ("403", RegistryDenied, "SCRIPTED"),
        ("401", RegistryDenied, "docker login"),
        ("404", RegistryError, "HTTP 404"),
        ("405", RegistryError, "read-only or a mirror"),
        ("413", RegistryError, "too large"),
        ("307", RegistryError, "HTTP 307"),
        ("500*", RegistryUnreachable, "tried 3 times"),
    ],
)
@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_a_refused_upload_says_why(method: str, script: str, kind: type[Exception], match: str) -> None:
    with LoopbackRegistry() as server:
        server.script("", script, method=method)
        pushing(server, refused(kind, match))
        assert server.blobs == {}


def test_content_of_another_size_or_digest_is_not_stored() -> None:
    with LoopbackRegistry() as server:
        pushing(server, refused(FormatError, "1 bytes early", size=len(DATA) + 1))
        pushing(server, refused(FormatError, "longer than", size=len(DATA) - 1))
        pushing(server, refused(RegistryError, "DIGEST_INVALID", source(bytes(len(DATA)))))
        assert server.blobs == {}


def test_a_manifest_is_stored_under_its_tag_or_its_digest() -> None:
    raw = b'{"schemaVersion":2}'

    async def work(registry: Registry, ref: Reference) -> None:
        assert await registry.push_manifest(ref, raw, OCI_MANIFEST) == digest_of(raw)
        untagged = Reference(ref.host, "by/digest", None, digest_of(raw))
        assert await registry.push_manifest(untagged, raw, OCI_MANIFEST) == digest_of(raw)
        with pytest.raises(FormatError, match="the manifest's digest is"):
            await registry.push_manifest(untagged, raw + b" ", OCI_MANIFEST)

    with LoopbackRegistry() as server:
        pushing(server, work)
        assert server.manifests[server.repository, "latest"] == (raw, OCI_MANIFEST)
        assert server.manifests["by/digest", digest_of(raw)] == (raw, OCI_MANIFEST)


def test_a_refused_manifest_says_why() -> None:
    async def work(registry: Registry, ref: Reference) -> None:
        with pytest.raises(RegistryError, match="read-only"):
            await registry.push_manifest(ref, b"{}", OCI_MANIFEST)

    with LoopbackRegistry() as server:
        server.script("manifests/latest", "405")
        pushing(server, work)


def test_a_push_asks_for_a_token_that_allows_it_and_renews_it_amid_the_upload() -> None:
    with LoopbackRegistry() as server, TokenServer(users={"me": "pw"}) as auth:
        server.tokens, server.challenge = auth, auth.challenge()
        server.script("", "401 ok", method="PUT")
        pushing(server, push(source()), Credential("me", "pw"))
        assert server.blobs[DIGEST] == DATA
        assert {scope for scopes in auth.issued.values() for scope in scopes} == {"repository:library/image:pull,push"}


def test_an_upload_at_another_host_gets_the_bytes_and_no_authorization() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        if request.url.host == "upload.test":
            return httpx.Response(201)
        if "authorization" not in request.headers:
            return httpx.Response(401, headers={"www-authenticate": "Basic"})
        if request.method == "HEAD":
            return httpx.Response(404)
        return httpx.Response(202, headers={"location": "https://upload.test/x?sig=1"})

    net = Network(handler)

    async def work() -> None:
        async with client(net, credential=Credential("me", "pw")) as registry:
            assert await registry.push_blob(parse_reference("r.test/a/b"), DIGEST, len(DATA), source())

    simulate(work)
    assert net.authorization()["https://upload.test"] == {None}
    assert net.requests[-1].content == DATA


def test_an_upload_without_a_place_is_an_error() -> None:
    net = Network(lambda request: httpx.Response(404 if request.method == "HEAD" else 202))

    async def work() -> None:
        async with client(net) as registry:
            with pytest.raises(RegistryError, match="without saying where"):
                await registry.push_blob(parse_reference("r.test/a/b"), DIGEST, len(DATA), source())

    simulate(work)
