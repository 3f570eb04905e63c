"""Whether this machine can do what the erofs plane needs, found by doing it: a tiny lazy layer in the real directories.

An image is mounted, overlays composed of it and two directories of contents, a file read through them, its mode
changed, its directory renamed; then everything is taken away again.
"""

import errno
import hashlib
import json
import logging
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from snapshotter.errors import PlaneError, SnapshotterError, StoreFull
from snapshotter.format.codec import Codec
from snapshotter.format.digest import Digest
from snapshotter.format.erofs import write_image
from snapshotter.format.index import BuildOptions, Index
from snapshotter.format.index_build import build_index
from snapshotter.plane.erofs.backing import Backing
from snapshotter.plane.erofs.mounting import explain, mount_image
from snapshotter.plane.mounts import MS_NODEV, MS_NOEXEC, MS_NOSUID, MountCall, call_mount, detach_all
from snapshotter.plane.overlays import METACOPY_ON
from snapshotter.store.full_disk import open_with_room
from snapshotter.store.real_directory import real_directory

IMAGES_NAME: Final = "erofs"
IMAGE_NAME: Final = ".probe.erofs"
TREE_NAME: Final = "probe"
MOUNTS_NAME: Final = "p"

_PLACE: Final = "/place"
_DIRECTORY: Final = "d"
_FILE: Final = "f"
_MODE: Final = 0o640
_CHANGED: Final = 0o600
_CONTENT: Final = b"what a file of a lazy layer holds\n"
_INDEX_PARAMETER: Final = Path("/sys/module/overlay/parameters/index")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Probe:
    """What came out. `reason` is a part of a sentence for the admin: how it works, or why it does not."""

    works: bool
    backing: Backing | None
    reason: str


def probe(root: Path, run_dir: Path, call: MountCall = call_mount) -> Probe:
    """Try the erofs plane in the configured directories; nothing of the trial stays, nor of one that was killed.

    Both directories exist, and the caller holds their locks. On a full disk some of the cache is deleted, as everything
    at the start does: else a restart would change the plane.
    """
    try:
        backing, reason = open_with_room(root, partial(_try, root, run_dir, call))
    except SnapshotterError as error:
        return Probe(works=False, backing=None, reason=str(error))
    return Probe(works=True, backing=backing, reason=reason)


def clear_trial(root: Path, run_dir: Path) -> None:
    """Take away what a trial left that was killed, where none follows it."""
    left = run_dir / MOUNTS_NAME, root / TREE_NAME, root / IMAGES_NAME / IMAGE_NAME
    if any(path.exists() for path in left):
        _Trial(root, run_dir, call_mount).clear()


def _try(root: Path, run_dir: Path, call: MountCall) -> tuple[Backing, str]:
    trial = _Trial(root, run_dir, call)
    trial.clear()
    try:
        trial.set_up()
        backing, reason = trial.mount_image()
        trial.view()
        trial.change()
    except OSError as error:
        if _is_full(error):
            raise StoreFull(f"no room in {root} for the trial of the erofs plane: {error.strerror}") from error
        raise PlaneError(f"the trial in {root} and {run_dir} failed: {explain(error)}") from error
    finally:
        trial.clear()
    return backing, reason


class _Trial:
    """One attempt, step by step; each step raises PlaneError with the reason that it is for the plane not to work."""

    def __init__(self, root: Path, run_dir: Path, call: MountCall) -> None:
        self._root = root
        self._call = call
        self._image = root / IMAGES_NAME / IMAGE_NAME
        self._tree = root / TREE_NAME
        # Two directories of contents, as the plane has several; what is looked for is in the second.
        self._contents = self._tree / "1", self._tree / "2"
        self._upper = self._tree / "upper"
        self._work = self._tree / "work"
        self._mounts = run_dir / MOUNTS_NAME
        self._layer = self._mounts / "e"
        self._merged = self._mounts / "m"

    def set_up(self) -> None:
        """Write everything that is to be mounted."""
        real_directory(self._image.parent)
        self._image.unlink(missing_ok=True)
        with self._image.open("xb") as file:
            file.write(_image())
        for directory in (self._tree, *self._contents, self._upper, self._work):
            directory.mkdir(mode=0o700)
        content = self._contents[1] / _content_path()
        content.parent.mkdir(mode=0o700, parents=True)
        content.write_bytes(_CONTENT)
        for directory in (self._mounts, self._layer, self._merged):
            real_directory(directory)
        try:
            os.setxattr(self._contents[0], "trusted.overlay.probe", b"y")
        except OSError as error:
            if _is_full(error):
                raise
            raise PlaneError(
                f"the file system of {self._root} has no trusted extended attributes ({error.strerror}), which an "
                "overlay needs: put root on ext4, xfs or btrfs"
            ) from error

    def mount_image(self) -> tuple[Backing, str]:
        """Mount the image from its file, else through a loop device; return which, and how to say it."""
        try:
            mount_image(self._image, self._layer, Backing.FILE, self._call)
            return Backing.FILE, "EROFS images are mounted from files, and overlays take data-only layers"
        except OSError as error:
            refusal = error
        if refusal.errno == errno.ENODEV:
            raise PlaneError("this kernel has no EROFS (CONFIG_EROFS_FS; modprobe erofs)") from refusal
        if refusal.errno in (errno.EPERM, errno.EACCES):
            raise PlaneError(
                f"EROFS images may not be mounted here ({refusal.strerror}): it takes CAP_SYS_ADMIN outside of user "
                "namespaces"
            ) from refusal
        cause = f"kernel < 6.12, or the file system of {self._root}"
        if refusal.errno != errno.ENOTBLK:
            cause += f": {explain(refusal)}"
        try:
            mount_image(self._image, self._layer, Backing.LOOP, self._call)
        except OSError as error:
            raise PlaneError(
                f"file-backed mounts are not supported here ({cause}), and loop devices do not work either "
                f"({explain(error)}): modprobe loop; in a container, pass /dev/loop-control and the loop devices in"
            ) from error
        return Backing.LOOP, f"file-backed mounts are not supported here ({cause}), using loop devices"

    def view(self) -> None:
        """Read through an overlay of layers alone, as a view of an image is one."""
        try:
            self._mount_overlay("")
        except OSError as error:
            if error.errno == errno.ENODEV:
                raise PlaneError("this kernel has no overlayfs (CONFIG_OVERLAY_FS; modprobe overlay)") from error
            if error.errno == errno.EINVAL:
                raise PlaneError("overlayfs has no data-only layers (kernel < 6.5)") from error
            raise PlaneError(f"overlayfs refused data-only layers: {error.strerror}") from error
        _compare(self._merged / _DIRECTORY / _FILE, _MODE)
        detach_all(self._merged)

    def change(self) -> None:
        """Change through an overlay with an upper directory what containers change."""
        try:
            # Volatile: unmounting would else wait until the whole file system of root is written.
            self._mount_overlay(f",upperdir={self._upper},workdir={self._work},volatile")
        except OSError as error:
            if _is_full(error):
                raise
            raise PlaneError(
                f"overlayfs does not take an upper directory on the file system of {self._root} ({error.strerror}): put "
                "root on ext4, xfs or btrfs"
            ) from error
        file = self._merged / _DIRECTORY / _FILE
        file.chmod(_CHANGED)
        try:
            os.getxattr(self._upper / _DIRECTORY / _FILE, "trusted.overlay.metacopy")
        except OSError as error:
            raise PlaneError("overlayfs copies a whole file to change its mode: metacopy=on has no effect") from error
        renamed = self._merged / "renamed"
        try:
            file.parent.rename(renamed)
        except OSError as error:
            if _is_full(error):
                raise
            raise PlaneError(
                f"overlayfs does not rename directories of layers ({error.strerror}): redirect_dir=on has no effect"
            ) from error
        _compare(renamed / _FILE, _CHANGED)

    def _mount_overlay(self, upper: str) -> None:
        first, second = self._contents
        options = f"lowerdir={self._layer}::{first}::{second}{upper},{','.join(METACOPY_ON)}"
        options += ",index=off" if _INDEX_PARAMETER.exists() else ""
        self._call("overlay", self._merged, "overlay", MS_NOSUID | MS_NODEV | MS_NOEXEC, options)

    def clear(self) -> None:
        """Take away what is there of this trial or an earlier one."""
        try:
            for point in (self._merged, self._layer):
                detach_all(point)
                with suppress(FileNotFoundError):
                    point.rmdir()
            with suppress(FileNotFoundError):
                self._mounts.rmdir()
            with suppress(FileNotFoundError):
                shutil.rmtree(self._tree)
            self._image.unlink(missing_ok=True)
        except OSError as error:
            log.warning("the trial of the erofs plane leaves something behind: %s", explain(error))
        except PlaneError as error:
            log.warning("the trial of the erofs plane leaves something behind: %s", error)
        with suppress(OSError):  # missing, or in use by the plane
            self._image.parent.rmdir()


def _is_full(error: OSError) -> bool:
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def _compare(file: Path, mode: int) -> None:
    """Raises PlaneError."""
    try:
        content = file.read_bytes()
        status = file.stat()
    except OSError as error:
        raise PlaneError(f"a file could not be read through overlayfs: {error.strerror}") from error
    if content != _CONTENT:
        raise PlaneError("a file read through overlayfs does not have the content of its object")
    if status.st_mode & 0o7777 != mode or status.st_size != len(_CONTENT):
        raise PlaneError("a file seen through overlayfs does not have the attributes of its layer")


def _image() -> bytes:
    """A layer of one directory with one file."""
    digest = f"sha256:{hashlib.sha256(_CONTENT).hexdigest()}"
    file = {"type": "reg", "mode": _MODE, "size": len(_CONTENT), "digest": digest, "chunkDigest": digest}
    entries = [
        {"name": f"{_DIRECTORY}/", "type": "dir", "mode": 0o755},
        {"name": f"{_DIRECTORY}/{_FILE}", **file},
    ]
    options = BuildOptions(
        Codec.GZIP, blob_size=100, payload_end=100, layer_digest=Digest(digest), allow_unverified=False
    )
    toc = json.dumps({"version": 1, "entries": entries}).encode()
    return write_image(Index(build_index(toc, options), "of the trial"), _PLACE.encode())


def _content_path() -> str:
    """Where the image says that the file's content is, in a directory of contents."""
    name = hashlib.sha256(_CONTENT).hexdigest()
    return f"{_PLACE.lstrip('/')}/{name[:2]}/{name}"
