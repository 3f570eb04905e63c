"""Images made from tar layers: packed once into a folder, pushed to a registry as often as needed."""

import gzip
import hashlib
import json
import os
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, cast

from integration.harness.registry import RegistryClient
from integration.images.once import one_builder

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
# What registries usually hold was compressed at gzip's default level; the whole pull must not carry more than there.
COMPRESSION = 6
Write = Callable[[tarfile.TarFile], None]


@dataclass(frozen=True, slots=True)
class Layer:
    """A packed layer: its blob lies beside the description. Sizes in bytes."""

    digest: str
    diff_id: str
    size: int
    unpacked: int
    media_type: str = LAYER_GZIP


class _Hashing:
    """A file that hashes and counts what is written to it."""

    def __init__(self, target: "IO[bytes] | gzip.GzipFile") -> None:
        self._target = target
        self._hash = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> int:
        self._hash.update(data)
        self.size += len(data)
        return self._target.write(data)

    def flush(self) -> None:
        self._target.flush()

    @property
    def digest(self) -> str:
        return "sha256:" + self._hash.hexdigest()


def pack_layer(folder: Path, write: Write) -> Layer:
    """Write a layer with `write`, gzip it and store the blob in `folder` under its digest."""
    aside = folder / f"packing-{os.getpid()}"
    with open(aside, "wb") as out:
        blob = _Hashing(out)
        with gzip.GzipFile("", "wb", COMPRESSION, cast("IO[bytes]", blob), mtime=0) as zipped:
            plain = _Hashing(zipped)
            with tarfile.open(fileobj=cast("IO[bytes]", plain), mode="w|", format=tarfile.PAX_FORMAT) as tar:
                write(tar)
    aside.rename(folder / blob.digest.removeprefix("sha256:"))
    return Layer(blob.digest, plain.digest, blob.size, plain.size)


@dataclass(frozen=True, slots=True)
class Image:
    """A packed image: blobs in `folder`, layers lowest first, and the part of the configuration that says how to run."""

    folder: Path
    layers: tuple[Layer, ...]
    run: Mapping[str, Any]

    @property
    def unpacked(self) -> int:
        """Bytes of all layers as tar."""
        return sum(layer.unpacked for layer in self.layers)

    @property
    def size(self) -> int:
        """Bytes of all layers as they cross the wire."""
        return sum(layer.size for layer in self.layers)

    def push(self, client: RegistryClient, name: str) -> None:
        """Put it into a registry as `repository:tag`."""
        repository, _, tag = name.partition(":")
        for layer in self.layers:
            client.push_blob(repository, layer.digest, self.folder / layer.digest.removeprefix("sha256:"))
        client.push_image(
            repository, tag, self._manifest(), config_of(self.run, [layer.diff_id for layer in self.layers])
        )

    def write(self, target: Path) -> None:
        """Lay it into a folder of the form that skopeo calls `dir:`."""
        target.mkdir()
        config = json.dumps(config_of(self.run, [layer.diff_id for layer in self.layers])).encode()
        digest = hashlib.sha256(config).hexdigest()
        (target / digest).write_bytes(config)
        for layer in self.layers:
            os.link(self.folder / layer.digest.removeprefix("sha256:"), target / layer.digest.removeprefix("sha256:"))
        manifest = self._manifest() | {
            "config": {"mediaType": CONFIG, "digest": f"sha256:{digest}", "size": len(config)}
        }
        (target / "manifest.json").write_text(json.dumps(manifest))
        (target / "version").write_text("Directory Transport Version: 1.1\n")

    def _manifest(self) -> dict[str, Any]:
        return {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": CONFIG},
            "layers": [
                {"mediaType": layer.media_type, "digest": layer.digest, "size": layer.size} for layer in self.layers
            ],
        }


def config_of(run: Mapping[str, Any], diff_ids: Sequence[str]) -> dict[str, Any]:
    """An image's configuration for this machine."""
    return {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine),
        "os": "linux",
        "config": dict(run),
        "rootfs": {"type": "layers", "diff_ids": list(diff_ids)},
        "history": [{"created_by": "integration", "empty_layer": False} for _ in diff_ids],
    }


def packed(folder: Path, recipe: str, layers: Sequence[Write], run: Mapping[str, Any]) -> Image:
    """The image of `layers`, from `folder` if it was packed there under the same `recipe`, else packed now."""
    with one_builder(folder):
        return _packed(folder, recipe, layers, run)


def _packed(folder: Path, recipe: str, layers: Sequence[Write], run: Mapping[str, Any]) -> Image:
    note = folder / "image.json"
    if note.exists():
        known = json.loads(note.read_text())
        if known["recipe"] == recipe:
            return Image(folder, tuple(Layer(**layer) for layer in known["layers"]), known["run"])
    for old in folder.iterdir():
        old.unlink()
    image = Image(folder, tuple(pack_layer(folder, write) for write in layers), run)
    aside = folder / f"packing-{os.getpid()}"
    aside.write_text(
        json.dumps({"recipe": recipe, "layers": [asdict(layer) for layer in image.layers], "run": dict(run)})
    )
    aside.rename(note)
    return image
