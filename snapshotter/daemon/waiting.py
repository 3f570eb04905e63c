"""Who waits for what: files that are waited for, joined with the threads that wait."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from snapshotter.daemon.blocked import BlockedThread, Doing
from snapshotter.daemon.users import ContainerName
from snapshotter.format.index import Index
from snapshotter.layer.layer import Layer
from snapshotter.layer.waits import Wait
from snapshotter.service.control_views import WaitKind, WaitView
from snapshotter.store.state import State

ROWS_SHOWN = 200
LAYERS_SEARCHED = 64
"""Layers in which a process's path is looked for."""
DEEPEST = 1000
"""Directories above a file; PATH_MAX allows twice as many."""


@dataclass(slots=True, eq=False)
class WaitedFile:
    """A content that is waited for: by `waits`, in the layers and nodes `holders`.

    `began` is the earliest of the waits, `hinted` are the threads that opened it last.
    """

    digest: bytes
    began: float
    waits: list[Wait] = field(default_factory=list)
    holders: list[tuple[Layer, int]] = field(default_factory=list)
    hinted: set[int] = field(default_factory=set)

    @property
    def askers(self) -> set[int]:
        """Threads that wait at the gate, by the kernel's word."""
        return {wait.pid for wait in self.waits if wait.is_lookup and wait.pid}


class Rows:
    """Joins files that are waited for and threads that wait, for one answer.

    `exact_nodes`: a read names the very node that the process has open, not one of equal content.
    """

    def __init__(self, state: State, files: Mapping[bytes, WaitedFile], now: float, *, exact_nodes: bool) -> None:
        self._state = state
        self._files = files
        self._now = now
        self._oldest_first = sorted(files.values(), key=lambda file: file.began)
        self._at_gate = [file for file in self._oldest_first if any(wait.is_lookup for wait in file.waits)]
        self._exact_nodes = exact_nodes
        layers = {layer.number: layer for file in files.values() for layer, _ in file.holders}
        self._layers = list(layers.values())[:LAYERS_SEARCHED]
        self._found: dict[str, tuple[WaitedFile, Layer] | None] = {}
        self._images: dict[int, str] = {}

    def of(self, threads: Iterable[BlockedThread]) -> list[WaitView]:
        """The rows: the longest waits first, behind them the files for which nobody was seen to wait."""
        rows: dict[tuple[bytes, int], WaitView] = {}
        named: set[int] = set()
        for thread in threads:
            found = self._what(thread)
            if found is not None:
                file, path, layer = found
                rows.setdefault((file.digest, thread.pid), self._row(file, path, layer, thread))
                named.add(thread.thread)
        for file in self._files.values():
            # The kernel itself named those at the gate.
            for asker in file.askers - named:
                rows.setdefault((file.digest, asker), replace(self._row(file), pid=asker))
        claimed = {digest for digest, _ in rows}
        nobody = [self._row(file) for file in self._files.values() if file.digest not in claimed]
        oldest_first = sorted(rows.values(), key=lambda row: (-row.waited_ns, row.path, row.pid))
        return (oldest_first + nobody)[:ROWS_SHOWN]

    def _what(self, thread: BlockedThread) -> tuple[WaitedFile, str, Layer | None] | None:
        """The file that a thread waits for, its path where the thread shows it, and the layer that has it there."""
        hits = [(*found, path) for path in thread.paths if (found := self._named(path)) is not None]
        if thread.doing is Doing.LOOKUP:
            asked = [file for file in self._at_gate if thread.thread in file.askers]
            for file, layer, path in hits:
                if file in (asked or self._at_gate):
                    return file, path, layer
            # Others that look the same name up wait for the first one's answer, unknown to us.
            one = asked or (self._at_gate if len(self._at_gate) == 1 else [])
            return (one[0], "", None) if one else None
        hinted = [file for file in self._oldest_first if thread.thread in file.hinted]
        if hits and thread.doing is Doing.FAULT and hits[0][2] != thread.paths[0]:
            # It is not the code that it executes: rather what this thread has opened itself.
            hits.sort(key=lambda hit: (thread.thread not in hit[0].hinted, hit[0].began))
        if hits:
            file, layer, path = hits[0]
            return file, path, layer
        # By its own word it has a file open that is waited for, and shows no path that says more: execve, for instance, or
        # a process of the host, whose paths are not those of the image.
        return (hinted[0], "", None) if hinted else None

    def _named(self, path: str) -> tuple[WaitedFile, Layer] | None:
        """The file that is waited for which has this path in one of the layers, and the layer."""
        if path not in self._found:
            self._found[path] = None
            for layer in self._layers:
                node = _node_of(layer.index, path)
                file = None if node is None else self._files.get(layer.index.digest(node))
                if file is not None:
                    self._found[path] = file, layer
                    break
        return self._found[path]

    def _row(
        self, file: WaitedFile, path: str = "", layer: Layer | None = None, thread: BlockedThread | None = None
    ) -> WaitView:
        seen = bool(path)
        size = 0
        if file.holders:
            holder, node = file.holders[0]
            attributes = holder.index.attributes(node)
            size = attributes.size
            layer = layer or holder
            if not path:
                path = path_of(holder.index, node)
                seen = self._exact_nodes and attributes.nlink == 1
        container = thread.container if thread else ContainerName()
        lookup = thread.doing is Doing.LOOKUP if thread else all(wait.is_lookup for wait in file.waits)
        return WaitView(
            kind=WaitKind.LOOKUP if lookup else WaitKind.READ,
            waited_ns=int((self._now - file.began) * 1e9),
            path=path,
            path_seen=seen,
            digest=f"sha256:{file.digest.hex()}",
            size=size,
            layer=layer.record.layer_digest if layer else "",
            image=self._image(layer.number) if layer else "",
            reads=sum(not wait.is_lookup for wait in file.waits),
            pid=thread.pid if thread else 0,
            process=thread.process if thread else "",
            container=container.id,
            namespace=container.namespace,
            container_name=container.in_pod,
        )

    def _image(self, number: int) -> str:
        """An image that has a layer."""
        if number not in self._images:
            sources = self._state.sources(number)
            self._images[number] = sources[0].reference if sources else ""
        return self._images[number]


def path_of(index: Index, node: int) -> str:
    """Return the first path of a node, from the root of its layer."""
    names: list[bytes] = []
    while node and len(names) < DEEPEST:
        parent = index.parent(node)
        names.append(next((name for _, name, child in index.entries(parent, 0) if child == node), b"?"))
        node = parent
    return "/" + os.fsdecode(b"/".join(reversed(names)))


def _node_of(index: Index, path: str) -> int | None:
    """Return the node of a path without links in it, or None."""
    node = 0
    for name in os.fsencode(path).strip(b"/").split(b"/"):
        child = index.lookup(node, name)
        if child is None:
            return None
        node = child
    return node
