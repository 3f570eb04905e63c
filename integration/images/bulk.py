"""An image much larger than the disk that its files are cached on: a few large files and many small ones, all noise.

Built once into a folder, because of its size; what a file holds follows from its name, so nothing else need be kept.
"""

import hashlib
import json
import os
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from integration.harness.registry import RegistryClient
from integration.images.oci import CONFIG, MANIFEST, config_of
from integration.images.once import one_builder
from integration.images.trial import programs
from tests.doubles.layers import BuiltLayer, Entry, dir, file, layer

MB = 1_000_000
LARGE = 10 * MB
LARGE_SHARE = 0.6
SMALL_MOST = 40_000
LAYER = 50 * MB
"""About as many bytes of files has each layer: a layer is built in memory."""


@dataclass(frozen=True, slots=True)
class Bulk:
    """The built image: what lies in it by path, and its layers' blobs in `folder`."""

    folder: Path
    files: Mapping[str, int]
    layers: tuple[Mapping[str, Any], ...]
    diff_ids: tuple[str, ...]

    def push(self, client: RegistryClient, name: str) -> None:
        """Put it into a registry as `repository:tag`."""
        repository, _, tag = name.partition(":")
        for one in self.layers:
            client.push_blob(repository, one["digest"], self.folder / one["digest"].removeprefix("sha256:"))
        manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": {"mediaType": CONFIG}, "layers": self.layers}
        client.push_image(repository, tag, manifest, config_of({}, self.diff_ids))

    @property
    def large(self) -> list[str]:
        """Paths of the files that are cut into chunks."""
        return [path for path, size in self.files.items() if size == LARGE]


def content(path: str, size: int) -> bytes:
    """What a file holds."""
    return random.Random(path).randbytes(size)


def bulk_image(folder: Path, size: int) -> Bulk:
    """An image with about `size` bytes of files, from `folder` if it was built there."""
    files = dict(_files(size))
    layers = [dict(list(files.items())[start : start + per]) for start, per in _cuts(files)]
    programs_here = [*programs(), dir("bulk")]
    recipe = hashlib.sha256(json.dumps([files, [one.name for one in programs_here]]).encode())
    recipe.update(b"".join(one.data for one in programs_here) + Path(__file__).read_bytes())
    note = folder / "bulk.json"
    with one_builder(folder):
        known = json.loads(note.read_text()) if note.exists() else {}
        if known.get("recipe") != recipe.hexdigest():
            known = {"recipe": recipe.hexdigest(), **_build(folder, programs_here, layers)}
            aside = folder / f"building-{os.getpid()}"
            aside.write_text(json.dumps(known))
            aside.rename(note)
    return Bulk(folder, files, tuple(known["layers"]), tuple(known["diff_ids"]))


def _files(size: int) -> Iterator[tuple[str, int]]:
    """Path and size of each file; those of a layer follow each other, large ones among the small."""
    dice = random.Random(size)
    left, number = size, 0
    while left > 0:
        large = dice.random() < LARGE_SHARE * SMALL_MOST / 2 / LARGE / (1 - LARGE_SHARE)
        one = LARGE if large else dice.randint(1, SMALL_MOST)
        yield f"/bulk/{number // 100}/{number}", one
        left -= one
        number += 1


def _cuts(files: Mapping[str, int]) -> Iterator[tuple[int, int]]:
    """Begin and length of the runs of files that make a layer."""
    start = reach = 0
    for position, size in enumerate(files.values(), start=1):
        reach += size
        if reach >= LAYER or position == len(files):
            yield start, position - start
            start, reach = position, 0


def _build(folder: Path, first: list[Entry], layers: list[dict[str, int]]) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    rows: list[dict[str, Any]] = []
    diff_ids: list[str] = []
    for paths in layers:
        folders = sorted({os.path.dirname(path)[1:] for path in paths})
        entries = [
            *(dir(name) for name in ("bulk", *folders)),
            *(file(path[1:], content(path, size)) for path, size in paths.items()),
        ]
        built = layer(*(first if not rows else ()), *entries[1 if not rows else 0 :])
        _write(folder, built)
        rows.append(
            {
                "mediaType": built.media_type,
                "digest": built.digest,
                "size": len(built.blob),
                "annotations": dict(built.annotations),
            }
        )
        diff_ids.append(built.diff_id)
    return {"layers": rows, "diff_ids": diff_ids}


def _write(folder: Path, built: BuiltLayer) -> None:
    (folder / built.digest.removeprefix("sha256:")).write_bytes(built.blob)
