"""What is installed here: the program, its configuration, its directories, its socket."""

import os
import platform
import pwd
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from snapshotter import __version__
from snapshotter.config import DEFAULT_PATH
from snapshotter.doctor.findings import Answer, Check, Group, fault, note, ok, skipped, warning
from snapshotter.doctor.mount_table import existing, place_of
from snapshotter.doctor.subject import Subject

FEW_INODES: Final = 10_000
"""Every cached file is one, and so is every file that a container writes."""

_OPEN_TO_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


def checks(subject: Subject) -> list[Check]:
    """The checks of program, configuration and disk."""
    here = _Installation(subject)
    return [
        Check(Group.INSTALLATION, "program", here.program),
        Check(Group.INSTALLATION, "configuration", here.configuration),
        Check(Group.INSTALLATION, "root", lambda: here.directory(subject.config.root, "root")),
        Check(Group.INSTALLATION, "run directory", lambda: here.directory(subject.config.run_dir, "run_dir")),
        Check(Group.INSTALLATION, "disk", here.disk),
        Check(Group.INSTALLATION, "socket", here.socket),
    ]


class _Installation:
    def __init__(self, subject: Subject) -> None:
        self._subject = subject

    def program(self) -> Iterator[Answer]:
        yield ok(f"snapshotter {__version__}, Python {platform.python_version()}")

    def configuration(self) -> Iterator[Answer]:
        path = self._subject.config_path or DEFAULT_PATH
        if self._subject.config_fault and self._subject.uid != 0 and "permission" in self._subject.config_fault:
            yield skipped(
                f"{path} may be read by root alone: the defaults are taken", "run this command as root (sudo)"
            )
        elif self._subject.config_fault:
            yield fault(
                f"{self._subject.config_fault} (everything below is checked with the defaults)",
                "correct it; `snapshotter config check` says whether it is right",
            )
        elif self._subject.config_path is None and not path.exists():
            yield ok(f"there is no {path}: the defaults count")
        else:
            yield ok(f"{path} is right")

    def directory(self, path: Path, key: str) -> Iterator[Answer]:
        try:
            status = path.lstat()
        except FileNotFoundError:
            yield note(f"{path} does not exist yet: the daemon makes it when it starts")
            return
        if stat.S_ISLNK(status.st_mode):
            status = path.stat()
        yield self._owner(path, status) or ok(f"{path}, {_owner_of(status.st_uid)}, {stat.S_IMODE(status.st_mode):04o}")
        place = place_of(path, self._subject.machine.own_mounts)
        if place is not None and key == "root":
            yield from self._file_system(path, place.mount.fs_type, remote=place.is_remote)

    def _owner(self, path: Path, status: os.stat_result) -> Answer | None:
        mode = stat.S_IMODE(status.st_mode)
        if not stat.S_ISDIR(status.st_mode):
            return fault(f"{path} is not a directory", "move it away, or configure another directory")
        if status.st_uid != 0:
            return fault(f"{path} belongs to {_owner_of(status.st_uid)}, not to root", f"chown root:root {path}")
        if mode & (stat.S_IWGRP | stat.S_IWOTH):
            return fault(
                f"{path} has mode {mode:04o}: others may write in it; no daemon starts on it", f"chmod 0700 {path}"
            )
        if mode & _OPEN_TO_OTHERS:
            return warning(
                f"{path} has mode {mode:04o}: others may look into it; the files of every image are in there",
                f"chmod 0700 {path}",
            )
        return None

    def _file_system(self, path: Path, fs_type: str, *, remote: bool) -> Iterator[Answer]:
        name = "file system"
        if remote:
            yield warning(
                f"{path} lies on {fs_type}, which may be on another machine: locks, databases and mounts need a local "
                "file system",
                "put root on a local disk (ext4, xfs or btrfs)",
                name=name,
            )
        elif fs_type in ("tmpfs", "ramfs"):
            yield warning(
                f"{path} lies on {fs_type}: every cached file takes memory, and a reboot loses all snapshots",
                "put root on a disk, unless this node is meant to forget",
                name=name,
            )
        elif fs_type == "overlay":
            yield warning(
                f"{path} lies on an overlay: the kernel takes no upper directory of a container there",
                "mount a volume on ext4, xfs or btrfs there",
                name=name,
            )
        else:
            yield ok(f"{path} lies on {fs_type}", name=name)

    def disk(self) -> Iterator[Answer]:
        cache = self._subject.config.cache
        here = existing(self._subject.config.root)
        status = os.statvfs(here)
        free, capacity = status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize
        text = f"{_gib(free)} of {_gib(capacity)} free"
        if free < cache.min_free:
            yield fault(
                f"{text} where {here} lies, less than cache.min_free ({_gib(cache.min_free)}): what is fetched cannot "
                "be kept",
                "make room, or lower cache.min_free; `snapshotter cache prune` deletes what no image needs",
            )
        else:
            yield ok(f"{text} where {here} lies; cache.min_free keeps {_gib(cache.min_free)} of it")
        if cache.quota > capacity:
            yield warning(
                f"cache.quota is {_gib(cache.quota)}, more than the file system has in all",
                f"set it below {_gib(capacity)}, or to 0 to go by cache.min_free alone",
                name="quota",
            )
        if status.f_files and status.f_favail < FEW_INODES:
            yield (fault if status.f_favail == 0 else warning)(
                f"{status.f_favail} inodes are free of {status.f_files}",
                "delete small files; where there are many, make the file system with more inodes",
                name="inodes",
            )

    def socket(self) -> Iterator[Answer]:
        address = self._subject.address
        try:
            status = address.lstat()
        except FileNotFoundError:
            yield skipped(f"there is no {address}: see `daemon` below")
            return
        mode = stat.S_IMODE(status.st_mode)
        if not stat.S_ISSOCK(status.st_mode):
            yield fault(f"{address} is not a socket", "move it away, or configure another address")
        elif status.st_uid != 0:
            yield fault(f"{address} belongs to {_owner_of(status.st_uid)}, not to root", f"chown root:root {address}")
        elif mode & _OPEN_TO_OTHERS:
            yield fault(
                f"{address} has mode {mode:04o}: whoever opens it can end every lazy container of this node",
                f"chmod 0600 {address}",
            )
        else:
            yield ok(f"{address}, {_owner_of(status.st_uid)}, {mode:04o}")


def _owner_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def _gib(size: int) -> str:
    if not size:
        return "nothing"
    value, unit = size / (1 << 30), "GiB"
    if value < 1:
        value, unit = size / (1 << 20), "MiB"
    return f"{value:.1f} {unit}" if value < 100 else f"{value:.0f} {unit}"
