"""Small images for the tests of converting: laid out in a directory or in the loopback registry."""

import gzip
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.doubles.registry import LoopbackRegistry

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"
NAME = "org.opencontainers.image.ref.name"


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class Image:
    """An image of these plain tars, lowest first; `blobs` has everything that it consists of."""

    def __init__(
        self,
        *tars: bytes,
        docker: bool = False,
        architecture: str = "amd64",
        annotations: Mapping[str, str] | None = None,
    ) -> None:
        self.blobs: dict[str, bytes] = {}
        config = {
            "architecture": architecture,
            "os": "linux",
            "config": {"Cmd": ["/bin/sh"], "Labels": {"of": "ours"}},
            "rootfs": {"type": "layers", "diff_ids": [sha256(one) for one in tars]},
            "history": [{"created_by": f"step {n}"} for n in range(len(tars))],
        }
        layer_type = DOCKER_LAYER if docker else OCI_LAYER
        self.media_type = DOCKER_MANIFEST if docker else OCI_MANIFEST
        self.document: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": self.media_type,
            "config": self.add(json.dumps(config).encode(), DOCKER_CONFIG if docker else OCI_CONFIG),
            "layers": [self.add(gzip.compress(one, mtime=0), layer_type) for one in tars],
        }
        if annotations:
            self.document["annotations"] = dict(annotations)

    def add(self, data: bytes, media_type: str) -> dict[str, Any]:
        self.blobs[sha256(data)] = data
        return {"mediaType": media_type, "digest": sha256(data), "size": len(data)}

    def manifest(self) -> dict[str, Any]:
        """The descriptor of the manifest as it is now."""
        return self.add(json.dumps(self.document).encode(), self.media_type)

    def lay_out(self, path: Path, tag: str | None = "v1") -> str:
        """Write the image as the only one of a layout; what the command line calls it."""
        write_layout(path, [self.manifest()], self.blobs, tag)
        return f"oci:{path}" + (f":{tag}" if tag else "")

    def push(self, registry: LoopbackRegistry, tag: str = "v1") -> str:
        """Put the image into the registry; what the command line calls it."""
        descriptor = self.manifest()
        for data in self.blobs.values():
            registry.add_blob(data)
        registry.add_manifest(self.blobs[descriptor["digest"]], tag=tag, media_type=self.media_type)
        return registry.reference(f":{tag}")


def write_layout(path: Path, entries: Sequence[dict[str, Any]], blobs: Mapping[str, bytes], tag: str | None) -> None:
    folder = path / "blobs" / "sha256"
    folder.mkdir(parents=True, exist_ok=True)
    for digest, data in blobs.items():
        (folder / digest.removeprefix("sha256:")).write_bytes(data)
    named = [{**entry, "annotations": {NAME: tag}} if tag else entry for entry in entries]
    (path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": named}))
    (path / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')


class Layout:
    """A layout as a reader sees it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def blob(self, digest: str) -> bytes:
        data = (self.path / "blobs" / "sha256" / digest.removeprefix("sha256:")).read_bytes()
        assert sha256(data) == digest
        return data

    def names(self) -> list[str | None]:
        index = json.loads((self.path / "index.json").read_text())
        return [entry.get("annotations", {}).get(NAME) for entry in index["manifests"]]

    def top(self, name: str | None = "new") -> dict[str, Any]:
        """The document that the layout has under a name."""
        index = json.loads((self.path / "index.json").read_text())
        (entry,) = [one for one in index["manifests"] if one.get("annotations", {}).get(NAME) == name]
        return dict(json.loads(self.blob(entry["digest"])))

    def image(self, name: str | None = "new") -> dict[str, Any]:
        """The first image that the layout has under a name."""
        top = self.top(name)
        return dict(json.loads(self.blob(top["manifests"][0]["digest"]))) if "manifests" in top else top

    def config(self, manifest: dict[str, Any]) -> dict[str, Any]:
        return dict(json.loads(self.blob(manifest["config"]["digest"])))
