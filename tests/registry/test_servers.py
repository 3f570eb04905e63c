"""A registry's servers as one: what an error tells, who is pushed to, and connections that come and go."""

import re
import ssl
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import trio

from snapshotter.config import RegistryConfig
from snapshotter.errors import BlobMissing, Reason, RegistryError, RegistryUnreachable, RegistryUntrusted
from snapshotter.registry import health, wire
from snapshotter.registry.client import Registry
from snapshotter.registry.hosts import Endpoint
from snapshotter.registry.reference import Reference, parse_reference
from tests.doubles.registry import LoopbackRegistry, digest_of
from tests.registry import servers
from tests.registry.authorities import Authority
from tests.registry.memory import Known, simulate
from tests.registry.servers import network
from tests.registry.test_sites import DATA, ask, hosts_toml, mirrors, reads, serving, upstream

pytestmark = pytest.mark.usefixtures("nobody_knocks")


def test_the_error_of_a_pull_tells_what_each_server_said(tmp_path: Path) -> None:
    with LoopbackRegistry(tls=Authority().server()) as mirror, LoopbackRegistry() as own:
        ref = upstream()
        path = tmp_path / ref.host / "hosts.toml"
        mirrors(tmp_path, ref, [mirror], own=own.url)

        async def told(registry: Registry, ref: Reference) -> None:
            advice = f"name the authority's file as `ca` in {path}"
            with pytest.raises(BlobMissing, match=r"HTTP 404.* \(asked as well: https://.*" + re.escape(advice)):
                await registry.manifest(ref)
            own.script("", "503*99")
            with pytest.raises(RegistryUnreachable, match=r"HTTP 503 \(asked as well: https://.*" + re.escape(advice)):
                await registry.manifest(ref)
            with pytest.raises(RegistryUnreachable, match=r"HTTP 503 \(asked as well: https://.*" + re.escape(advice)):
                await reads(registry, ref)

        ask(tmp_path, told, ref)


def test_a_read_keeps_the_reason_of_a_file_that_is_wrong(tmp_path: Path) -> None:
    ref = upstream()
    hosts_toml(tmp_path, ref, "ca = 3\n")

    async def reason(registry: Registry, ref: Reference) -> None:
        with pytest.raises(RegistryUnreachable) as caught:
            await reads(registry, ref)
        assert caught.value.reason is Reason.HOSTS

    ask(tmp_path, reason, ref)


def test_pushes_go_to_the_registry_itself_and_not_to_its_mirrors(tmp_path: Path) -> None:
    with LoopbackRegistry() as mirror, LoopbackRegistry() as own:
        ref = upstream()
        mirrors(tmp_path, ref, [mirror], own=own.url)

        async def push(registry: Registry, ref: Reference) -> None:
            await registry.push_blob(ref, digest_of(DATA), len(DATA), _data)
            await registry.push_manifest(ref, b"{}", "application/vnd.oci.image.manifest.v1+json")

        ask(tmp_path, push, ref)
        assert mirror.requests == []
        assert own.blobs[digest_of(DATA)] == DATA


@pytest.mark.parametrize("encrypted", [True, False])
def test_http_with_certificates_tries_https_first_for_reads_and_pushes(tmp_path: Path, encrypted: bool) -> None:
    site = Authority()
    with serving(LoopbackRegistry(tls=site.server() if encrypted else None)) as server:
        ref = upstream()
        directory = hosts_toml(tmp_path, ref, f'server = "http://{server.host}"\nca = "site.crt"\n').parent
        site.write_ca(directory / "site.crt")

        async def both(registry: Registry, ref: Reference) -> None:
            found = await registry.manifest(ref)
            await reads(registry, ref)
            await registry.push_manifest(ref, found.raw, found.media_type)
            # http is tried as a server of its own; the host is well if it answers either way.
            assert registry.sick() == {server.host: False}

        ask(tmp_path, both, ref)
        assert {record.status for record in server.requests} == {200, 201, 206}


def test_an_authority_that_vanishes_after_it_was_read_is_an_error_that_names_it(tmp_path: Path) -> None:
    site = Authority()
    with serving(LoopbackRegistry(tls=site.server())) as server:
        ref = upstream()
        directory = hosts_toml(tmp_path, ref, f'server = "{server.url}"\nca = "site.crt"\n').parent
        ca = site.write_ca(directory / "site.crt")

        async def gone(registry: Registry, ref: Reference) -> None:
            registry.endpoints(ref)
            ca.unlink()
            for operation in (reads(registry, ref), registry.manifest(ref)):
                with pytest.raises(RegistryUntrusted, match=re.escape(str(ca))):
                    await operation

        ask(tmp_path, gone, ref)


def test_a_body_goes_on_when_its_connections_make_room_for_those_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "_CLIENTS_KEPT", 1)
    site = Authority()
    size = 8 << 20  # more than lies in the buffers of a connection
    data = bytes(size)
    with LoopbackRegistry(tls=site.server()) as one, LoopbackRegistry(tls=site.server()) as other:
        for server in (one, other):
            server.add_blob(data)
            ref = parse_reference(server.reference())
            directory = hosts_toml(tmp_path, ref, f'server = "{server.url}"\nca = "site.crt"\n').parent
            site.write_ca(directory / "site.crt")

        async def through(registry: Registry, ref: Reference) -> None:
            blob = registry.blob(ref, digest_of(data), size)
            neighbour = registry.blob(parse_reference(other.reference()), digest_of(data), size)
            async with blob.open_range(0, size) as pieces:
                found = len(await anext(pieces))
                await neighbour.read_range(0, 10)
                found += sum([len(piece) async for piece in pieces])
            assert found == size

        ask(tmp_path, through, parse_reference(one.reference()))
        assert len(one.requests) == 2


def test_requests_at_once_make_the_connections_of_a_site_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = Authority()
    made: list[object] = []
    real = wire.Wire._new_client

    def counted(self: wire.Wire, context: ssl.SSLContext | None) -> httpx.AsyncClient:
        made.append(context)
        return real(self, context)

    monkeypatch.setattr(wire.Wire, "_new_client", counted)
    with serving(LoopbackRegistry(tls=site.server())) as server:
        ref = parse_reference(server.reference())
        directory = hosts_toml(tmp_path, ref, f'server = "{server.url}"\nca = "site.crt"\n').parent
        site.write_ca(directory / "site.crt")

        async def crowd(registry: Registry, ref: Reference) -> None:
            async with trio.open_nursery() as nursery:
                for _ in range(10):
                    nursery.start_soon(reads, registry, ref)

        ask(tmp_path, crowd, ref)
        assert len(made) == 2  # and the usual one


def test_a_knock_ahead_does_not_take_the_turn_of_a_server_that_may_be_back() -> None:
    class Two:
        def endpoints(self, host: str) -> Sequence[Endpoint]:
            return [Endpoint("https://m.test", host, namespace=host), Endpoint("https://r.test", host)]

    def serve(request: httpx.Request) -> httpx.Response:
        return servers.serve(request) if "range" in request.headers else httpx.Response(200)

    answers = iter([httpx.Response(503)])
    net = network({"https://m.test": lambda request: next(answers, None) or serve(request), "https://r.test": serve})

    async def turns() -> None:
        async with Registry(RegistryConfig(), hosts=Two(), credentials=Known(None), transport=net) as registry:
            found = servers.blob(registry)
            await found.read_range(0, 10)
            await found.read_range(0, 10)
            await trio.sleep(health.FIRST_S)
            net.requests.clear()
            await registry.open_connections(parse_reference("r.test/a/b"), 1)
            await found.read_range(0, 10)

    simulate(turns)
    assert [request.url.host for request in net.requests] == ["m.test", "m.test"]


def test_who_asks_for_the_health_of_servers_may_be_on_another_thread(tmp_path: Path) -> None:
    with serving(LoopbackRegistry()) as own:
        ref = upstream()
        mirrors(tmp_path, ref, [], own=own.url)

        async def elsewhere(registry: Registry, ref: Reference) -> None:
            await reads(registry, ref)
            assert await trio.to_thread.run_sync(registry.sick) == {own.host: False}

        ask(tmp_path, elsewhere, ref)


def test_a_mirror_that_has_not_one_blob_is_asked_after_the_others_for_that_one_only(tmp_path: Path) -> None:
    with serving(LoopbackRegistry()) as one, serving(LoopbackRegistry()) as own:
        ref = upstream()
        one.script(digest_of(DATA), "404 ok*")
        mirrors(tmp_path, ref, [one], own=own.url)

        async def others(registry: Registry, ref: Reference) -> None:
            await reads(registry, ref)
            await registry.manifest(ref)

        ask(tmp_path, others, ref)
        assert [record.status for record in one.requests] == [404, 200]
        assert [record.status for record in own.requests] == [206, 206]


def test_no_text_of_a_mirror_with_a_secret_is_in_an_error(tmp_path: Path) -> None:
    with LoopbackRegistry() as one, LoopbackRegistry() as own:
        ref = upstream()
        text = f'server = "{own.url}"\n[host."{one.url}"]\nheader = {{ x-key = "s3cr3t" }}\n'
        hosts_toml(tmp_path, ref, text)
        one.script("", "redirect:nowhere*9")
        one.redirects["nowhere"] = "http://127.0.0.1:1"

        async def said(registry: Registry, ref: Reference) -> None:
            with pytest.raises(RegistryError) as caught:
                await reads(registry, ref)
            assert "asked as well" in str(caught.value)
            assert "s3cr3t" not in str(caught.value)

        async def main() -> None:
            config = replace(RegistryConfig(), config_path=(tmp_path,), retries=1)
            async with Registry(config, credentials=Known(None)) as registry:
                await said(registry, ref)

        trio.run(main)
        assert {record.headers.get("x-key") for record in one.requests} == {"s3cr3t"}
        assert {record.headers.get("x-key") for record in own.requests} == {None}


async def _data() -> AsyncGenerator[bytes, None]:
    yield DATA
