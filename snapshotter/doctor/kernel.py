"""What the kernel has: the FUSE device, file systems, limits."""

import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from snapshotter.doctor.findings import Answer, Check, Group, Verdict, fault, note, ok, warning
from snapshotter.doctor.subject import Subject
from snapshotter.plane.probe import read_facts

EROFS_FROM: Final = (6, 5)
"""Data-only layers of overlayfs."""
FILES_MOUNTED_FROM: Final = (6, 12)
"""EROFS images are mounted from files; before it through loop devices."""

_RELEASE: Final = re.compile(r"(\d+)\.(\d+)")
_IN_CONTAINER: Final = (".dockerenv", "run/.containerenv", "run/systemd/container")
_WHOLE_RANGE: Final = ["0", "0", "4294967295"]


def checks(subject: Subject) -> list[Check]:
    """The checks of the kernel that mount nothing."""
    kernel = _Kernel(subject)
    return [
        Check(Group.KERNEL, "version", kernel.version),
        Check(Group.KERNEL, "/dev/fuse", kernel.fuse_device),
        Check(Group.KERNEL, "file systems", kernel.file_systems),
        Check(Group.KERNEL, "FUSE timeouts", kernel.timeouts),
        Check(Group.KERNEL, "container", kernel.container),
    ]


class _Kernel:
    def __init__(self, subject: Subject, release: str | None = None) -> None:
        self._subject = subject
        self._top = subject.machine.top
        self._proc = subject.machine.proc
        self._release = release or _release_of(self._proc)
        self._wants_erofs = subject.config.plane == "erofs"

    def version(self) -> Iterator[Answer]:
        numbers = _numbers(self._release)
        if numbers < EROFS_FROM:
            yield _without_erofs(
                self._wants_erofs,
                f"Linux {self._release}: the fuse plane runs here; the erofs plane needs "
                f"{EROFS_FROM[0]}.{EROFS_FROM[1]}",
            )
        else:
            yield ok(f"Linux {self._release}")

    def fuse_device(self) -> Iterator[Answer]:
        device = self._top / "dev/fuse"
        try:
            os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
        except OSError as error:
            yield _no_device(device, error, self._subject.uid)
        else:
            yield ok("there, and can be opened")

    def file_systems(self) -> Iterator[Answer]:
        here = {line.split()[-1] for line in (self._proc / "filesystems").read_text().splitlines() if line.split()}
        if (self._top / "dev/loop-control").exists():
            here.add("loop")
        wanted = ("fuse", "overlay", "erofs", "loop")
        loadable = self._loadable() & set(wanted)
        missing = [name for name in wanted if name not in here | loadable]
        for name in missing:
            yield self._missing(name)
        there = [
            name if name in here else f"{name} (a module that can be loaded)" for name in wanted if name not in missing
        ]
        if there:
            yield ok(", ".join(there))

    def _missing(self, name: str) -> Answer:
        if name in ("fuse", "overlay"):
            return fault(f"this kernel has no {name}", f"modprobe {name}, or a kernel with it", name=name)
        if name == "erofs":
            return _without_erofs(self._wants_erofs, "this kernel has no erofs: layers go through FUSE", name)
        needed = EROFS_FROM <= _numbers(self._release) < FILES_MOUNTED_FROM
        text = "no loop devices: before Linux 6.12 EROFS images are mounted through them"
        return (
            _without_erofs(self._wants_erofs, text, name)
            if needed
            else note("no loop devices; seldom needed", name=name)
        )

    def _loadable(self) -> set[str]:
        """Names of the modules that lie on disk for this kernel, or are built in. Source: depmod(8), modules.dep(5)."""
        found: set[str] = set()
        for listing in ("modules.dep", "modules.builtin"):
            try:
                text = (self._top / "lib/modules" / self._release / listing).read_text()
            except OSError:
                continue
            found |= {line.partition(":")[0].rpartition("/")[2].partition(".ko")[0] for line in text.splitlines()}
        return found

    def timeouts(self) -> Iterator[Answer]:
        facts = read_facts(self._proc, self._top / "dev/fuse")
        for name, seconds in facts.request_timeouts_s:
            yield warning(
                f"sysctl fs.fuse.{name} is {seconds} s: a read that waits longer for a registry ends every lazy "
                "container of this node",
                f"sysctl -w fs.fuse.{name}=0, and in /etc/sysctl.d",
            )
        if not facts.request_timeouts_s:
            yield ok("none: a read may wait for its registry")

    def container(self) -> Iterator[Answer]:
        mapping = (self._proc / "self/uid_map").read_text().split()
        if mapping != _WHOLE_RANGE:
            yield fault(
                "this is a user namespace: the kernel refuses the mounts that layers need",
                "run the daemon in the initial user namespace (no rootless containers)",
            )
            return
        marks = [mark for mark in _IN_CONTAINER if (self._top / mark).exists()]
        if marks:
            yield note(
                f"this is a container (/{marks[0]})",
                "the daemon needs /dev/fuse, CAP_SYS_ADMIN, and its run directory shared with containerd "
                "(mount propagation rshared)",
            )
        else:
            yield ok("none: this is a machine, or looks like one")


def _release_of(proc: Path) -> str:
    try:
        return (proc / "sys/kernel/osrelease").read_text().strip()
    except OSError:
        return os.uname().release


def _numbers(release: str) -> tuple[int, int]:
    match = _RELEASE.match(release)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _without_erofs(wanted: bool, found: str, name: str = "") -> Answer:  # noqa: FBT001 (one word that the callers read)
    """What cannot be had matters only to those who configured it."""
    if wanted:
        return fault(found, 'set plane to "auto" or "fuse", or take a kernel that has it', name=name)
    return Answer(Verdict.NOTE, found, "", name)


def _no_device(device: Path, error: OSError, uid: int) -> Answer:
    if error.errno == errno.EACCES and uid != 0:
        return note(f"{device} is there, but not for this user", "run this command as root (sudo) to look further")
    if error.errno == errno.ENOENT:
        return fault(f"there is no {device}", "modprobe fuse; in a container, pass the device in (--device /dev/fuse)")
    if error.errno in (errno.ENODEV, errno.ENXIO):
        return fault(f"{device} has no driver", "modprobe fuse, or a kernel with CONFIG_FUSE_FS")
    return fault(
        f"{device} cannot be opened: {error.strerror}",
        "let this container use the device (cgroup device rule c 10:229 rwm)",
    )
