"""Registries as sites have them: TLS of their own, and mirrors, over real connections to this machine."""

import re
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from snapshotter.config import RegistryConfig
from snapshotter.errors import BlobMissing, HostsError, RegistryDenied, RegistryUnreachable, RegistryUntrusted
from snapshotter.registry import certs_d, health
from snapshotter.registry.client import Registry
from snapshotter.registry.credential import Credential
from snapshotter.registry.reference import Reference, parse_reference
from tests.doubles.registry import LoopbackRegistry, digest_of
from tests.doubles.token_server import TokenServer
from tests.registry.authorities import Authority
from tests.registry.memory import ByName, Known

DATA = b"0123456789" * 1000
MANIFEST = {
    "schemaVersion": 2,
    "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest_of(b"{}"), "size": 2},
    "layers": [],
}
Work = Callable[[Registry, Reference], Awaitable[None]]

pytestmark = pytest.mark.usefixtures("nobody_knocks")


def ask(root: Path, work: Work, ref: Reference, *, credential: Credential | None = None, retries: int = 1) -> None:
    """Do `work` with a registry client that looks for hosts.toml below `root`."""

    async def main() -> None:
        config = replace(RegistryConfig(), config_path=(root,), retries=retries, connect_timeout_s=20.0)
        async with Registry(config, credentials=Known(credential)) as registry:
            await work(registry, ref)

    trio.run(main)


async def reads(registry: Registry, ref: Reference) -> None:
    """The blob, in two ranges."""
    blob = registry.blob(ref, digest_of(DATA), len(DATA))
    assert await blob.read_range(0, 10) + await blob.read_range(10, len(DATA) - 10) == DATA


def hosts_toml(root: Path, ref: Reference, text: str) -> Path:
    path = root / ref.host / "hosts.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def serving(server: LoopbackRegistry) -> LoopbackRegistry:
    """With the blob and a manifest."""
    server.add_blob(DATA)
    server.add_manifest(MANIFEST)
    return server


def upstream(name: str = "registry.test") -> Reference:
    return parse_reference(f"{name}/library/image:latest")


# TLS


@pytest.mark.parametrize(
    "line",
    [
        'client = "both.pem"',
        'client = ["both.pem"]',
        'client = [["me.cert", "me.key"]]',
        'client = [["both.pem", ""]]',
    ],
)
def test_an_authority_and_a_client_certificate_of_the_site(tmp_path: Path, line: str) -> None:
    site, people = Authority(), Authority()
    with serving(LoopbackRegistry(tls=site.server(clients_of=people))) as server:
        ref = parse_reference(server.reference())
        directory = hosts_toml(tmp_path, ref, f'server = "{server.url}"\nca = "site.crt"\n{line}\n').parent
        site.write_ca(directory / "site.crt")
        people.write_both(directory / "both.pem")
        people.write_client(directory / "me.cert", directory / "me.key")
        ask(tmp_path, reads, ref)
        assert {record.status for record in server.requests} == {206}


def test_the_files_of_docker_do_the_same(tmp_path: Path) -> None:
    site, people = Authority(), Authority()
    with serving(LoopbackRegistry(tls=site.server("localhost", clients_of=people))) as server:
        # localhost with a port is http for containerd: the certificates say otherwise, so https is tried first.
        ref = parse_reference(f"localhost:{server.port}/library/image:latest")
        directory = tmp_path / ref.host
        directory.mkdir()
        site.write_ca(directory / "site.crt")
        people.write_client(directory / "me.cert", directory / "me.key")
        ask(tmp_path, reads, ref)


@pytest.mark.parametrize(
    ("name", "expired", "with_ca", "words"),
    [
        ("127.0.0.1", False, False, r"its authority is not known .* name the authority's file as `ca`"),
        ("other.test", False, True, "it is for another name"),
        ("127.0.0.1", True, True, "it has expired"),
    ],
)
def test_a_server_that_cannot_be_trusted_is_asked_nothing_and_says_why(
    tmp_path: Path, name: str, expired: bool, with_ca: bool, words: str
) -> None:
    site = Authority()
    with serving(LoopbackRegistry(tls=site.server(name, expired=expired))) as server:
        ref = parse_reference(server.reference())
        ca = 'ca = "site.crt"\n' if with_ca else ""
        directory = hosts_toml(tmp_path, ref, f'server = "{server.url}"\n{ca}').parent
        site.write_ca(directory / "site.crt")

        async def refused(registry: Registry, ref: Reference) -> None:
            with pytest.raises(RegistryUntrusted, match=words):
                await reads(registry, ref)

        ask(tmp_path, refused, ref)
        assert server.requests == []


def test_skip_verify_asks_it_all_the_same(tmp_path: Path) -> None:
    with serving(LoopbackRegistry(tls=Authority().server("other.test", expired=True))) as server:
        ref = parse_reference(server.reference())
        hosts_toml(tmp_path, ref, f'server = "{server.url}"\nskip_verify = true\n')
        ask(tmp_path, reads, ref)


def test_without_the_client_certificate_the_error_says_what_is_missing(tmp_path: Path) -> None:
    site = Authority()
    with serving(LoopbackRegistry(tls=site.server(clients_of=Authority()))) as server:
        ref = parse_reference(server.reference())
        directory = hosts_toml(tmp_path, ref, f'server = "{server.url}"\nca = "site.crt"\n').parent
        site.write_ca(directory / "site.crt")

        async def refused(registry: Registry, ref: Reference) -> None:
            with pytest.raises(RegistryUntrusted, match="name one that it knows as `client`"):
                await reads(registry, ref)

        ask(tmp_path, refused, ref)


def test_a_token_server_and_a_store_behind_the_same_authority_see_no_client_certificate(tmp_path: Path) -> None:
    site, people = Authority(), Authority()
    with ExitStack() as stack:
        # They would be served without one, and fail the handshake with one that they do not know.
        tokens = stack.enter_context(TokenServer(users={"me": "pw"}, tls=site.server("localhost")))
        store = stack.enter_context(serving(LoopbackRegistry(tls=site.server("localhost"))))
        server = stack.enter_context(serving(LoopbackRegistry(tls=site.server(clients_of=people))))
        server.tokens = tokens
        server.challenge = tokens.challenge().replace("127.0.0.1", "localhost")
        server.script(digest_of(DATA), "redirect:store*9", method="GET")
        server.redirects["store"] = f"https://localhost:{store.port}"
        ref = parse_reference(server.reference())
        directory = hosts_toml(
            tmp_path,
            ref,
            f'server = "{server.url}"\nca = "site.crt"\nclient = "both.pem"\nheader = {{ x-key = "k" }}\n',
        ).parent
        site.write_ca(directory / "site.crt")
        people.write_both(directory / "both.pem")

        async def through(registry: Registry, ref: Reference) -> None:
            await registry.manifest(ref)
            await reads(registry, ref)

        ask(tmp_path, through, ref, credential=Credential("me", "pw"))
        assert {record.headers.get("x-key") for record in server.requests} == {"k"}
        for other in (*tokens.requests, *store.requests):
            assert "x-key" not in other.headers
        assert all("authorization" not in record.headers for record in store.requests)


def test_a_renewed_authority_counts_without_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certs_d, "CHECK_EVERY_S", 0.0)
    old, new = Authority(), Authority()
    with serving(LoopbackRegistry(tls=new.server())) as server:
        ref = parse_reference(server.reference())
        directory = hosts_toml(tmp_path, ref, f'server = "{server.url}"\nca = "site.crt"\n').parent
        old.write_ca(directory / "site.crt")

        async def renewed(registry: Registry, ref: Reference) -> None:
            blob = registry.blob(ref, digest_of(DATA), len(DATA))
            with pytest.raises(RegistryUntrusted):
                await blob.read_range(0, 10)
            new.write_ca(directory / "new.crt").rename(directory / "site.crt")
            assert await blob.read_range(0, 10) == DATA[:10]

        ask(tmp_path, renewed, ref)


# Mirrors


def mirrors(root: Path, ref: Reference, servers: Sequence[LoopbackRegistry], *, own: str) -> None:
    """A hosts.toml that names the servers in order, and `own` as the registry itself."""
    tables = "".join(f'[host."{server.url}"]\n' for server in servers)
    hosts_toml(root, ref, f'server = "{own}"\n{tables}')


def test_mirrors_are_asked_in_order_and_told_whom_they_stand_for(tmp_path: Path) -> None:
    with LoopbackRegistry() as empty, serving(LoopbackRegistry()) as full, serving(LoopbackRegistry()) as own:
        ref = upstream()
        mirrors(tmp_path, ref, [empty, full], own=own.url)
        ask(tmp_path, reads, ref)
        assert [(record.status, record.query) for record in empty.requests] == [(404, "ns=registry.test")]
        assert [(record.status, record.query) for record in full.requests] == [(206, "ns=registry.test")] * 2
        assert own.requests == []


def test_a_mirror_that_is_away_costs_one_attempt_and_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "FIRST_S", 3600.0)
    with serving(LoopbackRegistry()) as sick, serving(LoopbackRegistry()) as own:
        ref = upstream()
        sick.script(digest_of(DATA), "503*9")
        mirrors(tmp_path, ref, [sick], own=own.url)

        async def goes_on(registry: Registry, ref: Reference) -> None:
            blob = registry.blob(ref, digest_of(DATA), len(DATA))
            for at in range(5):
                assert await blob.read_range(at, 10) == DATA[at : at + 10]
            assert registry.sick() == {sick.host: True, own.host: False}
            assert blob.serving == own.host

        ask(tmp_path, goes_on, ref, retries=4)
        assert len(sick.requests) == 1


def test_a_mirror_that_is_back_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "FIRST_S", 0.05)
    with serving(LoopbackRegistry()) as sick, serving(LoopbackRegistry()) as own:
        ref = upstream()
        sick.script(digest_of(DATA), "503*2 ok*9")
        mirrors(tmp_path, ref, [sick], own=own.url)

        async def comes_back(registry: Registry, ref: Reference) -> None:
            blob = registry.blob(ref, digest_of(DATA), len(DATA))
            with trio.fail_after(20):
                while not registry.sick() or blob.serving != sick.host:
                    assert await blob.read_range(0, 10) == DATA[:10]
                    await trio.sleep(0.01)
            assert registry.sick()[sick.host] is False

        ask(tmp_path, comes_back, ref)


def test_where_all_are_away_all_are_asked_until_the_tries_are_used_up(tmp_path: Path) -> None:
    with serving(LoopbackRegistry()) as one, serving(LoopbackRegistry()) as own:
        ref = upstream()
        for server in (one, own):
            server.script(digest_of(DATA), "503*99")
        mirrors(tmp_path, ref, [one], own=own.url)

        async def fails(registry: Registry, ref: Reference) -> None:
            with pytest.raises(RegistryUnreachable):
                await reads(registry, ref)

        ask(tmp_path, fails, ref, retries=2)
        assert (len(one.requests), len(own.requests)) == (3, 3)


def test_a_body_that_breaks_off_at_a_mirror_is_resumed_where_it_broke(tmp_path: Path) -> None:
    with serving(LoopbackRegistry()) as one, serving(LoopbackRegistry()) as own:
        ref = upstream()
        one.script(digest_of(DATA), "cut@4000 503*9")
        mirrors(tmp_path, ref, [one], own=own.url)

        async def whole(registry: Registry, ref: Reference) -> None:
            assert await registry.blob(ref, digest_of(DATA), len(DATA)).read_range(0, len(DATA)) == DATA

        ask(tmp_path, whole, ref)
        assert [record.range for record in own.requests] == [(4000, len(DATA) - 1)]


def test_wrong_bytes_of_a_mirror_are_fetched_again_from_another(tmp_path: Path) -> None:
    with serving(LoopbackRegistry()) as liar, serving(LoopbackRegistry()) as own:
        ref = upstream()
        liar.script(digest_of(DATA), "corrupt*99")
        mirrors(tmp_path, ref, [liar], own=own.url)

        async def whole(registry: Registry, ref: Reference) -> None:
            assert await registry.blob(ref, digest_of(DATA), len(DATA)).read_whole(len(DATA)) == DATA

        ask(tmp_path, whole, ref)
        assert len(liar.requests) == 1


def test_a_tag_is_asked_only_where_resolve_is_and_a_blob_only_where_pull_is(tmp_path: Path) -> None:
    with serving(LoopbackRegistry()) as cache, serving(LoopbackRegistry()) as own:
        ref = upstream()
        text = f'server = "{own.url}"\ncapabilities = ["resolve"]\n[host."{cache.url}"]\ncapabilities = ["pull"]\n'
        hosts_toml(tmp_path, ref, text)

        async def both(registry: Registry, ref: Reference) -> None:
            found = await registry.manifest(ref)
            await registry.manifest(ref, found.digest)
            await reads(registry, ref)
            with pytest.raises(HostsError, match="gives no server the capability push"):
                await registry.push_manifest(ref, found.raw, found.media_type)

        ask(tmp_path, both, ref)
        assert [record.path.rpartition("/")[2] for record in own.requests] == ["latest"]
        assert all("sha256:" in record.path for record in cache.requests)


def test_what_no_server_has_is_missing_and_a_refusal_says_more_than_that(tmp_path: Path) -> None:
    with LoopbackRegistry() as one, LoopbackRegistry() as own:
        ref = upstream()
        mirrors(tmp_path, ref, [one], own=own.url)

        async def missing(registry: Registry, ref: Reference) -> None:
            with pytest.raises(BlobMissing):
                await reads(registry, ref)
            with pytest.raises(BlobMissing):
                await registry.manifest(ref)
            own.users = {"me": "pw"}
            with pytest.raises(RegistryDenied):
                await reads(registry, ref)

        ask(tmp_path, missing, ref)


def test_each_server_is_shown_the_credentials_under_its_own_name_only(tmp_path: Path) -> None:
    known = {"registry.test": Credential("me", "of the registry")}

    with serving(LoopbackRegistry()) as one, serving(LoopbackRegistry()) as own:
        one.users = {"me": "of the registry"}
        own.users = {"me": "of its own"}
        known[own.host] = Credential("me", "of its own")
        ref = upstream()
        mirrors(tmp_path, ref, [one], own=own.url)

        async def main() -> None:
            async with Registry(
                replace(RegistryConfig(), config_path=(tmp_path,)), credentials=ByName(known)
            ) as registry:
                await reads(registry, ref)

        trio.run(main)
        assert all("authorization" not in record.headers for record in one.requests)
        assert any("authorization" in record.headers for record in own.requests)


def test_a_changed_file_counts_for_a_blob_that_is_read_already(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certs_d, "CHECK_EVERY_S", 0.0)
    with serving(LoopbackRegistry()) as one, serving(LoopbackRegistry()) as other:
        ref = upstream()
        path = hosts_toml(tmp_path, ref, f'server = "{one.url}"\n')

        async def moved(registry: Registry, ref: Reference) -> None:
            blob = registry.blob(ref, digest_of(DATA), len(DATA))
            await blob.read_range(0, 10)
            path.write_text(f'# moved\nserver = "{other.url}"\n')
            await blob.read_range(0, 10)
            path.write_text("broken = [\n")
            await blob.read_range(0, 10)

        ask(tmp_path, moved, ref)
        assert (len(one.requests), len(other.requests)) == (1, 2)


def test_a_file_that_was_never_right_fails_a_pull_and_has_a_read_try_again(tmp_path: Path) -> None:
    ref = upstream()
    path = hosts_toml(tmp_path, ref, 'server = "https://r.test"\nca = 3\n')

    async def both(registry: Registry, ref: Reference) -> None:
        with pytest.raises(HostsError, match=re.escape(f"{path}:2: ca must be")):
            await registry.manifest(ref)
        with pytest.raises(RegistryUnreachable, match=re.escape(f"{path}:2: ca must be")):
            await reads(registry, ref)

    ask(tmp_path, both, ref)


def test_the_time_for_a_connection_is_that_of_the_host(tmp_path: Path) -> None:
    with serving(LoopbackRegistry()) as server:
        ref = parse_reference(server.reference())
        hosts_toml(tmp_path, ref, f'server = "{server.url}"\ndial_timeout = "15500ms"\n')

        async def seen(registry: Registry, ref: Reference) -> None:
            (endpoint,) = registry.endpoints(ref)
            assert endpoint.connect_timeout_s == 15.5
            await reads(registry, ref)

        ask(tmp_path, seen, ref)
