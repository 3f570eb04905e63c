"""A node made of files: what the checks look at, below a directory of the test, and a daemon that says what a test wants."""

import os
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

from snapshotter.api import control_pb2 as pb
from snapshotter.config import CacheConfig, Config
from snapshotter.doctor.findings import Answer, Check, Verdict
from snapshotter.doctor.subject import Machine, Subject
from snapshotter.errors import SnapshotterError

MOUNTINFO = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
23 22 0:20 / /run rw,nosuid shared:2 - tmpfs tmpfs rw
"""


@dataclass
class Voice:
    """A scripted daemon: `answer` is its status, `failure` is raised instead."""

    answer: pb.StatusResponse = field(default_factory=pb.StatusResponse)
    names: list[str] = field(default_factory=list)
    failure: SnapshotterError | None = None
    asked: int = 0

    def status(self) -> pb.StatusResponse:
        self.asked += 1
        if self.failure is not None:
            raise self.failure
        return self.answer

    def images(self, most: int) -> list[str]:
        if self.failure is not None:
            raise self.failure
        return self.names[:most]


class World:
    """The directory `top` as the root of a machine; `subject()` is the node on it."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.proc = top / "proc"
        self.voice = Voice()
        self.write("proc/filesystems", "nodev\tfuse\nnodev\toverlay\n\terofs\n")
        self.write("proc/sys/kernel/osrelease", "6.12.1\n")
        self.write("proc/self/uid_map", "         0          0 4294967295\n")
        self.write("proc/self/mountinfo", MOUNTINFO)
        self.write("dev/loop-control", "")
        self.root = top / "r"
        self.run_dir = top / "n"
        self.socket = top / "s"
        for directory in (self.root, self.run_dir):
            directory.mkdir(mode=0o700)
        self.config = Config(root=self.root, run_dir=self.run_dir, cache=CacheConfig(min_free=0))

    def write(self, name: str, text: str) -> Path:
        """A file of the machine."""
        path = self.top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def process(
        self, pid: int, *, namespace: str = "mnt:[1]", mountinfo: str = MOUNTINFO, files: str = "1048576"
    ) -> None:
        """A process of the machine."""
        limits = "Limit                     Soft Limit           Hard Limit           Units     \n"
        self.write(f"proc/{pid}/limits", f"{limits}Max open files            1024                 {files}     files\n")
        self.write(f"proc/{pid}/mountinfo", mountinfo)
        link = self.proc / str(pid) / "ns/mnt"
        link.parent.mkdir()
        link.symlink_to(namespace)

    def subject(self, **other: Any) -> Subject:
        """The node; `other` are fields of `Subject`, or `machine_…` of `Machine`."""
        machine = Machine(self.top)
        for name in [name for name in other if name.startswith("machine_")]:
            machine = replace(machine, **{name.removeprefix("machine_"): other.pop(name)})
        values: dict[str, Any] = {
            "config": self.config,
            "config_path": None,
            "config_fault": "",
            "address": self.socket,
            "containerd": None,
            "images": (),
            "timeout_s": 10.0,
            "daemon": self.voice,
            "uid": os.geteuid(),
            "machine": machine,
        }
        return Subject(**{**values, **other})

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Somebody accepts connections at the daemon's socket."""
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(self.socket))
            self.socket.chmod(0o600)
            listener.listen(16)
            yield


def look(checks: Iterable[Check], name: str) -> list[Answer]:
    """What the check called `name` says."""
    (check,) = (check for check in checks if check.name == name)
    return list(check.look())


def verdicts(answers: Iterable[Answer], name: str = "") -> dict[str, Verdict]:
    """The verdicts by name; `name` is that of the check."""
    return {answer.name or name: answer.verdict for answer in answers}


def the_one(answers: Iterable[Answer]) -> Answer:
    """The only answer."""
    (answer,) = answers
    return answer


def failing(error: Exception) -> Callable[[], NoReturn]:
    """A look, or a question, that raises."""

    def raises() -> NoReturn:
        raise error

    return raises
