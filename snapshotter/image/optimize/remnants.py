"""What containerd loses sight of when whoever asked for a task is gone before it is made: processes, a mount, control groups.

containerd 1.6 gives up the making with the call, and the runtime, killed in the middle, leaves a process that waits for ever in a root
that stays mounted; no call of containerd shows either [tried]. They are found by the container's name, which nothing else has.
"""

import ctypes
import os
import re
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_MOUNTINFO = Path("/proc/self/mountinfo")
_RUNTIME_STATE = Path("/run/containerd/runc")
"""Where the shim has runc keep what it knows of containers, by namespace."""

_KILL_S = 5.0
_PAUSE_S = 0.02
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8
"""Source: umount2(2)."""

_OCTAL = re.compile(rb"\\([0-3][0-7]{2})")
_libc = ctypes.CDLL(None, use_errno=True)


def clear_remnants(namespace: str, name: str) -> None:
    """Remove whatever of a container is left that has no task any more. Blocks; what cannot be removed is passed over."""
    groups = list(_groups(namespace, name))
    give_up = time.monotonic() + _KILL_S
    while (pids := [pid for group in groups for pid in _members(group)]) and time.monotonic() < give_up:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(_PAUSE_S)
    for place in reversed(roots_in(_MOUNTINFO.read_bytes(), namespace, name)):
        _libc.umount2(place, _MNT_DETACH | _UMOUNT_NOFOLLOW)
    for group in groups:
        for folder, _, _ in os.walk(group, topdown=False):
            with suppress(OSError):
                os.rmdir(folder)
    shutil.rmtree(_RUNTIME_STATE / namespace / name, ignore_errors=True)


def roots_in(mountinfo: bytes, namespace: str, name: str) -> list[bytes]:
    """Mount points that are the root of a container, as a shim makes them. Source: proc_pid_mountinfo(5)."""
    end = os.fsencode(f"/{namespace}/{name}/rootfs")
    places = [
        _OCTAL.sub(lambda match: bytes([int(match[1], 8)]), fields[4])
        for fields in map(bytes.split, mountinfo.splitlines())
        if len(fields) > 4
    ]
    return [place for place in places if place.endswith(end)]


def _groups(namespace: str, name: str) -> Iterator[Path]:
    """The container's control groups: one, or one in each hierarchy."""
    tops = [_CGROUPS]
    with suppress(OSError):
        tops += [Path(entry.path) for entry in os.scandir(_CGROUPS) if entry.is_dir(follow_symlinks=False)]
    for top in tops:
        group = top / namespace / name
        if group.is_dir():
            yield group


def _members(group: Path) -> list[int]:
    with suppress(OSError):
        return [int(word) for word in (group / "cgroup.procs").read_text().split() if word != "0"]
    return []
