"""An in-memory layer for mount tests: the index protocol over a plain dictionary, and contents that can misbehave."""

import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import trio

from snapshotter.errors import RegistryUnreachable


class Attributes(NamedTuple):
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    nlink: int
    rdev: int


@dataclass
class Node:
    attributes: Attributes
    parent: int
    children: dict[bytes, int] = field(default_factory=dict)
    target: bytes = b""
    data: bytes = b""
    xattrs: dict[bytes, bytes] = field(default_factory=dict)


class MemoryIndex:
    """A tree built by `add`; node 0 is the root."""

    def __init__(self) -> None:
        self.nodes = [Node(Attributes(stat.S_IFDIR | 0o755, 0, 0, 0, 1_700_000_000_000_000_000, 2, 0), 0)]

    def add(
        self,
        path: str | bytes,
        mode: int,
        *,
        data: bytes = b"",
        target: bytes = b"",
        uid: int = 0,
        gid: int = 0,
        rdev: int = 0,
        mtime_ns: int = 1_600_000_000_123_456_789,
        xattrs: Mapping[bytes, bytes] | None = None,
    ) -> int:
        """Add one entry below existing directories; `mode` with its type bits."""
        names = (path if isinstance(path, bytes) else path.encode()).split(b"/")
        parent = 0
        for name in names[:-1]:
            parent = self.nodes[parent].children[name]
        size = len(target) if stat.S_ISLNK(mode) else len(data)
        nlink = 2 if stat.S_ISDIR(mode) else 1
        attributes = Attributes(mode, uid, gid, size, mtime_ns, nlink, rdev)
        self.nodes.append(Node(attributes, parent, {}, target, data, dict(xattrs or {})))
        self.nodes[parent].children[names[-1]] = len(self.nodes) - 1
        return len(self.nodes) - 1

    def link(self, path: str, node: int) -> None:
        """Add another name in the root for a file."""
        self.nodes[0].children[path.encode()] = node
        old = self.nodes[node].attributes
        self.nodes[node].attributes = old._replace(nlink=old.nlink + 1)

    def lookup(self, parent: int, name: bytes) -> int | None:
        return self.nodes[parent].children.get(name)

    def parent(self, node: int) -> int:
        return self.nodes[node].parent

    def attributes(self, node: int) -> Attributes:
        return self.nodes[node].attributes

    def entries(self, directory: int, start: int) -> Iterator[tuple[int, bytes, int]]:
        listing = sorted(self.nodes[directory].children.items())
        for position in range(start, len(listing)):
            yield position + 1, *listing[position]

    def readlink(self, node: int) -> bytes:
        return self.nodes[node].target

    def xattrs(self, node: int) -> Mapping[bytes, bytes]:
        return self.nodes[node].xattrs


class MemoryLayer:
    """Serves a `MemoryIndex`; files whose name says so get stuck or fail when read."""

    def __init__(self, number: int, index: MemoryIndex, stuck: Callable[[int], None] = lambda node: None) -> None:
        self.number = number
        self.index = index
        self.faults: dict[int, str] = {}
        self._stuck = stuck

    async def read(self, node: int, offset: int, size: int) -> bytes:
        fault = self.faults.get(node)
        if fault == "stuck":
            self._stuck(node)
            await trio.sleep_forever()
        if fault == "bug":
            raise ValueError("a fault of the program")
        if fault == "outage":
            raise RegistryUnreachable("no answer from the registry")
        if fault == "too-long":
            return bytes(size + 1)
        await trio.lowlevel.checkpoint()
        return self.index.nodes[node].data[offset : offset + size]


class MemoryShelf:
    def __init__(self) -> None:
        self.layers: dict[int, MemoryLayer] = {}

    def get(self, number: int) -> MemoryLayer | None:
        return self.layers.get(number)
