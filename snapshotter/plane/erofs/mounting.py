"""Metadata images as mount points, `<run>/e/<layer number>`: what overlays of lazy layers are made of.

An image is mounted from its file where the kernel can (6.12, on most file systems), else through a loop device.
"""

import errno
import logging
import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from snapshotter.errors import FormatError, PlaneError, StoreError
from snapshotter.format.erofs import check_pieces
from snapshotter.plane.erofs.backing import Backing
from snapshotter.plane.erofs.loop import loop_device
from snapshotter.plane.mounts import (
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_RDONLY,
    Mount,
    MountCall,
    call_mount,
    detach,
    detach_all,
    mounts_below,
)
from snapshotter.store.real_directory import real_directory

PIECE: Final = 1 << 20
FS_TYPE: Final = "erofs"
FLAGS: Final = MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC
"""A file opened through an overlay goes by the overlay's own flags, whatever those of its layers (tested with set-uid
programs and devices), so these concern only who looks into `<run>/e` itself."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Standing:
    """A mount that stands. `device` is the st_dev of everything in it."""

    image: Path
    device: int


class ErofsMounts:
    """The mounts below one directory; every method may be called from any thread.

    Nobody else mounts there, and the caller holds the lock of the run directory.
    """

    def __init__(self, directory: Path, how: Backing, call: MountCall = call_mount) -> None:
        self._directory = directory
        self._how = how
        self._call = call
        # Guards `_standing`, and lets one thread at a time change what is mounted below the directory: a mount takes
        # 0.1 ms, through a loop device 0.2 ms. Images are read without it.
        self._lock = threading.Lock()
        self._standing: dict[int, _Standing] = {}

    def numbers(self) -> set[int]:
        """The layers that are mounted."""
        with self._lock:
            return set(self._standing)

    def mounted(self, number: int) -> Path | None:
        """The mount point of a layer that is mounted."""
        with self._lock:
            return None if self._look(number) is None else self._point(number)

    def ensure(self, number: int, image: Path) -> Path:
        """Return the mount point of a layer, after mounting its image there if that is not done.

        The whole image is compared with its own hash before the kernel parses it.

        Raises:
            FormatError: the image is damaged or gone; write it again.
            StoreError: it cannot be read.
            PlaneError: the kernel refused.
        """
        point = self._point(number)
        with self._lock:
            if self._look(number) == image:
                return point
        _check(image)
        with self._lock:
            if self._look(number) != image:
                self._standing.pop(number, None)
                self._standing[number] = self._mount(point, image)
        return point

    def bring_back(self, wanted: Mapping[int, Path]) -> set[int]:
        """Keep the mounts of an earlier process that are the `wanted` images by number, and clear everything else away.

        Nothing is mounted. Returns the numbers of those that stand.
        """
        with self._lock:
            self._standing, troubles = self._clear(wanted)
            for trouble in troubles:
                log.warning("%s", trouble)
            return set(self._standing)

    def drop(self, number: int) -> None:
        """Take a layer's mount away; overlays that are made of it keep what they have. Nothing happens if there is none.

        Raises:
            PlaneError: the kernel refused.
        """
        point = self._point(number)
        with self._lock:
            self._standing.pop(number, None)
            detach_all(point)
            try:
                point.rmdir()
            except FileNotFoundError:
                pass
            except OSError as error:
                raise PlaneError(f"cannot remove the mount point {point}: {error.strerror}") from error

    def drop_all(self) -> None:
        """Take every mount below the directory away, those of earlier processes too, and the directory if that empties it.

        Raises:
            PlaneError: some could not be taken away; all others are.
        """
        with self._lock:
            self._standing, troubles = self._clear({})
            with suppress(OSError):
                self._directory.rmdir()
        if troubles:
            raise PlaneError("; ".join(troubles))

    def _point(self, number: int) -> Path:
        return self._directory / str(number)

    def _look(self, number: int) -> Path | None:
        """The image that is mounted for a layer; None too if somebody unmounted it by hand.

        Else an overlay would be made of a bare directory, and the layer be empty.
        """
        standing = self._standing.get(number)
        if standing is None:
            return None
        try:
            return standing.image if self._point(number).stat().st_dev == standing.device else None
        except OSError:
            return None

    def _mount(self, point: Path, image: Path) -> _Standing:
        """Mount `image` alone on `point`."""
        try:
            real_directory(self._directory)
            point.mkdir(mode=0o700, exist_ok=True)
            detach_all(point)
            real_directory(point)
            mount_image(image, point, self._how, self._call)
            return _Standing(image, point.stat().st_dev)
        except OSError as error:
            with suppress(OSError):
                point.rmdir()
            raise PlaneError(f"cannot mount {image} on {point}: {explain(error)}") from error

    # --- what earlier processes left

    def _clear(self, wanted: Mapping[int, Path]) -> tuple[dict[int, _Standing], list[str]]:
        """Detach and remove everything but `wanted` mounts; return these, and what could not be detached."""
        while True:
            kept, strays = self._sort(wanted)
            troubles = []
            for path, count in strays.items():
                try:
                    for _ in range(count):
                        detach(path)
                except PlaneError as error:
                    troubles.append(str(error))
            # Once more after success: a mount hides those that were made before it.
            if len(troubles) == len(strays):
                self._remove_directories(kept)
                return kept, troubles

    def _sort(self, wanted: Mapping[int, Path]) -> tuple[dict[int, _Standing], dict[Path, int]]:
        """The mounts that may stay, and where how many must go; of those inside each other the outermost only.

        A detached mount takes with it what is mounted inside, and a path that leads through it might hang.
        """
        kept: dict[int, _Standing] = {}
        strays: dict[Path, int] = {}
        for name, stack in sorted(mounts_below(self._directory).items()):
            path = self._directory / os.fsdecode(name)
            number = int(name) if name.isdigit() and name == b"%d" % int(name) else None
            image = wanted.get(number) if number is not None else None
            excess = len(stack)
            if number is not None and image is not None and _is_mount_of(stack[0], image):
                kept[number] = _Standing(image, _st_dev(stack[0]))
                excess -= 1
            if excess and not any(parent in strays for parent in path.parents):
                strays[path] = excess
        return kept, strays

    def _remove_directories(self, kept: Mapping[int, _Standing]) -> None:
        try:
            # Not through a link: what lies behind one is not ours to tidy.
            fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                names = os.listdir(fd)
            finally:
                os.close(fd)
        except FileNotFoundError:
            return
        except OSError as error:
            log.warning("cannot list %s: %s", self._directory, error.strerror)
            return
        for name in set(names) - {str(number) for number in kept}:
            try:
                (self._directory / name).rmdir()
            except OSError as error:  # nothing that we made, or a mount that stayed
                log.warning("cannot remove %s: %s", self._directory / name, error.strerror)


def mount_image(image: Path, target: Path, how: Backing, call: MountCall) -> None:
    """Mount an EROFS image on `target`, with its path as the kernel's table of mounts or sysfs will show it.

    Raises:
        OSError: the kernel refused, or there is no loop device.
    """
    image = _resolved(image)
    if how is Backing.FILE:
        call(str(image), target, FS_TYPE, FLAGS, "")
        return
    with loop_device(image) as device:
        call(device, target, FS_TYPE, FLAGS, "")


def explain(error: OSError) -> str:
    """The kernel's words, and the path they are about where the error names one."""
    words = error.strerror or str(error)
    return f"{error.filename}: {words}" if error.filename else words


def _check(image: Path) -> None:
    """Read the whole image, in pieces, and compare it with its hash. Raises FormatError, StoreError."""
    try:
        with image.open("rb", buffering=0) as file:
            check_pieces(iter(lambda: file.read(PIECE), b""))
    except FormatError as error:
        raise FormatError(f"{image}: {error}") from error
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EIO):  # to be had again by writing it again
            raise FormatError(f"cannot read the image {image}: {error.strerror}") from error
        raise StoreError(f"cannot read the image {image}: {error.strerror}") from error


def _is_mount_of(mount: Mount, image: Path) -> bool:
    """Whether a mount shows exactly this image; whose name says what it holds."""
    if mount.fs_type != FS_TYPE or mount.root != b"/":
        return False
    expected = os.fsencode(_resolved(image))
    try:
        # Of a file that was deleted and written again this says " (deleted)".
        return Path(f"/sys/dev/block/{mount.device}/loop/backing_file").read_bytes() == expected + b"\n"
    except OSError:
        return os.fsencode(mount.source) == expected


def _resolved(image: Path) -> Path:
    """The path as the kernel knows it, without symbolic links on the way."""
    return Path(os.path.realpath(image.parent), image.name)


def _st_dev(mount: Mount) -> int:
    major, _, minor = mount.device.partition(":")
    return os.makedev(int(major), int(minor))
