"""A real registry: Debian's docker-registry with a store of files."""

import hashlib
import json
import random
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import trio

from snapshotter.config import RegistryConfig
from snapshotter.registry.client import Registry
from snapshotter.registry.manifest import OCI_MANIFEST, ImageManifest, parse_manifest
from snapshotter.registry.reference import parse_reference
from tests.registry.memory import Known

CONFIG = """\
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage:
  filesystem: {{rootdirectory: {root}}}
  delete: {{enabled: true}}
http: {{addr: "127.0.0.1:{port}"}}
"""
STARTS_WITHIN_S = 30.0


@contextmanager
def docker_registry(folder: Path) -> Iterator[str]:
    """host:port of a registry that runs while the context is open."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = folder / "config.yml"
    config.write_text(CONFIG.format(root=folder / "store", port=port))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(["docker-registry", "serve", str(config)], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + STARTS_WITHIN_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert process.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.02)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


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
            assert not await registry.push_blob(
                other, digest_of(layer), len(layer), tmp_path / "layer", mount_from="team/image"
            )
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
