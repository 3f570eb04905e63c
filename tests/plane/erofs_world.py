"""An erofs plane on a real fuse plane, beside mounts and images that remember what was asked."""

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, TypeVarTuple, cast

from snapshotter.errors import NotFound, SnapshotterError
from snapshotter.plane.erofs.mounting import ErofsMounts
from snapshotter.plane.erofs.plane import ErofsPlane
from snapshotter.plane.fuse.plane import FusePlane
from snapshotter.request import LowerLayer
from tests.plane.test_plane import SESSION, Room, call

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
ROOM = 4000
COMPOSED = ("metacopy=on", "redirect_dir=on")


@dataclass
class Images:
    """Images of layers as files. Those that were begun are there after `finish`; `faults` keep one from being written."""

    folder: Path
    written: list[int] = field(default_factory=list)
    begun: list[tuple[int, bool]] = field(default_factory=list)
    """Number, and whether it was to be written anew."""
    faults: dict[int, SnapshotterError] = field(default_factory=dict)
    unknown: set[int] = field(default_factory=set)
    _failures: dict[int, str] = field(default_factory=dict)

    def image_path(self, number: int) -> Path:
        if number in self.unknown:
            raise NotFound(f"layer {number} is not attached on this node")
        return self.folder / f"{number}.erofs"

    async def image(self, number: int) -> Path:
        path = self.image_path(number)
        if not path.exists():
            self._write(number)
        if number in self.faults:
            raise self.faults[number]
        return path

    async def begin_image(self, number: int, *, anew: bool) -> None:
        self.image_path(number)
        self.begun.append((number, anew))

    def image_failure(self, number: int) -> str | None:
        return self._failures.get(number)

    def finish(self) -> None:
        """Write what was begun, or fail."""
        while self.begun:
            self._write(self.begun.pop(0)[0])

    def have(self, *numbers: int) -> None:
        """Layers of which the images lie on the disk already."""
        for number in numbers:
            self.image_path(number).touch()

    def _write(self, number: int) -> None:
        if number in self.faults:
            self._failures[number] = str(self.faults[number])
            return
        self._failures.pop(number, None)
        self.written.append(number)
        self.image_path(number).touch()

    def size_in_layer(self, number: int) -> tuple[str, Callable[[bytes], int | None]]:
        return f"domain-of-{number}", {bytes(32): number}.get


@dataclass
class Mounts:
    """Mounts that need no kernel. `faults` are raised by attempts to mount, one each; `stuck` when one is dropped."""

    directory: Path
    standing: dict[int, Path] = field(default_factory=dict)
    faults: dict[int, list[SnapshotterError]] = field(default_factory=dict)
    tried: Counter[int] = field(default_factory=Counter)
    dropped: list[int] = field(default_factory=list)
    stuck: dict[int, SnapshotterError] = field(default_factory=dict)

    def numbers(self) -> set[int]:
        return set(self.standing)

    def mounted(self, number: int) -> Path | None:
        return self.directory / str(number) if number in self.standing else None

    def ensure(self, number: int, image: Path) -> Path:
        if self.standing.get(number) != image:
            self.tried[number] += 1
            if self.faults.get(number):
                raise self.faults[number].pop(0)
            assert image.exists()
            self.standing[number] = image
        return self.directory / str(number)

    def bring_back(self, wanted: Mapping[int, Path]) -> set[int]:
        self.standing = {number: image for number, image in self.standing.items() if wanted.get(number) == image}
        return self.numbers()

    def drop(self, number: int) -> None:
        if number in self.stuck:
            raise self.stuck[number]
        self.standing.pop(number, None)
        self.dropped.append(number)


@dataclass
class World:
    """The plane and what it stands on. `disputed` layers contradict what the gate has told.

    Where it is `slow`, nobody gets an image by waiting for it.
    """

    run: Path
    root: Path
    room: Room = field(default_factory=Room)
    now: float = 1000.0
    disputed: set[int] = field(default_factory=set)
    invalidated: list[bytes] = field(default_factory=list)
    slow: bool = False
    waits: list[float] = field(default_factory=list)
    """How long the plane would have waited for images."""

    def __post_init__(self) -> None:
        self.root.mkdir(exist_ok=True)
        self.images = Images(self.root)
        self.mounts = Mounts(self.run / "e")
        self.plane = self.started(SESSION)

    def started(self, session: int) -> ErofsPlane:
        fuse = FusePlane(
            self.run, session, self.room, self.fs, self.call, 30.0, lambda _, name: self.invalidated.append(name)
        )
        mounts = cast(ErofsMounts, self.mounts)
        return ErofsPlane(fuse, mounts, self.images, self.disputes, self.call, self.root, session, lambda: self.now)

    def fs(self, snapshot_id: int) -> Path:
        return self.root / f"snapshots/{snapshot_id}/fs"

    def call(self, function: Callable[[*Ts], Awaitable[T]], *args: *Ts, timeout_s: float) -> T:
        if cast(object, function) == self.images.image:
            self.waits.append(timeout_s)
            if self.slow:
                self.images.begun.append((cast(Any, args)[0], False))
                raise TimeoutError(f"no answer within {timeout_s:g} s")
        return call(function, *args, timeout_s=timeout_s)

    def disputes(self, domain: str, size_of: Callable[[bytes], int | None]) -> bool:
        number = size_of(bytes(32))
        assert domain == f"domain-of-{number}"
        return number in self.disputed

    def e(self, number: int) -> str:
        return str(self.run / "e" / str(number))

    def link(self, name: int | str) -> str:
        return str(self.run / "l" / str(name))

    @property
    def data(self) -> tuple[str, ...]:
        """What comes behind the layers of a composed overlay."""
        return tuple(part for name in ("objects", "gate", "late", "fail") for part in ("", self.link(name)))

    def paths(self, *chain: LowerLayer, extraction: bool = False, room: int = ROOM) -> tuple[str, ...]:
        return self.plane.lowerdirs(chain, extraction=extraction, room=room).paths
