"""Images at a scripted registry, looked at as the doctor does."""

import base64
import json
import os
import ssl
import time
from collections.abc import Iterator
from dataclasses import replace
from email.utils import formatdate
from urllib.parse import SplitResult

import pytest
import trustme

from snapshotter.api import control_pb2 as pb
from snapshotter.config import LazyConfig, RegistryConfig
from snapshotter.doctor.examination import Once, examine
from snapshotter.doctor.findings import Finding, Group, Verdict
from snapshotter.doctor.registry import Images
from snapshotter.registry.hosts import Endpoint
from tests.doctor.world import World
from tests.doubles.closed_port import ClosedPort
from tests.doubles.layers import BuiltLayer, file, layer
from tests.doubles.registry import LoopbackRegistry, digest_of
from tests.doubles.server import Handler, Recorded

CONFIG = {"mediaType": "application/vnd.oci.image.config.v1+json", "size": 2}
LAZY = layer(file("a", os.urandom(60_000)))
PLAIN = b"\x1f\x8b" + bytes(5000)


class Registry(LoopbackRegistry):
    """A registry with a clock of its own."""

    clock_s = 0.0

    def answer(self, handler: Handler, record: Recorded, url: SplitResult) -> None:
        now = time.time() + self.clock_s
        handler.date_time_string = lambda timestamp=None: formatdate(now, usegmt=True)  # type: ignore[method-assign]
        super().answer(handler, record, url)


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", "/nowhere")
    with Registry() as running:
        yield running


def push(registry: LoopbackRegistry, *layers: BuiltLayer | bytes) -> str:
    """Put an image there and return its reference."""
    entries = []
    for one in layers:
        blob, annotations = (one, {}) if isinstance(one, bytes) else (one.blob, one.annotations)
        media_type = "application/vnd.oci.image.layer.v1.tar+gzip"
        digest = registry.add_blob(blob)
        entries.append({"mediaType": media_type, "digest": digest, "size": len(blob), "annotations": annotations})
    config = {**CONFIG, "digest": registry.add_blob(b"{}")}
    registry.add_manifest({"schemaVersion": 2, "config": config, "layers": entries})
    return registry.reference()


def findings(world: World, *images: str) -> list[Finding]:
    subject = world.subject(images=images)
    looked = Images(subject, Once(world.voice.status))
    return list(examine([*looked.clock_checks(), *looked.checks()], subject.timeout_s))


def found(world: World, *images: str) -> dict[str, Finding]:
    return {one.name: one for one in findings(world, *images)}


def faults(seen: dict[str, Finding]) -> set[str]:
    return {name for name, one in seen.items() if one.verdict is Verdict.FAULT}


def test_a_lazy_image_at_a_good_registry_is_in_order(world: World, registry: Registry) -> None:
    seen = found(world, push(registry, LAZY))
    names = {"skew", "proxies", "hosts", "host", "credentials", "manifest", "lazy", "ranges", "speed"}
    assert {name: one.verdict for name, one in seen.items()} == dict.fromkeys(names, Verdict.OK)
    assert seen["host"].about == registry.reference()
    assert seen["lazy"].found == "1 of 1 layers: estargz"


def test_a_registry_that_is_down_is_one_fault(world: World) -> None:
    with ClosedPort() as closed:
        seen = found(world, f"127.0.0.1:{closed.port}/a/b:1")
    assert faults(seen) == {"host"}
    assert seen["host"].advice


def test_a_registry_that_hangs_ends_within_the_time_of_each_check(world: World, registry: Registry) -> None:
    image = push(registry, LAZY)
    registry.script("", "hang*")
    seen = found(world, image)
    assert faults(seen) == {"host"}
    assert seen["skew"].verdict is Verdict.NOTE


@pytest.mark.parametrize("silent", [0, 1])
def test_one_server_of_several_that_does_not_answer_is_a_warning(
    world: World, registry: Registry, silent: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    servers = [Endpoint(registry.url, registry.host)]
    monkeypatch.setattr("snapshotter.registry.client.Registry.endpoints", lambda _self, _reference: servers)
    with ClosedPort() as closed:
        servers.insert(silent, Endpoint(f"http://127.0.0.1:{closed.port}", registry.host))
        seen = [one for one in findings(world, push(registry, LAZY)) if one.name == "host"]
    assert [one.verdict for one in seen] == [Verdict.WARNING if number == silent else Verdict.OK for number in range(2)]


def certs_d(world: World, host: str, text: str) -> str:
    """Configure a directory with this hosts.toml for `host`; return its path."""
    path = world.write(f"certs.d/{host.replace(':', '_')}_/hosts.toml", text)
    world.config = replace(world.config, registry=RegistryConfig(config_path=(world.top / "certs.d",)))
    return str(path.parent)


def test_the_servers_that_a_hosts_toml_names_are_shown_in_their_order(world: World, registry: Registry) -> None:
    image = push(registry, LAZY)
    with ClosedPort() as closed:
        mirror = f"http://127.0.0.1:{closed.port}"
        directory = certs_d(world, registry.host, f'[host."{mirror}"]\ncapabilities = ["pull"]\n')
        seen = findings(world, image)
    (hosts,) = (one for one in seen if one.name == "hosts")
    assert hosts.found == f"{mirror} (not asked to resolve), then http://{registry.host}; {directory} says so"
    assert [one.verdict for one in seen if one.name == "host"] == [Verdict.WARNING, Verdict.OK]
    assert {one.name: one.verdict for one in seen}["ranges"] is Verdict.OK


def test_a_wrong_hosts_toml_is_one_fault_with_file_and_line(world: World, registry: Registry) -> None:
    image = push(registry, LAZY)
    directory = certs_d(world, registry.host, 'server = "http://x"\nskip_verify = "perhaps"\n')
    seen = found(world, image)
    assert faults(seen) == {"hosts"}
    assert f"{directory}/hosts.toml:2" in seen["hosts"].found


def test_a_certificate_is_trusted_by_the_authority_that_is_configured_and_no_other(world: World) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(str(world.top / "ca.crt"))
    with Registry(tls=context) as registry:
        image = push(registry, LAZY)
        server = f'server = "https://{registry.host}"\n'
        certs_d(world, registry.host, f'{server}ca = "{world.top}/ca.crt"\n')
        assert faults(found(world, image)) == set()
        trustme.CA().cert_pem.write_to_path(str(world.top / "ca.crt"))
        seen = found(world, image)
    assert faults(seen) == {"manifest"}
    assert "certificate" in seen["manifest"].found
    assert seen["host"].verdict is seen["skew"].verdict is Verdict.OK


def test_an_image_that_is_not_there_is_a_fault(world: World, registry: Registry) -> None:
    seen = found(world, registry.reference(":other"))
    assert faults(seen) == {"manifest"}
    assert seen["lazy"].verdict is seen["speed"].verdict is Verdict.SKIPPED


def test_refused_credentials_say_how_to_log_in_and_show_no_secret(
    world: World, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = push(registry, LAZY)
    registry.users = {"me": "right-password"}
    entry = {"auth": base64.b64encode(b"me:s3cr3t-password").decode()}
    path = world.write("docker/config.json", json.dumps({"auths": {registry.host: entry}}))
    world.config = replace(world.config, registry=RegistryConfig(docker_config=path))
    seen = found(world, image)
    assert faults(seen) == {"manifest"}
    assert "log in" in seen["manifest"].advice
    assert "me" in seen["credentials"].found
    assert "s3cr3t" not in str(seen)
    registry.users = {"me": "s3cr3t-password"}
    assert faults(found(world, image)) == set()


def test_a_broken_file_of_credentials_is_a_fault_and_none_of_it_is_shown(world: World, registry: Registry) -> None:
    path = world.write("docker/config.json", '{"auths": "s3cr3t"}')
    world.config = replace(world.config, registry=RegistryConfig(docker_config=path))
    seen = found(world, push(registry, LAZY))
    assert faults(seen) == {"credentials"}
    assert "s3cr3t" not in str(seen)


@pytest.mark.parametrize("answer", ["200-to-range*", "no-range*", "wrong-range*", "gzip*"])
def test_a_registry_without_ranges_is_a_fault(world: World, registry: Registry, answer: str) -> None:
    image = push(registry, LAZY)
    registry.script(str(LAZY.digest), answer)
    seen = found(world, image)
    assert faults(seen) == {"ranges"}
    assert "HTTP ranges" in seen["ranges"].advice


def test_blobs_that_are_not_served_are_a_fault_of_another_kind(world: World, registry: Registry) -> None:
    image = push(registry, LAZY)
    registry.script(str(LAZY.digest), "404*")
    seen = found(world, image)
    assert faults(seen) == {"ranges"}
    assert "HTTP ranges" not in seen["ranges"].advice


def test_a_layer_that_hangs_is_a_fault_and_the_others_are_told(world: World, registry: Registry) -> None:
    image = push(registry, LAZY, PLAIN)
    registry.script(digest_of(PLAIN), "hang*")
    seen = found(world, image)
    assert faults(seen) == {"ranges"}
    assert seen["ranges"].found.startswith("1 of 2 layers")
    assert "layer 1 (sha256:" in seen["lazy"].found


def test_where_ranges_are_redirected_to_is_told_without_the_signature(world: World, registry: Registry) -> None:
    image = push(registry, LAZY)
    with LoopbackRegistry() as store:
        store.add_blob(LAZY.blob)
        registry.redirects["store"] = store.url
        registry.script(str(LAZY.digest), "redirect:store*")
        seen = found(world, image)
        assert store.host in seen["ranges"].found
    assert "s3cr3t" not in str(seen)


def test_the_first_layer_that_cannot_be_lazy_is_a_warning_with_its_number(world: World, registry: Registry) -> None:
    seen = found(world, push(registry, LAZY, PLAIN, PLAIN + b"x"))
    assert seen["lazy"].verdict is Verdict.WARNING
    assert "2 of 3 layers" in seen["lazy"].found
    assert "layer 1 (sha256:" in seen["lazy"].found
    assert "image convert" in seen["lazy"].advice


def test_a_lazy_layer_that_nothing_vouches_for_is_not_lazy_unless_allowed(world: World, registry: Registry) -> None:
    image = push(registry, replace(LAZY, annotations={}))
    assert found(world, image)["lazy"].verdict is Verdict.WARNING
    world.config = replace(world.config, lazy=LazyConfig(allow_unverified=True))
    assert found(world, image)["lazy"].verdict is Verdict.OK


def test_an_image_that_the_configuration_denies_is_told(world: World, registry: Registry) -> None:
    image = push(registry, LAZY)
    world.config = replace(world.config, lazy=LazyConfig(deny=("*",)))
    answers = [one for one in findings(world, image) if one.name == "lazy"]
    assert [one.verdict for one in answers] == [Verdict.WARNING, Verdict.OK]
    assert "lazy.deny" in answers[0].found


def test_a_clock_that_differs_from_the_registrys_is_a_warning(world: World, registry: Registry) -> None:
    registry.clock_s = 600
    assert found(world, push(registry, LAZY))["skew"].verdict is Verdict.WARNING


def test_what_is_no_reference_is_a_fault_and_the_others_are_looked_at(world: World, registry: Registry) -> None:
    seen = found(world, "Not A Reference", push(registry, LAZY))
    assert faults(seen) == {"reference"}
    assert seen["reference"].about == "Not A Reference"
    assert seen["ranges"].verdict is Verdict.OK


def test_without_images_there_is_a_note(world: World) -> None:
    assert found(world)["images"].verdict is Verdict.NOTE


def test_images_of_the_daemon_are_taken_where_none_is_named(world: World, registry: Registry) -> None:
    world.voice.names = [push(registry, LAZY)]
    with world.listening():
        assert found(world)["ranges"].about == registry.reference()


def test_the_daemons_environment_decides_credentials_and_proxies(world: World, registry: Registry) -> None:
    world.process(7)
    world.write("proc/7/environ", f"HOME={world.top}\0HTTP_PROXY=http://u:s3cr3t@p.test:1\0")
    world.voice.answer = pb.StatusResponse(pid=7)
    with world.listening():
        seen = found(world, push(registry, LAZY))
    assert str(world.top / ".docker/config.json") in seen["credentials"].found
    assert seen["proxies"].verdict is Verdict.WARNING
    assert "http_proxy=http://p.test:1" in seen["proxies"].found
    assert "s3cr3t" not in str(seen)


def test_every_finding_of_an_image_is_in_the_group_of_registries(world: World, registry: Registry) -> None:
    groups = {one.name: one.group for one in findings(world, push(registry, LAZY))}
    assert groups.pop("skew") is Group.CLOCK
    assert set(groups.values()) == {Group.REGISTRY}
