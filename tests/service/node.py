"""A snapshots service on a socket in a scratch folder, its client, and real mounts of what it answers."""

import ctypes
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc

from snapshotter.api import mount_pb2, snapshots_pb2_grpc
from snapshotter.api import snapshots_pb2 as pb
from snapshotter.request import LayerRequest
from snapshotter.service.cleanup import Cleanup, LayerGuard
from snapshotter.service.directories import SnapshotDirectories
from snapshotter.service.pulls import LayerOutcome, PullLog
from snapshotter.service.remote import RemotePrepare
from snapshotter.service.server import build_server
from snapshotter.service.servicer import SnapshotsServicer
from snapshotter.service.snapshots import Snapshots
from snapshotter.store.state import State
from tests.doubles.lazy_layers import FakeLazyLayers, Offer

_LIBC = ctypes.CDLL(None, use_errno=True)
_FLAGS = {"ro": 1, "rw": 0, "rbind": 4096 | 16384, "bind": 4096}
_MS_REMOUNT = 32
_MNT_DETACH = 2

Mounts = Sequence[mount_pb2.Mount]


class RememberedPulls(PullLog):
    """The log of pulls, with what it was told, newest last."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[str, LayerOutcome]] = []

    def note(self, request: LayerRequest, outcome: LayerOutcome) -> None:
        """As the base class."""
        self.told.append((request.reference, outcome))
        super().note(request, outcome)

    def note_unknown(self, reference: str, outcome: LayerOutcome) -> None:
        """As the base class."""
        self.told.append((reference, outcome))
        super().note_unknown(reference, outcome)


class Node:
    """Everything of one root directory; `restart` closes it all and opens it again."""

    def __init__(self, top: Path, max_waiting: int = 4) -> None:
        self.top = top
        self.max_waiting = max_waiting
        self.offers: dict[str, Offer] = {}
        self._undo = ExitStack()
        self._open()

    def _open(self) -> None:
        root = self.top / "r"
        root.mkdir(exist_ok=True)
        self.state = State(root / "state.db")
        self._undo.callback(self.state.close)
        self.directories = SnapshotDirectories(root / "snapshots")
        self.lazy = FakeLazyLayers(
            self.state, self.top / "layers", self.top / "l", self.directories.fs, offers=self.offers
        )
        self.guard = LayerGuard()
        self.pulls = RememberedPulls()
        self.snapshots = Snapshots(self.state, self.directories, self.lazy)
        self.cleanup = Cleanup(self.state, self.directories, self.lazy, self.guard)
        self.remote = RemotePrepare(
            self.snapshots, self.state, self.lazy, self.guard, self.pulls, max_waiting=self.max_waiting, timeout_s=30
        )
        servicer = SnapshotsServicer(self.snapshots, self.remote, self.cleanup)
        self.server = build_server(
            self.top / "snapshotter.sock",
            [servicer.register],
            max_workers=8,
        )
        self.cleanup.recover()
        self.server.start()
        self._undo.callback(self.server.stop, 0)
        self.client = self._undo.enter_context(Client(self.top / "snapshotter.sock"))

    def close(self) -> None:
        """End server, client and database."""
        self._undo.close()

    def restart(self) -> None:
        """As after a SIGTERM and a start."""
        self.close()
        self._open()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Client:
    """The calls, with plain arguments."""

    def __init__(self, address: Path) -> None:
        self._channel = grpc.insecure_channel(f"unix:{address}")
        stub: Any = snapshots_pb2_grpc.SnapshotsStub  # generated without types
        self._stub = stub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._channel.close()

    def prepare(
        self, key: str, parent: str = "", labels: Mapping[str, str] | None = None, namespace: str = "default"
    ) -> Mounts:
        """Prepare, in containerd's namespace `namespace`."""
        request = pb.PrepareSnapshotRequest(snapshotter="estargz", key=key, parent=parent, labels=labels or {})
        answer = self._stub.Prepare(request, metadata=(("containerd-namespace", namespace),), timeout=60)
        return list(answer.mounts)

    def view(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> Mounts:
        """View."""
        return list(self._stub.View(pb.ViewSnapshotRequest(key=key, parent=parent, labels=labels or {})).mounts)

    def mounts(self, key: str) -> Mounts:
        """Mounts."""
        return list(self._stub.Mounts(pb.MountsRequest(key=key)).mounts)

    def commit(self, name: str, key: str, labels: Mapping[str, str] | None = None, parent: str = "") -> None:
        """Commit."""
        self._stub.Commit(pb.CommitSnapshotRequest(name=name, key=key, labels=labels or {}, parent=parent))

    def remove(self, key: str) -> None:
        """Remove."""
        self._stub.Remove(pb.RemoveSnapshotRequest(key=key))

    def stat(self, key: str) -> pb.Info:
        """Stat."""
        answer = self._stub.Stat(pb.StatSnapshotRequest(key=key))
        assert answer.HasField("info")
        assert isinstance(answer.info, pb.Info)
        return answer.info

    def update(self, name: str, labels: Mapping[str, str], *paths: str, noise: pb.Info | None = None) -> pb.Info:
        """Update with a mask; `noise` holds fields that must not matter."""
        request = pb.UpdateSnapshotRequest(info=noise)
        request.info.MergeFrom(pb.Info(name=name, labels=labels))
        request.update_mask.paths.extend(paths)
        answer: pb.UpdateSnapshotResponse = self._stub.Update(request)
        return answer.info

    def walk(self, *filters: str) -> Iterator[pb.Info]:
        """List, one Info after the other as they come."""
        for message in self._stub.List(pb.ListSnapshotsRequest(filters=filters)):
            yield from message.info

    def names(self, *filters: str) -> set[str]:
        """The names that List gives."""
        return {info.name for info in self.walk(*filters)}

    def usage(self, key: str) -> tuple[int, int]:
        """Usage: bytes and inodes."""
        answer = self._stub.Usage(pb.UsageRequest(key=key))
        return answer.size, answer.inodes

    def cleanup(self) -> None:
        """Cleanup."""
        self._stub.Cleanup(pb.CleanupRequest())

    def layer(
        self, name: str, parent: str, change: Callable[[Path], object], labels: Mapping[str, str] | None = None
    ) -> None:
        """Prepare, change the mounted snapshot, commit."""
        with mounted(self.prepare(f"{name}-key", parent)) as place:
            change(place)
        self.commit(name, f"{name}-key", labels)


@contextmanager
def mounted(mounts: Iterable[mount_pb2.Mount]) -> Iterator[Path]:
    """Mount what a call answered, as containerd's mount package does, and unmount it whatever happens."""
    place = Path(tempfile.mkdtemp(prefix="m"))
    count = 0
    try:
        for mount in mounts:
            _mount(mount, place)
            count += 1
        yield place
    finally:
        for _ in range(count):
            _LIBC.umount2(os.fsencode(place), _MNT_DETACH)
        place.rmdir()


def _mount(mount: mount_pb2.Mount, place: Path) -> None:
    flags = 0
    data = []
    for option in mount.options:
        if option in _FLAGS:
            flags |= _FLAGS[option]
        else:
            data.append(option)
    text = ",".join(data).encode()
    assert len(text) < 4096, "containerd would have to shorten this"
    source, target = mount.source.encode(), os.fsencode(place)
    _check(_LIBC.mount(source, target, mount.type.encode(), flags, text or None), mount)
    if flags & _FLAGS["bind"] and flags & _FLAGS["ro"]:
        # A bind takes its flags in a second call only (mount(2)).
        _check(_LIBC.mount(source, target, None, flags | _MS_REMOUNT, None), mount)


def _check(result: int, mount: mount_pb2.Mount) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(mount))


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder with a path as short as a run directory's, gone at the end."""
    top = Path(tempfile.mkdtemp(prefix="e"))
    try:
        yield top
    finally:
        shutil.rmtree(top)
