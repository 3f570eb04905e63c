"""The record of what a container read, as a file: one JSON object a line, in order of first access.

The format is `ctr-remote image optimize --record-out`'s, so that either tool takes the other's files: `path` as the layer's tar
names it, without a slash in front, `manifestDigest` of the image that ran, `layerIndex` counted from the lowest layer, 0.

Source: stargz-snapshotter, analyzer/recorder/recorder.go and cmd/ctr-remote/commands/convert.go.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from snapshotter.errors import FormatError
from snapshotter.format.tar_entries import EntryType, clean_name
from snapshotter.image.convert.tree import ImageTree

RECORD_MAX = 256 << 20
"""Bytes of a record that is read: a million files of the longest names that are common."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """A file that was read. `manifest_digest` is "" and `layer_index` None where the record does not say."""

    path: str
    manifest_digest: str = ""
    layer_index: int | None = None


def in_image(paths: Iterable[str], tree: ImageTree, manifest_digest: str) -> list[Recorded]:
    """What of `paths` are files of an image, each with the layer that a container sees it from."""
    recorded = []
    for path in paths:
        name = clean_name(path)
        found = tree.find(name)
        if found is not None and found[1].type in (EntryType.REG, EntryType.HARDLINK):
            recorded.append(Recorded(name, manifest_digest, found[0]))
    return recorded


def format_record(records: Iterable[Recorded]) -> bytes:
    """The file that says `records`. A name that is not UTF-8 comes back as it was; ctr-remote does not find such a file."""
    return b"".join(_line(record) + b"\n" for record in records)


def _line(record: Recorded) -> bytes:
    fields: dict[str, object] = {"path": record.path}
    if record.manifest_digest:
        fields["manifestDigest"] = record.manifest_digest
    if record.layer_index is not None:
        fields["layerIndex"] = record.layer_index
    try:
        return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        return json.dumps(fields, separators=(",", ":")).encode()


def parse_record(data: bytes) -> list[Recorded]:
    """Return what a record says, each path once, where it stands first. Members of an object that mean nothing here are passed over.

    Raises:
        FormatError: the line that is no record is named.
    """
    if len(data) > RECORD_MAX:
        raise FormatError(f"the record has {len(data)} bytes; the limit is {RECORD_MAX}")
    found: dict[str, Recorded] = {}
    for number, line in enumerate(data.split(b"\n"), 1):
        if line.strip():
            try:
                record = _parsed(json.loads(line))
            except (ValueError, RecursionError) as error:
                raise FormatError(
                    f"line {number} of the record is not a file that was read: {error}; "
                    'a line is a JSON object like {"path":"usr/bin/env","layerIndex":0}'
                ) from None
            found.setdefault(record.path, record)
    return list(found.values())


def _parsed(value: Any) -> Recorded:
    if not isinstance(value, dict):
        raise ValueError("it is no JSON object")  # noqa: TRY004 (all that is wrong with a line is told the same way)
    path, digest, layer = value.get("path"), value.get("manifestDigest"), value.get("layerIndex")
    if not isinstance(path, str) or not clean_name(path) or "\0" in path:
        raise ValueError('it has no "path"')
    if digest is not None and not isinstance(digest, str):
        raise ValueError('its "manifestDigest" is no text')
    if layer is not None and (type(layer) is not int or layer < 0):
        raise ValueError('its "layerIndex" is not a number from 0 on')
    return Recorded(clean_name(path), digest or "", layer)
