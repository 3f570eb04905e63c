"""A real registry: Debian's docker-registry with a store of files."""

import hashlib
import json
import random
import subprocess
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import httpx
import pytest
import trio

from integration.harness.process import accepts, wait_for
from snapshotter.config import RegistryConfig
from snapshotter.errors import RegistryDenied
from snapshotter.registry.blob import Blob
from snapshotter.registry.client import Registry
from snapshotter.registry.credentials import DockerConfig
from snapshotter.registry.manifest import OCI_MANIFEST, ImageManifest, parse_manifest
from snapshotter.registry.reference import parse_reference
from tests.doubles.closed_port import ClosedPort
from tests.doubles.htpasswd import write_htpasswd
from tests.registry.memory import Known
from tests.registry.programs import Environ, asked, config, gives
from tests.registry.servers import tells_a_secret

CONFIG = """\
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage:
  filesystem: {{rootdirectory: {root}}}
  delete: {{enabled: true}}
http: {{addr: "127.0.0.1:{port}"}}
"""
AUTH = "auth: {{htpasswd: {{realm: loopback, path: {path}}}}}\n"
STARTS_WITHIN_S = 60.0


@contextmanager
def docker_registry(folder: Path, *, htpasswd: Path | None = None) -> Iterator[str]:
    """host:port of a registry that runs while the context is open; with `htpasswd` for those whom this file knows."""
    # Held beside it: nobody else gets the port before the start.
    with ClosedPort() as held:
        config = folder / "config.yml"
        auth = AUTH.format(path=htpasswd) if htpasswd is not None else ""
        config.write_text(CONFIG.format(root=folder / "store", port=held.port) + auth)
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(["docker-registry", "serve", str(config)], stdout=log, stderr=log)
        try:
            address = "127.0.0.1", held.port
            wait_for(lambda: process.poll() is not None or accepts(address), "the registry's start", STARTS_WITHIN_S)
            assert process.poll() is None, (folder / "log").read_text()
            yield f"127.0.0.1:{held.port}"
        finally:
            process.terminate()
            process.wait(60)


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def test_what_is_pushed_to_a_real_registry_is_pulled_back_in_ranges(tmp_path: Path) -> None:
    layer = random.Random(7).randbytes(3 << 20)
    config = b"{}"
    (tmp_path / "layer").write_bytes(layer)
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest_of(config), "size": 2},
        "layers": [
            {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest_of(layer), "size": len(layer)}
        ],
    }
    raw = json.dumps(document).encode()
    (tmp_path / "config").write_bytes(config)

    async def main(host: str) -> None:
        async with Registry(RegistryConfig(), credentials=Known(None)) as registry:
            ref = parse_reference(f"{host}/team/image:v1")
            assert await registry.push_blob(ref, digest_of(layer), len(layer), tmp_path / "layer")
            assert await registry.push_blob(ref, digest_of(config), 2, tmp_path / "config")
            assert not await registry.push_blob(ref, digest_of(layer), len(layer), tmp_path / "layer")
            other = parse_reference(f"{host}/team/other:v1")
            assert await registry.mount_blob(other, digest_of(layer), "team/image")
            assert await registry.blob_exists(other, digest_of(layer))
            assert not await registry.mount_blob(other, digest_of(b"nowhere"), "team/image")
            assert await registry.push_manifest(ref, raw, OCI_MANIFEST) == digest_of(raw)

            found = await registry.manifest(ref)
            assert (found.raw, found.digest, found.media_type) == (raw, digest_of(raw), OCI_MANIFEST)
            assert await registry.manifest(ref, digest_of(raw)) == found
            image = parse_manifest(found.raw, found.media_type)
            assert isinstance(image, ImageManifest)
            blob = registry.blob(ref, image.layers[0].digest, image.layers[0].size)
            assert await blob.read_range(1_000_001, 77_777) == layer[1_000_001:1_077_778]
            assert await blob.read_range(len(layer) - 9, 9) == layer[-9:]
            assert await blob.read_whole(4 << 20) == layer

    with docker_registry(tmp_path) as host:
        trio.run(main, host)
        assert httpx.get(f"http://{host}/v2/_catalog").json() == {"repositories": ["team/image", "team/other"]}


def private(folder: Path, users: Mapping[str, str]) -> AbstractContextManager[str]:
    """A registry that lets these users in; the file of their passwords is `folder/htpasswd`."""
    write_htpasswd(folder / "htpasswd", users)
    return docker_registry(folder, htpasswd=folder / "htpasswd")


def private_blob(registry: Registry, host: str, data: bytes) -> Blob:
    return registry.blob(parse_reference(f"{host}/team/image:v1"), digest_of(data), len(data))


@pytest.mark.usefixtures("no_secret_told")
def test_a_password_that_changes_while_a_blob_is_read_is_taken_from_the_helper(
    tmp_path: Path, environ: Environ
) -> None:
    layer = random.Random(8).randbytes(1 << 20)
    gives(environ, "s3cr3t-first")
    parts = range(0, len(layer), 1 << 17)

    async def main(host: str) -> None:
        source = config(environ, credHelpers={host: "site"})
        async with Registry(RegistryConfig(), credentials=source) as registry:
            ref = parse_reference(f"{host}/team/image:v1")
            assert await registry.push_blob(ref, digest_of(layer), len(layer), lambda: once(layer))
            blob = private_blob(registry, host, layer)
            for number, start in enumerate(parts):
                if number == 3:
                    write_htpasswd(tmp_path / "htpasswd", {"me": "s3cr3t-second"})
                    gives(environ, "s3cr3t-second")
                assert await blob.read_range(start, 1 << 17) == layer[start : start + (1 << 17)]
            assert source.problems() == {}

    with private(tmp_path, {"me": "s3cr3t-first"}) as host:
        trio.run(main, host)
        assert asked(environ) == [f"get {host}"] * 2


@pytest.mark.usefixtures("no_secret_told")
def test_a_password_that_changes_in_the_file_is_taken_from_there(tmp_path: Path, environ: Environ) -> None:
    data = b"of the registry"

    async def main(host: str) -> None:
        source = config(environ, auths={host: {"username": "me", "password": "s3cr3t-1"}})
        async with Registry(RegistryConfig(), credentials=source) as registry:
            ref = parse_reference(f"{host}/team/image:v1")
            await registry.push_blob(ref, digest_of(data), len(data), lambda: once(data))
            blob = private_blob(registry, host, data)
            assert await blob.read_range(0, 5) == data[:5]
            write_htpasswd(tmp_path / "htpasswd", {"me": "s3cr3t-2"})
            with pytest.raises(RegistryDenied, match="log in again") as caught:
                await blob.read_range(5, 5)
            assert tells_a_secret(str(caught.value)) == []
            config(environ, auths={host: {"username": "me", "password": "s3cr3t-2"}})
            assert await blob.read_range(5, 5) == data[5:10]

    with private(tmp_path, {"me": "s3cr3t-1"}) as host:
        trio.run(main, host)


@pytest.mark.usefixtures("no_secret_told")
def test_a_private_registry_says_what_is_missing(tmp_path: Path, environ: Environ) -> None:
    async def denied(host: str, source: DockerConfig, match: str) -> None:
        async with Registry(RegistryConfig(), credentials=source) as registry:
            with pytest.raises(RegistryDenied, match=match) as caught:
                await registry.manifest(parse_reference(f"{host}/team/image:v1"))
            assert tells_a_secret(str(caught.value)) == []

    with private(tmp_path, {"me": "s3cr3t-1"}) as host:
        trio.run(denied, host, config(environ), r"config.json has none for it\): run `docker login`")
        wrong = config(environ, auths={host: {"username": "me", "password": "s3cr3t-2"}})
        trio.run(denied, host, wrong, "HTTP 401 .*: the credentials were refused; log in again")
        missing = config(environ, credHelpers={host: "site"})
        trio.run(denied, host, missing, "docker-credential-site's to give, which is not on the PATH")


async def once(data: bytes) -> AsyncGenerator[bytes, None]:
    yield data
