"""Who stands on our layers: containers and mounts, found in the kernel's tables of mounts.

Nothing here opens a path on a layer: with a dead or busy FUSE server that would hang.
"""

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from snapshotter.plane.mounts import Mount, mounts_on, parse_mountinfo, unescape
from snapshotter.service.control_views import UserView

_TASK_ROOT = re.compile(r"/io\.containerd\.runtime\.v[0-9.a-z]+/(?P<namespace>[^/]+)/(?P<id>[^/]+)/rootfs$")
"""Where containerd's shims mount a container's root: `<state>/io.containerd.runtime.v2.task/<namespace>/<id>/rootfs`."""

_SCOPE = re.compile(r"^(?:[a-z-]+-)?(?P<id>[0-9a-f]{64})(?:\.scope)?$")
"""Last part of a container's cgroup: its id, which systemd's driver puts between a prefix and `.scope`."""

_POD_KEYS = tuple(f"io.kubernetes.cri.{key}" for key in ("sandbox-namespace", "sandbox-name", "container-name"))
"""Annotations that containerd's CRI plugin writes into a container's OCI configuration (pkg/cri/annotations)."""

_LOWER_OPTIONS = (b"lowerdir", b"lowerdir+", b"datadir+", b"upperdir")


@dataclass(slots=True)
class _Found:
    """One overlay or bind of ours, over all mount namespaces."""

    mountpoint: str
    pids: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class ContainerName:
    """How a container is called: by containerd, and by Kubernetes as `<namespace>/<pod>/<container>`, empty elsewhere."""

    id: str = ""
    namespace: str = ""
    in_pod: str = ""


class Containers:
    """Names the containers of processes by the mounts of their roots, else by their cgroups. Not for several threads.

    One look at the tables of mounts; make another for another look.
    """

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._seen: dict[tuple[str, str], list[Mount]] = {}
        self._names: dict[str, ContainerName] = {}
        self._roots = {
            (line.device, line.root): Path(os.fsdecode(line.mount_point))
            for line in parse_mountinfo((proc / "self/mountinfo").read_bytes())
            if _TASK_ROOT.search(os.fsdecode(line.mount_point))
        }

    def of(self, pid: int) -> ContainerName:
        """The container of a process; empty if it is in none."""
        for line in _mounts_of(self._proc / str(pid), self._seen):
            if line.mount_point == b"/" and (mounted := self._roots.get((line.device, line.root))):
                return self._at(mounted)
        return ContainerName(_container_of(pid, self._proc))

    def _at(self, mounted: Path) -> ContainerName:
        known = self._names.get(str(mounted))
        task = _TASK_ROOT.search(str(mounted))
        if known is None and task:
            known = self._names[str(mounted)] = ContainerName(
                task["id"], task["namespace"], _name_in_pod(mounted.parent)
            )
        return known or ContainerName()


def _name_in_pod(bundle: Path) -> str:
    """Return what the OCI configuration in a container's bundle says of its pod, or ""."""
    try:
        annotations = json.loads((bundle / "config.json").read_bytes())["annotations"]
        return "/".join(str(annotations[key]) for key in _POD_KEYS)
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def stands_on(line: Mount, places: Iterable[Path], fuse_device: str | None) -> bool:
    """Say whether a mount uses layers or snapshots that lie below `places`, or is a bind out of the FUSE mount."""
    if line.device == fuse_device:
        # The whole mount seen in another namespace is a copy of ours and goes with it; a part of it is somebody's.
        return line.root != b"/"
    if line.fs_type != "overlay":
        return False
    prefixes = tuple(bytes(place) + b"/" for place in places)
    for option in line.options.split(b","):
        name, _, value = option.partition(b"=")
        if name in _LOWER_OPTIONS and any(part.startswith(prefixes) for part in unescape(value).split(b":")):
            return True
    return False


def find_users(run_dir: Path, root: Path, proc: Path = Path("/proc")) -> tuple[UserView, ...]:
    """Return every container, or mount of somebody else, that stands on layers of the daemon with these directories."""
    table = proc / "self/mountinfo"
    own = list(parse_mountinfo(table.read_bytes()))
    fuse = mounts_on(run_dir / "fuse", table)
    fuse_device = fuse[-1].device if fuse else None
    found: dict[tuple[str, bytes], _Found] = {}
    _collect(found, own, (run_dir, root), fuse_device)
    seen: dict[tuple[str, str], list[Mount]] = {}
    for pid in _pids(proc):
        lines = _mounts_of(proc / str(pid), seen)
        _collect(found, lines, (run_dir, root), fuse_device)
        for line in lines:
            user = found.get((line.device, line.root))
            if line.mount_point == b"/" and user is not None:
                user.pids.append(pid)
    return tuple(_describe(user, proc) for user in found.values())


def _collect(
    found: dict[tuple[str, bytes], _Found], lines: Iterable[Mount], places: tuple[Path, ...], device: str | None
) -> None:
    for line in lines:
        if stands_on(line, places, device):
            found.setdefault((line.device, line.root), _Found(os.fsdecode(line.mount_point)))


def _pids(proc: Path) -> list[int]:
    return sorted(int(name) for name in os.listdir(proc) if name.isdecimal())


def _mounts_of(process: Path, seen: dict[tuple[str, str], list[Mount]]) -> list[Mount]:
    """Return a process's mounts; processes of one namespace and root share the answer. None of a process that left."""
    try:
        key = (os.readlink(process / "ns/mnt"), os.readlink(process / "root"))
        if key not in seen:
            seen[key] = list(parse_mountinfo((process / "mountinfo").read_bytes()))
        return seen[key]
    except OSError:
        return []


def _describe(user: _Found, proc: Path) -> UserView:
    task = _TASK_ROOT.search(user.mountpoint)
    name = task["id"] if task else next(filter(None, (_container_of(pid, proc) for pid in user.pids)), user.mountpoint)
    return UserView(name, task["namespace"] if task else "", user.mountpoint, tuple(user.pids))


def _container_of(pid: int, proc: Path) -> str:
    """Return the container id in a process's cgroup path, or ""."""
    try:
        lines = (proc / str(pid) / "cgroup").read_text().splitlines()
    except OSError:
        return ""
    for line in lines:
        match = _SCOPE.match(line.rpartition("/")[2].rpartition(":")[2])
        if match:
            return match["id"]
    return ""
