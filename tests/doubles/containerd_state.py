"""What the containerd of the tests holds, how it collects, and how its calls fail on request."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn

import grpc

from snapshotter.api import images_pb2, introspection_pb2

Code = grpc.StatusCode
LAYER = "containerd.io/snapshot/cri.layer-digest"
REF = "containerd.io/snapshot.ref"
REMOTE = "containerd.io/snapshot/remote"
GC = "containerd.io/gc.ref."


@dataclass
class Blob:
    """A committed blob."""

    data: bytes
    labels: dict[str, str] = field(default_factory=dict)


@dataclass
class Snapshot:
    """A snapshot of the one snapshotter."""

    parent: str
    labels: dict[str, str]
    active: bool
    remote: bool = False
    filled: str = ""
    """The DiffID that was unpacked into it."""


@dataclass
class FakeContainerd:
    """Everything in one namespace. `lazy` are the digests of layers that the snapshotter mounts lazily.

    `at_call` is asked before each call, with its name and which one of that name it is (from 1), and returns what becomes
    of it: None, a status to refuse it with, saying `refusal`, or a pair of such a status and True to do the work first.
    """

    version: str = "1.6.20~ds1"
    plugins: list[introspection_pb2.Plugin] = field(
        default_factory=lambda: [introspection_pb2.Plugin(id="estargz", exports={"address": "/nowhere/s"})]
    )
    lazy: set[str] = field(default_factory=set)
    blobs: dict[str, Blob] = field(default_factory=dict)
    ingests: dict[str, bytearray] = field(default_factory=dict)
    locked: set[str] = field(default_factory=set)
    leases: dict[str, set[str]] = field(default_factory=dict)
    expiries: dict[str, str] = field(default_factory=dict)
    images: dict[str, images_pb2.Image] = field(default_factory=dict)
    snapshots: dict[str, Snapshot] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    namespaces: set[str] = field(default_factory=set)
    at_call: Callable[[str, int], "grpc.StatusCode | tuple[grpc.StatusCode, bool] | None"] | None = None
    refusal: str = "as the test wants it"
    applied: Callable[[str], str] = lambda diff_id: diff_id
    lock: threading.RLock = field(default_factory=threading.RLock)

    def fate_of(self, call: str) -> "grpc.StatusCode | tuple[grpc.StatusCode, bool] | None":
        """Count a call, and say what becomes of it."""
        with self.lock:
            self.calls.append(call)
            number = self.calls.count(call)
        return self.at_call(call, number) if self.at_call else None

    def active(self) -> list[str]:
        """Keys of active snapshots."""
        return [key for key, snapshot in self.snapshots.items() if snapshot.active]

    def collect(self) -> None:
        """Drop what neither an image nor a lease leads to."""
        held = set().union(*self.leases.values()) if self.leases else set()
        todo = [f"content/{image.target.digest}" for image in self.images.values()] + sorted(held)
        reached: set[str] = set()
        while todo:
            name = todo.pop()
            if name in reached:
                continue
            reached.add(name)
            kind, _, rest = name.partition("/")
            if kind == "content" and rest in self.blobs:
                for key, value in self.blobs[rest].labels.items():
                    if key.startswith(GC):
                        todo.append(f"{'snapshot' if '.snapshot.' in key else 'content'}/{value}")
            if kind == "snapshot" and rest in self.snapshots:
                todo.append(f"snapshot/{self.snapshots[rest].parent}")
        self.blobs = {name: blob for name, blob in self.blobs.items() if f"content/{name}" in reached}
        self.snapshots = {name: one for name, one in self.snapshots.items() if f"snapshot/{name}" in reached}
        self.ingests = {name: data for name, data in self.ingests.items() if f"ingest/{name}" in reached}

    def hold(self, context: grpc.ServicerContext, name: str) -> None:
        """Have the call's lease keep `name`."""
        lease = header(context, "containerd-lease")
        if lease:
            if lease not in self.leases:
                refuse(context, Code.NOT_FOUND, f"lease {lease}: not found")
            self.leases[lease].add(name)


def header(context: grpc.ServicerContext, name: str) -> str:
    """A header of the call, "" without it."""
    return next((str(value) for key, value in context.invocation_metadata() if key == name), "")


def refuse(context: grpc.ServicerContext, code: grpc.StatusCode, words: str) -> NoReturn:
    """End the call with a status."""
    context.abort(code, words)
    raise AssertionError


class Part:
    """A service: each call is counted, may be refused, and runs alone."""

    def __init__(self, node: FakeContainerd) -> None:
        self.node = node

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if not name[0].isupper():
            return found
        node: FakeContainerd = super().__getattribute__("node")

        def counted(request: Any, context: grpc.ServicerContext) -> Any:
            node.namespaces.add(header(context, "containerd-namespace"))
            fate = node.fate_of(f"{type(self).__name__}.{name}")
            if isinstance(fate, Code):
                refuse(context, fate, node.refusal)
            if not context.is_active():
                refuse(context, Code.CANCELLED, "nobody waits")
            if name == "Write":
                return found(request, context)
            with node.lock:
                answer = found(request, context)
            if fate is not None:
                refuse(context, fate[0], f"{node.refusal}, after the work")
            return answer

        return counted
