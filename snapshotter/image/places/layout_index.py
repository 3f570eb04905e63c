"""The index of an OCI layout, in a directory or in an archive: which image a name means. Pure.

Source: OCI Image Specification 1.1, image-layout.md; names as skopeo (the tag), docker and containerd (both) write them.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from snapshotter.errors import FormatError, NotFound
from snapshotter.image.documents import descriptor_json
from snapshotter.registry.manifest import OCI_INDEX, Descriptor, ImageIndex, parse_manifest

NAME = "org.opencontainers.image.ref.name"
FULL_NAME = "io.containerd.image.name"
INDEX = "index.json"
MARK = "oci-layout"
MARK_TEXT = b'{"imageLayoutVersion":"1.0.0"}'

Entry = Mapping[str, Any]

_SHOWN = 20


def blob_name(digest: str) -> str:
    """Where the layout has a blob."""
    return f"blobs/sha256/{digest.removeprefix('sha256:')}"


def parse_entries(raw: bytes, where: str) -> list[Entry]:
    """Return the images of an index. `where` names the layout in errors.

    Raises:
        FormatError: not the index of a layout.
    """
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError) as fault:
        raise FormatError(f"{where}: {INDEX} is not JSON: {fault}") from None
    entries = document.get("manifests") if isinstance(document, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise FormatError(f"{where}: {INDEX} is not the index of an OCI layout")
    return entries


def choose(entries: Sequence[Entry], tag: str | None, where: str) -> Descriptor:
    """Return what the image is that is called `tag`; None stands for the only one.

    Raises:
        NotFound: there is none, or there are several.
        FormatError: its entry is no descriptor.
    """
    found = [entry for entry in entries if tag is None or tag in names_of(entry)]
    # One image with two names is one image.
    if len({str(entry.get("digest")) for entry in found}) != 1:
        names = sorted({(names_of(entry) or ("(unnamed)",))[0] for entry in entries})
        shown = ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
        wanted = f"one image named {tag!r}" if tag else "exactly one image; append :TAG"
        raise NotFound(f"{where}: expected {wanted}; it has: {shown or 'none'}")
    return descriptor_of(found[0], where)


def descriptor_of(entry: Entry, where: str) -> Descriptor:
    """Return the descriptor that an entry is. Raises FormatError."""
    # As the only one of an index our parser checks it.
    raw = json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode()
    try:
        index = parse_manifest(raw, OCI_INDEX)
    except FormatError as fault:
        raise FormatError(f"{where}: {INDEX} has an entry that cannot be used: {fault}") from None
    if not isinstance(index, ImageIndex) or not index.manifests:
        raise FormatError(f"{where}: {INDEX} is not the index of an OCI layout")
    return index.manifests[0]


def names_of(entry: Entry) -> tuple[str, ...]:
    """By which names an entry may be called: the tag, and the whole name if a tool wrote it."""
    annotations = entry.get("annotations")
    if not isinstance(annotations, dict):
        return ()
    return tuple(name for name in (annotations.get(NAME), annotations.get(FULL_NAME)) if isinstance(name, str))


def entry_of(descriptor: Descriptor, names: Mapping[str, str]) -> Entry:
    """Return the entry for an image; `names` are annotations that name it."""
    entry = descriptor_json(descriptor)
    if names:
        entry["annotations"] = {**entry.get("annotations", {}), **names}
    return entry


def index_json(entries: Sequence[Entry]) -> bytes:
    """Return the index of these images."""
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": list(entries)}
    return json.dumps(document, separators=(",", ":")).encode("ascii")
