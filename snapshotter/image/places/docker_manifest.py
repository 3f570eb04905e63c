"""What `docker save` says of the images in an archive, and the manifest that it leaves out. Pure.

Source: moby's image/tarexport; containerd's images/archive, which reads and writes the same file.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from snapshotter.errors import ConfigError, FormatError, NotFound
from snapshotter.image.documents import DOCKER_CONFIG, descriptor_json
from snapshotter.registry.manifest import DOCKER_MANIFEST, Descriptor
from snapshotter.registry.reference import DOCKER_HUB, Reference, parse_reference

NAME = "manifest.json"

_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
_SHOWN = 20
_OFFICIAL = "library/"


@dataclass(frozen=True, slots=True)
class SavedImage:
    """One image: names of its configuration and layers in the archive, lowest first, and what it is called."""

    config: str
    layers: tuple[str, ...]
    names: tuple[str, ...]


def parse_saved(raw: bytes, where: str) -> list[SavedImage]:
    """Return the images of a manifest.json. `where` names the archive in errors.

    Raises:
        FormatError: it is none.
    """
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError) as fault:
        raise FormatError(f"{where}: {NAME} is not JSON: {fault}") from None
    if not isinstance(document, list):
        raise FormatError(f"{where}: {NAME} is not the list that docker writes")
    return [_saved(entry, where) for entry in document]


def _saved(entry: Any, where: str) -> SavedImage:
    if isinstance(entry, dict):
        config, layers, names = entry.get("Config"), entry.get("Layers") or [], entry.get("RepoTags") or []
        if isinstance(config, str) and _are_texts(layers) and _are_texts(names):
            return SavedImage(config, tuple(layers), tuple(names))
    raise FormatError(f"{where}: {NAME} has an entry without Config or Layers, or with odd ones")


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def choose(images: Sequence[SavedImage], wanted: Reference | None, where: str) -> SavedImage:
    """Return the image that is called `wanted`; None stands for the only one.

    Raises:
        NotFound: there is none, or there are several.
    """
    found = [one for one in images if wanted is None or any(_means(name, wanted) for name in one.names)]
    # One image with two names is one image.
    if len({(one.config, one.layers) for one in found}) != 1:
        names = sorted({name for one in images for name in one.names or ("(unnamed)",)})
        shown = ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
        what = f"one image named {wanted}" if wanted else "exactly one image; append :NAME"
        raise NotFound(f"{where}: expected {what}; it has: {shown or 'none'}")
    return found[0]


def _means(name: str, wanted: Reference) -> bool:
    try:
        return parse_reference(name) == wanted
    except ConfigError:
        return False


def layer_type(start: bytes) -> str:
    """The media type of a layer that begins with `start`: docker's own archives have plain tars, others' anything."""
    if start.startswith(b"\x1f\x8b"):
        return _LAYER + ".gzip"
    return _LAYER + ".zstd" if start.startswith(b"\x28\xb5\x2f\xfd") else _LAYER


def manifest_for(config: Descriptor, layers: Sequence[Descriptor]) -> bytes:
    """Return a manifest of these."""
    document = {
        "schemaVersion": 2,
        "mediaType": DOCKER_MANIFEST,
        "config": descriptor_json(config),
        "layers": [descriptor_json(layer) for layer in layers],
    }
    return json.dumps(document, separators=(",", ":")).encode("ascii")


def config_descriptor(digest: str, size: int) -> Descriptor:
    """What a configuration in an archive is to its manifest."""
    return Descriptor(DOCKER_CONFIG, digest, size)


def saved_json(images: Sequence[SavedImage]) -> bytes:
    """Return the manifest.json of these images."""
    document = [
        {"Config": one.config, "RepoTags": list(one.names) or None, "Layers": list(one.layers)} for one in images
    ]
    return json.dumps(document, separators=(",", ":")).encode("ascii")


def familiar(reference: Reference) -> str:
    """A reference as docker shows it: without the parts that it fills in."""
    name = f"{reference.repository}:{reference.tag or 'latest'}"
    if reference.host != DOCKER_HUB:
        return f"{reference.host}/{name}"
    official = name.startswith(_OFFICIAL) and "/" not in name.removeprefix(_OFFICIAL)
    return name.removeprefix(_OFFICIAL) if official else name
