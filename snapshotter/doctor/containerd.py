"""containerd: whether it is there, knows this snapshotter, and asks it for layers."""

import os
from collections.abc import Iterator, Mapping
from glob import glob
from pathlib import Path
from typing import Any, Final

from snapshotter.containerd.channel import connected
from snapshotter.containerd.effective import effective
from snapshotter.containerd.finding import Found, find
from snapshotter.containerd.introspection import SNAPSHOTTER_TYPE, plugins
from snapshotter.containerd.settings import Complaint, Settings, complaints, read_settings
from snapshotter.doctor.examination import Once
from snapshotter.doctor.findings import Answer, Check, Group, Verdict, fault, note, of_error, ok, skipped, warning
from snapshotter.doctor.subject import Subject
from snapshotter.errors import ContainerdError, ContainerdUnreachable, SnapshotterError

OLDEST: Final = (1, 6)
SLACK_S: Final = 2.0
"""A boot time is told in whole seconds."""
RESTART: Final = "systemctl restart containerd (running containers go on)"

_VERDICTS: Final = {"error": Verdict.FAULT, "warning": Verdict.WARNING, "note": Verdict.NOTE}


class Containerd:
    """What the checks know of the node's containerd; every fact is asked for once."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._found = Once(self._find)
        self._tables: Once[Mapping[str, Any]] = Once(lambda: effective(self._found.get()))
        self._settings = Once(self._read)

    def pid(self) -> int | None:
        """The process; None if it cannot be seen.

        Raises:
            SnapshotterError: no containerd answers.
        """
        return self._found.get().pid

    def checks(self) -> list[Check]:
        """The checks of containerd."""
        return [
            Check(Group.CONTAINERD, "containerd", self._running),
            Check(Group.CONTAINERD, "configuration", self._configured),
            Check(Group.CONTAINERD, "plugin", self._loaded),
        ]

    def _find(self) -> Found:
        return find(self._subject.containerd)

    def _read(self) -> Settings:
        tables = self._tables.get()
        return read_settings(tables, self._found.get().version, self._subject.address)

    def _running(self) -> Iterator[Answer]:
        try:
            found = self._found.get()
        except ContainerdUnreachable as error:
            yield _unreachable(error, self._subject)
            return
        text = f"containerd {found.version} at {found.address}"
        if found.flavour != "containerd":
            text += f", that of {found.flavour}"
        if found.version[:2] < OLDEST:
            yield fault(f"{text}: too old", "update containerd to 1.7 or later")
        else:
            yield ok(text)
        configured = self._subject.config.containerd.address
        if configured != found.address:
            yield note(
                f"the daemon looks for manifests at {configured}, where this containerd is not: each pull asks the "
                "registry once more",
                f'set [containerd] address = "{found.address}" in the daemon\'s configuration',
                name="address",
            )

    def _configured(self) -> Iterator[Answer]:
        try:
            found = self._found.get()
        except SnapshotterError:
            yield skipped("no containerd answers")
            return
        try:
            settings = self._settings.get()
        except ContainerdError as error:
            yield of_error(error, "run this command where containerd runs, as root", Verdict.WARNING)
            return
        root = self._subject.config.root
        said = complaints(settings, found.version, self._subject.address, root)
        for complaint in said:
            yield _of_complaint(complaint, found)
        if not any(complaint.severity == "error" for complaint in said):
            yield ok(f"pods use {settings.plugin_name}, whose socket is the daemon's; layers are asked for one by one")
        yield from self._younger(found)

    def _younger(self, found: Found) -> Iterator[Answer]:
        """Configuration that was written after containerd has read it."""
        if found.pid is None or found.config_path is None:
            return
        began = process_start(self._subject.machine.proc, found.pid)
        younger = [
            path for path in _files(found.config_path, self._tables.get()) if path.stat().st_mtime > began + SLACK_S
        ]
        if younger:
            yield warning(
                f"{younger[0]} is younger than the containerd that runs, which reads it at its start only",
                RESTART,
                name="restart",
            )

    def _loaded(self) -> Iterator[Answer]:
        try:
            found, settings = self._found.get(), self._settings.get()
        except SnapshotterError:
            yield skipped("its configuration is not known")
            return
        name = settings.plugin_name
        if not name:
            yield skipped("no plugin is configured for the daemon's socket")
            return
        with connected(found.address) as channel:
            running = {plugin.id: plugin for plugin in plugins(channel, SNAPSHOTTER_TYPE)}
        if name not in running:
            yield fault(f"containerd runs without the plugin {name}, which its configuration has", RESTART)
        elif running[name].failure:
            yield fault(f"containerd could not load the plugin {name}: {running[name].failure}", RESTART)
        else:
            yield ok(f"containerd has loaded {name}")


def process_start(proc: Path, pid: int) -> float:
    """When a process began, in seconds since 1970. Raises OSError: it is gone.

    Source: proc(5): field 22 of /proc/pid/stat, in clock ticks since the boot that btime of /proc/stat tells. The name in
    field 2 may hold blanks and parentheses.
    """
    ticks = int((proc / str(pid) / "stat").read_text().rpartition(")")[2].split()[19])
    boot = next(line for line in (proc / "stat").read_text().splitlines() if line.startswith("btime "))
    return int(boot.split()[1]) + ticks / os.sysconf("SC_CLK_TCK")


def _files(config_path: Path, tables: Mapping[str, Any]) -> list[Path]:
    """The files that make up a configuration: the one that is named, and what it imports by name or pattern."""
    imports = tables.get("imports") or ()
    found = [config_path, *(Path(one) for name in imports for one in sorted(glob(str(config_path.parent / str(name)))))]
    return [path for path in found if path.is_file()]


def _unreachable(error: ContainerdUnreachable, subject: Subject) -> Answer:
    if subject.uid != 0 and "permission" in str(error):
        return skipped("containerd may be asked by root alone", "run this command as root (sudo)")
    return of_error(error, "start containerd, or name its socket with --containerd")


def _of_complaint(complaint: Complaint, found: Found) -> Answer:
    verdict = _VERDICTS[complaint.severity]
    if found.flavour == "docker" and "CRI" in complaint.what:
        verdict = Verdict.NOTE  # dockerd's own containerd has none, and needs none
    return Answer(verdict, complaint.what, complaint.advice, _subject_of(complaint))


def _subject_of(complaint: Complaint) -> str:
    """A name for the line, so that a script can tell the complaints apart."""
    for mark, name in (
        ("disable_snapshot_annotations", "annotations"),
        ("transfer service", "transfer service"),
        ("discard_unpacked_layers", "discarded layers"),
        ("CRI plugin", "CRI"),
        ("proxy plugin leads", "address"),
        ("is at", "address"),
        ("pods use", "pods"),
        ("capability", "capability"),
        ("kubelet looks", "image file system"),
        ("runtime", "runtime"),
    ):
        if mark in complaint.what:
            return name
    return "configuration"
