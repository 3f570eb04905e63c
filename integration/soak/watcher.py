"""Looks at a node from time to time: what its daemon and its keeper hold, what is mounted, what lies in root."""

import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from integration.harness.leftovers import descendants, loop_devices_of
from integration.harness.node import Node
from snapshotter.keeper.client import find

PAGE = os.sysconf("SC_PAGE_SIZE")
CONTENT = ("objects", "late", "partial", "unproven")


@dataclass(frozen=True, slots=True)
class Sample:
    """What was seen `at` seconds after the begin, of a daemon that had served for `age_s`."""

    at: float
    age_s: float
    figures: Mapping[str, float]


@dataclass
class Watcher:
    """Samples of one node. `age` says how long its daemon has served, below 0 while there is none."""

    node: Node
    age: Callable[[], float]
    began: float
    samples: list[Sample] = field(default_factory=list)
    _keeper: int = 0

    def run(self, stop: threading.Event, every_s: float) -> None:
        """Look until `stop`."""
        while not stop.wait(every_s):
            self.look()

    def look(self) -> None:
        """Take a sample, unless the daemon ends meanwhile."""
        age_s = self.age()
        if age_s < 0:
            return
        with suppress(OSError, RuntimeError):
            pid = self.node.daemon.process.pid
            daemon, cached = _process("daemon", pid), _open_content(pid, self.node.daemon.root)
            figures = {
                **daemon,
                "daemon: descriptors of cached files": cached,
                "daemon: other descriptors": daemon["daemon: descriptors"] - cached,
                "daemon's children": len(descendants({pid})) - 1,
                **_process("keeper", self._keeper_pid()),
                "mounts": len(self.node.mounts()),
                "loop devices": len(loop_devices_of(self.node.place.folder)),
                **_files(self.node.daemon.root),
            }
            self.samples.append(Sample(time.monotonic() - self.began, age_s, figures))

    def rows(self) -> list[dict[str, float]]:
        """All samples, for a file."""
        return [{"at": one.at, "age_s": one.age_s, **one.figures} for one in self.samples]

    def _keeper_pid(self) -> int:
        if not self._keeper or not Path(f"/proc/{self._keeper}").exists():
            keeper = find(self.node.daemon.run_dir)
            if keeper is None:
                raise ProcessLookupError
            with keeper:
                self._keeper = keeper.pid
        return self._keeper


def _process(name: str, pid: int) -> dict[str, float]:
    """Source: proc(5): statm counts pages, the second number is what is resident, the third what of it has a file."""
    process = Path(f"/proc/{pid}")
    _, resident, mapped, *_ = (int(pages) * PAGE for pages in (process / "statm").read_text().split())
    return {
        f"{name}: RSS, MB": resident / 1e6,
        f"{name}: without files, MB": (resident - mapped) / 1e6,
        f"{name}: descriptors": len(os.listdir(process / "fd")),
        f"{name}: threads": len(os.listdir(process / "task")),
    }


def _open_content(pid: int, root: Path) -> int:
    """How many files of the cache a process has open, also such as were deleted."""
    folders = tuple(f"{root}/{name}/" for name in CONTENT)
    found = 0
    for fd in os.scandir(f"/proc/{pid}/fd"):
        with suppress(OSError):
            target = os.readlink(fd.path)
            found += target.startswith(folders) and not os.path.isdir(fd.path)
    return found


def _files(root: Path) -> dict[str, float]:
    """Files of the cache and what they occupy, each once whatever its names; and files of every other kind."""
    seen: dict[int, int] = {}
    others = 0
    for top in os.scandir(root):
        if top.name == "snapshots":
            others += len(os.listdir(top.path))
        elif top.is_dir(follow_symlinks=False):
            for folder, _, names in os.walk(top.path):
                if top.name not in CONTENT:
                    others += len(names)
                    continue
                for name in names:
                    with suppress(OSError):
                        status = os.lstat(os.path.join(folder, name))
                        seen[status.st_ino] = status.st_blocks * 512
    return {
        "cached files": len(seen),
        "cached, MB": sum(seen.values()) / 1e6,
        "snapshots and files of layers": others,
    }
