"""What stands behind the gate in mount tests: one layer whose files come, come late or do not come, as their names say.

Server and tests build the same layer, each for itself. Contents lie as the store has them, below the state directory.
"""

import functools
import hashlib
import itertools
import os
import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import trio

from snapshotter.errors import RegistryUnreachable
from snapshotter.format.erofs import write_image
from snapshotter.format.index import Index
from snapshotter.store.identity import ContentPaths, large_name
from tests.doubles.gate import DOMAIN
from tests.doubles.layers import BuiltLayer, dir, file, layer, symlink

PLACE = "_mounttestgate"
CHUNK = 64_000
SMALL, STUCK, SPARE = 40, 200, 20
LARGE = random.Random(6).randbytes(1_000_000)


def in_one_shard() -> Iterator[bytes]:
    """Contents that the gate has in one directory."""
    for number in itertools.count():
        data = b"content %d\n" % number
        if hashlib.sha256(data).digest()[0] == 0x5A:
            yield data


@functools.cache
def built() -> BuiltLayer:
    """A directory for each way in which content can come:

    small: at once · stuck: when it is released · outage, bug: not at all · large, changed: in parts · full: the disk
    takes nothing
    """
    shard = in_one_shard()
    tops = [dir(name) for name in ("small", "stuck", "outage", "bug", "large", "changed", "full")]
    small = [file(f"small/{number:03}", b"small %d\n" % number * 100) for number in range(SMALL)]
    stuck = [file(f"stuck/{number:03}", next(shard)) for number in range(STUCK + SPARE)]
    large = [file(f"large/{number}", LARGE[number:], mode=0o644) for number in range(10)]
    changed = [file(f"changed/{number:02}", LARGE[number * 1000 :][:200_000]) for number in range(16)]
    return layer(
        *tops, *small, *stuck, *large, *changed,
        file("small/in-the-same-shard", next(shard)),
        file("small/program", b"#!/bin/sh\necho it runs\n", mode=0o755),
        file("small/empty"),
        symlink("small/link", "000", xattrs={}),
        dir("small/folder", xattrs={"user.note": b"of a folder"}),
        *(file(f"{fault}/{number}", f"{fault} {number}".encode()) for fault in ("outage", "bug") for number in range(3)),
        file("full/0", b"no room " * 1000),
        chunk_size=CHUNK,
    )  # fmt: skip


def content_name(path: str, index: Index | None = None) -> str:
    """The name under which the overlay asks for a file."""
    index = index or indexed()
    identity = index.identity(built().node(path, index))
    return large_name(identity) if len(identity.chunks) > 1 else identity.digest.hex()


@functools.cache
def indexed() -> Index:
    """The layer's index."""
    return built().index()


def image() -> bytes:
    """The layer's EROFS image."""
    paths = ContentPaths(PLACE, DOMAIN)
    return write_image(indexed(), paths.directory, paths.large)


def place_in(state_dir: Path, top: str, name: str) -> Path:
    """Where a content lies, or would lie."""
    return state_dir / top / PLACE / DOMAIN / name[:2] / name


class MemoryContents:
    """Fulfils the gate's `Contents`; writes below `state_dir` what is brought."""

    def __init__(self, state_dir: Path) -> None:
        for top in ("objects", "late"):
            (state_dir / top / PLACE).mkdir(parents=True, exist_ok=True)
        self._state_dir = state_dir
        self._paths = {content_name(path): path for path, data in built().files.items() if data}
        self.released: dict[str, trio.Event] = defaultdict(trio.Event)
        self.whole: set[str] = set()
        self.mended = False
        self.brought: Counter[str] = Counter()

    async def size(self, domain: str, name: str) -> int | None:
        path = self._paths.get(name) if domain == DOMAIN else None
        return None if path is None else len(built().files[path])

    async def disputed(self, domain: str, name: str) -> bool:
        return False

    async def bring(self, domain: str, name: str) -> bool:
        path = self._paths[name]
        self.brought[path] += not place_in(self._state_dir, "objects", name).exists()
        kind = await self._arrive(path)
        if kind == "full" or (kind in ("large", "changed") and path not in self.whole):
            return False
        self.place(path)
        late = place_in(self._state_dir, "late", name)
        late.parent.mkdir(parents=True, exist_ok=True)
        if not late.exists():
            os.link(place_in(self._state_dir, "objects", name), late)
        return True

    async def read(self, domain: str, name: str, file_size: int, offset: int, size: int) -> bytes:
        path = self._paths[name]
        await self._arrive(path)
        return built().files[path][offset : offset + size]

    async def _arrive(self, path: str) -> str:
        kind = path.partition("/")[0]
        await trio.lowlevel.checkpoint()
        if kind == "stuck":
            await self.released[path].wait()
        elif kind == "outage" and not self.mended:
            raise RegistryUnreachable("registry.test does not answer")
        elif kind == "bug" and not self.mended:
            raise ValueError("a fault of the program")
        return kind

    def place(self, path: str) -> None:
        """Have a file among the objects."""
        target = place_in(self._state_dir, "objects", content_name(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            aside = target.with_suffix(".tmp")
            aside.write_bytes(built().files[path])
            aside.chmod(0o400)
            os.rename(aside, target)
