"""What a run may leave on a machine, found and removed: mounts, processes, loop devices, control groups, shim sockets."""

import ctypes
import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

MARKER = "ESTARGZ_HARNESS"
MNT_DETACH = 2
CGROUPS = Path("/sys/fs/cgroup")
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class MountPoint:
    """One line of mountinfo."""

    path: str
    kind: str
    options: str


def mounts(of: str = "self") -> list[MountPoint]:
    """All mounts that process `of` sees, in the order they were made.

    Source: proc(5), /proc/pid/mountinfo.
    """
    found = []
    with open(f"/proc/{of}/mountinfo", errors="surrogateescape") as lines:
        for line in lines:
            before, _, after = line.rstrip("\n").partition(" - ")
            kind, _source, options = after.split(" ", 2)
            found.append(MountPoint(_unescape(before.split(" ")[4]), kind, _unescape(options)))
    return found


def mounts_of(folder: Path) -> list[MountPoint]:
    """Mounts below `folder`, and mounts elsewhere that name it in their options."""
    inside = re.compile(re.escape(str(folder)) + r"(?![\w-])")
    return [mount for mount in mounts() if inside.search(mount.path) or inside.search(mount.options)]


def detach_mounts(folder: Path) -> None:
    """Detach every mount of `folder`, newest first.

    Detached and never forced: MNT_FORCE would abort a FUSE connection that somebody else may still use.
    """
    for mount in reversed(mounts_of(folder)):
        _libc.umount2(os.fsencode(mount.path), MNT_DETACH)


def loop_devices_of(folder: Path) -> list[str]:
    """Loop devices whose backing file lies below `folder`."""
    found = []
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        with suppress(OSError):
            if backing.read_text().startswith(str(folder)):
                found.append(f"/dev/{backing.parent.parent.name}")
    return found


def processes_marked(value: str) -> set[int]:
    """Processes, other than this one, in whose environment MARKER has `value` among its words."""
    found = set()
    for pid in _pids():
        with suppress(OSError):
            for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                name, _, words = entry.partition(b"=")
                if name == MARKER.encode() and value.encode() in words.split():
                    found.add(pid)
    return found - {os.getpid()}


def processes_rooted_in(folder: Path) -> set[int]:
    """Processes in a mount namespace of their own whose root names `folder`: containers, whoever their parent is now."""
    found = set()
    ours = os.readlink("/proc/self/ns/mnt")
    for pid in _pids():
        with suppress(OSError, ValueError):
            if os.readlink(f"/proc/{pid}/ns/mnt") != ours:
                root = [mount for mount in mounts(str(pid)) if mount.path == "/"]
                if any(str(folder) in mount.options for mount in root):
                    found.add(pid)
    return found


def descendants(roots: set[int]) -> set[int]:
    """`roots` and all their children's children."""
    parents: dict[int, int] = {}
    for pid in _pids():
        with suppress(OSError, ValueError):
            # The command's name stands in parentheses and may hold anything; the parent is the second word after it.
            parents[pid] = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    family = set(roots)
    while True:
        children = {pid for pid, parent in parents.items() if parent in family} - family
        if not children:
            return family
        family |= children


def kill_all(marker: str, folder: Path, timeout_s: float = 10.0) -> None:
    """Kill every process marked with `marker`, its descendants, and containers whose root lies below `folder`."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        family = descendants(processes_marked(marker) | processes_rooted_in(folder)) - {os.getpid()}
        alive = {pid for pid in family if not _is_zombie(pid)}
        if not alive:
            return
        for pid in alive:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def cgroups_called(name: str) -> list[Path]:
    """The control groups of that name, one a hierarchy at most."""
    return [top / name for top in (CGROUPS, *CGROUPS.glob("*")) if (top / name).is_dir()]


def remove_cgroups(name: str) -> None:
    """Remove the control groups called `name`, inner ones first; those that the kernel still finds busy stay."""
    for group in cgroups_called(name):
        for folder, _, _ in os.walk(group, topdown=False):
            with suppress(OSError):
                os.rmdir(folder)


class Traces:
    """What processes marked by this run, and files in its folders, have left on the machine."""

    def __init__(self, marker: str, folder: Path) -> None:
        self.marker = marker
        self.folder = folder

    @contextmanager
    def marked(self) -> Iterator[None]:
        """Every process started inside carries this run's mark, and so do their children."""
        before = os.environ.get(MARKER)
        os.environ[MARKER] = f"{before} {self.marker}" if before else self.marker
        try:
            yield
        finally:
            if before is None:
                del os.environ[MARKER]
            else:
                os.environ[MARKER] = before

    def left(self) -> list[str]:
        """One line for each thing left."""
        return [
            *(f"mount {mount.path} ({mount.kind})" for mount in mounts_of(self.folder)),
            *(f"loop device {device}" for device in loop_devices_of(self.folder)),
            *(f"process {pid}: {_command(pid)}" for pid in processes_marked(self.marker) if not _is_zombie(pid)),
            *(f"container process {pid}: {_command(pid)}" for pid in processes_rooted_in(self.folder)),
            *(f"control group {group}" for group in cgroups_called(self.marker)),
        ]


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _unescape(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda code: chr(int(code.group(1), 8)), field)


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def arguments_of(pid: int) -> list[str]:
    """The words that a process was started with; none of one that is gone, or a zombie."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    except OSError:
        return []


def _command(pid: int) -> str:
    return " ".join(arguments_of(pid)) or "gone"
