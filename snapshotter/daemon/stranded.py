"""Containers that stand on a FUSE mount which is dead: named until they are gone.

A fresh mount is no help to them: their overlays were made above the old one. What an overlay of the erofs plane finds
in the cache it goes on reading; for everything else they have to be started again.
"""

import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from snapshotter.plane.erofs.backing import EROFS_MOUNTS
from snapshotter.plane.fuse.kernel import MOUNT_NAME
from snapshotter.plane.fuse.plane import LINKS_NAME
from snapshotter.plane.mounts import Mount, parse_mountinfo, unescape
from snapshotter.service.control_views import UserView

NAME: Final = "stranded"
"""A file in the run directory: nothing of it outlives a boot."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Stranded:
    """A container, or another mount, by the device number of its overlay, and by the processes that stand on it.

    Started again, a container as a rule has the same mount point, and the number that has just become free.
    """

    name: str
    namespace: str
    mount_point: str
    device: str
    processes: tuple[tuple[int, int], ...]
    """By number and start (clock ticks since boot); none where there were none, as on a mount that nobody has entered."""

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


class StrandedContainers:
    """Those of one run directory; safe from any thread once made."""

    def __init__(self, run_dir: Path, proc: Path = Path("/proc")) -> None:
        """Those that are known from earlier starts and still there."""
        self._run_dir = run_dir
        self._path = run_dir / NAME
        self._proc = proc
        self._mountinfo = proc / "self/mountinfo"
        self._known = self._load()

    def add(self, users: Iterable[UserView]) -> None:
        """Note those that stand on lazy layers at the moment in which a fresh mount takes the place of a dead one."""
        devices = self._lazy_devices()
        known = {(one.mount_point, one.device) for one in self._known}
        found = [
            Stranded(user.name, user.namespace, user.mountpoint, device, tuple(self._started(user.pids)))
            for user in users
            if (device := devices.get(os.fsencode(user.mountpoint))) and (user.mountpoint, device) not in known
        ]
        if found:
            log.error(
                "the FUSE connection of the daemon before is lost; start these containers again: %s",
                ", ".join(str(one) for one in found),
            )
        self._known += tuple(found)
        self._save()

    def present(self) -> Iterator[Stranded]:
        """Those that still run."""
        if not self._known:
            return
        devices = self._devices()
        for one in self._known:
            if self._stands(one, devices):
                yield one

    def _stands(self, one: Stranded, devices: Mapping[bytes, str]) -> bool:
        if devices.get(os.fsencode(one.mount_point)) != one.device:
            return False
        return not one.processes or any(
            process in one.processes for process in self._started(pid for pid, _ in one.processes)
        )

    def _started(self, pids: Iterable[int]) -> Iterator[tuple[int, int]]:
        """Those that live, with their starts. Source: proc(5), /proc/pid/stat, starttime (22)."""
        for pid in pids:
            try:
                # The name, in parentheses, may hold anything.
                fields = (self._proc / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()
            except OSError:
                continue
            yield pid, int(fields[19])

    def _lazy_devices(self) -> dict[bytes, str]:
        """Overlays that have a lazy layer, by mount point."""
        return {
            mount.mount_point: mount.device
            for mount in parse_mountinfo(self._mountinfo.read_bytes())
            if mount.fs_type == "overlay" and any(map(self._is_lazy, _lower_layers(mount)))
        }

    def _is_lazy(self, layer: bytes) -> bool:
        """Whether a part of `lowerdir` is a layer that a daemon has to serve: an EROFS mount, or a link into the FUSE mount."""
        path = Path(os.fsdecode(layer))
        if path.parent == self._run_dir / EROFS_MOUNTS:
            return True
        try:
            return path.parent == self._run_dir / LINKS_NAME and os.readlink(path).startswith(f"../{MOUNT_NAME}/")
        except OSError:
            return False

    def _devices(self) -> dict[bytes, str]:
        return {mount.mount_point: mount.device for mount in parse_mountinfo(self._mountinfo.read_bytes())}

    def _load(self) -> tuple[Stranded, ...]:
        try:
            known = tuple(
                Stranded(**{**fields, "processes": tuple((pid, start) for pid, start in fields["processes"])})
                for fields in json.loads(self._path.read_bytes())
            )
        except (OSError, ValueError, TypeError, KeyError):
            return ()
        devices = self._devices()
        return tuple(one for one in known if self._stands(one, devices))

    def _save(self) -> None:
        aside = self._path.with_suffix(".tmp")
        try:
            aside.write_text(json.dumps([asdict(one) for one in self._known]))
            aside.replace(self._path)
        except OSError as error:
            log.warning("cannot write %s: %s", self._path, error.strerror)


def _lower_layers(mount: Mount) -> list[bytes]:
    for option in mount.options.split(b","):
        name, _, value = option.partition(b"=")
        if name == b"lowerdir":
            return unescape(value).split(b":")
    return []
