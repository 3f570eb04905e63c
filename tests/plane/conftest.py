"""A place where EROFS images are mounted for real, in each way that this machine has."""

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from integration.harness.leftovers import detach_mounts, loop_devices_of
from snapshotter.format.erofs import write_image
from snapshotter.plane.erofs.backing import Backing
from snapshotter.plane.erofs.mounting import ErofsMounts, mount_image
from snapshotter.plane.mounts import call_mount, detach, mount, mounts_below
from tests.doubles.layers import dir, file, layer

PATIENCE_S = 60.0


@dataclass
class Place:
    """Images, a directory for their mounts, and how often the kernel was asked for one."""

    folder: Path
    how: Backing
    asked: Counter[Path] = field(default_factory=Counter)

    @property
    def directory(self) -> Path:
        return self.folder / "e"

    def image(self, name: str) -> Path:
        """An image whose root has one entry, called as itself."""
        path = self.folder / "images" / f"{name}.erofs"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(write_image(layer(dir(name), file(f"{name}/empty")).index(), b"/node"))
        return path

    def images(self, *names: str) -> dict[int, Path]:
        return {number: self.image(name) for number, name in enumerate(names, 1)}

    def mounts(self) -> ErofsMounts:
        return ErofsMounts(self.directory, self.how, self.call)

    def call(self, source: str, target: Path, fs_type: str, flags: int, data: str) -> None:
        self.asked[target] += 1
        call_mount(source, target, fs_type, flags, data)

    def standing(self) -> dict[bytes, list[str]]:
        """Types of what is mounted, by path."""
        return {path: [entry.fs_type for entry in stack] for path, stack in mounts_below(self.directory).items()}

    def put(self, name: str, *, image: Path | None = None) -> None:
        """Mount an image, or something foreign, as nobody of ours would."""
        target = self.directory / name
        target.mkdir(parents=True, exist_ok=True)
        if image is None:
            mount("foreign", target, "tmpfs", 0, "size=64k")
        else:
            mount_image(image, target, self.how, call_mount)

    def wait_for_loop_devices_to_go(self) -> None:
        """The kernel frees them a moment after the last user went."""
        deadline = time.monotonic() + PATIENCE_S
        while left := loop_devices_of(self.folder):
            assert time.monotonic() < deadline, left
            time.sleep(0.01)


def try_image(folder: Path, how: Backing) -> OSError | None:
    """What keeps this machine from mounting an image in `folder`."""
    target = folder / "trial"
    target.mkdir()
    (folder / "trial.erofs").write_bytes(write_image(layer(dir("d")).index(), b"/node"))
    try:
        mount_image(folder / "trial.erofs", target, how, call_mount)
    except OSError as error:
        return error
    detach(target)
    return None


def place_of(folder: Path, how: Backing) -> Iterator[Place]:
    """The place, which is left without mounts and loop devices whatever happened in it."""
    refusal = try_image(folder, how)
    if refusal is not None:
        pytest.skip(f"this machine mounts no EROFS image by {how}: {refusal}")
    made = Place(folder, how)
    made.wait_for_loop_devices_to_go()
    try:
        yield made
    finally:
        detach_mounts(folder)
        made.wait_for_loop_devices_to_go()


@pytest.fixture(params=list(Backing))
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    yield from place_of(tmp_path, request.param)


@pytest.fixture
def file_place(tmp_path: Path) -> Iterator[Place]:
    yield from place_of(tmp_path, Backing.FILE)


@pytest.fixture
def loop_place(tmp_path: Path) -> Iterator[Place]:
    yield from place_of(tmp_path, Backing.LOOP)
