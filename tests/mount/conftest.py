"""A test server in a process of its own, overlays above it, and readers in yet other processes.

This process never touches the mount itself: a fault in the server would stop the test run.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from snapshotter.plane.fuse.kernel import detach_ours
from snapshotter.plane.mounts import detach, mounts_on

TOP = Path(__file__).parents[2]
PATIENCE_S = 30
PRELUDE = "import errno, json, os, stat, sys\n"


def run(*command: str | Path) -> str:
    """What a program prints; fails the test if it fails."""
    done = subprocess.run(command, capture_output=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    return done.stdout.decode(errors="surrogateescape")


def child(code: str, *arguments: str | Path, user: int | None = None) -> Any:
    """Run Python code in a fresh process, as another user where given, and return the JSON that it prints."""
    # The user changes inside: the interpreter itself may lie where only root can go.
    become = "" if user is None else f"os.setgroups([]); os.setgid({user}); os.setuid({user})\n"
    command = [sys.executable, "-I", "-S", "-c", PRELUDE + become + code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    return json.loads(done.stdout)


def start_child(code: str, *arguments: str | Path, stdin: int | None = None) -> subprocess.Popen[bytes]:
    """Start Python code in a fresh process."""
    command = [sys.executable, "-I", "-S", "-c", PRELUDE + code, *map(str, arguments)]
    return subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


@dataclass
class Served:
    """A running test server and where it mounted."""

    mount_point: Path
    state_dir: Path
    session: int
    process: subprocess.Popen[bytes]
    device: str = ""
    overlays: list[Path] = field(default_factory=list)

    def layer(self, number: int) -> Path:
        return self.mount_point / str(self.session) / "layers" / str(number)

    def command(self, line: str) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()
        return self.answer()

    def answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the server ended"
        return json.loads(line)

    def overlay(self, folder: Path, *numbers: int) -> Path:
        """A writable overlay of layers, topmost first."""
        for name in ("upper", "work", "merged"):
            (folder / name).mkdir(parents=True)
        lower = ":".join(str(self.layer(number)) for number in numbers)
        options = f"lowerdir={lower},upperdir={folder}/upper,workdir={folder}/work"
        run("mount", "-t", "overlay", "overlay", "-o", options, folder / "merged")
        self.overlays.append(folder / "merged")
        return folder / "merged"

    def stop(self) -> None:
        """End the process, as SIGKILL does; the mount stays."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()

    def clear(self) -> None:
        self.stop()
        for overlay in self.overlays:
            while mounts_on(overlay):
                detach(overlay)
        detach_ours(self.mount_point)


def start(folder: Path, session: int = 7) -> Served:
    """Start a server that mounts on `folder`/fuse."""
    mount_point, state_dir = folder / "fuse", folder / "state"
    state_dir.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "tests.mount.server", str(mount_point), str(state_dir), str(session)]
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(command, cwd=TOP, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)
    served = Served(mount_point, state_dir, session, process)
    try:
        served.device = served.answer()["ready"]
    except BaseException:
        served.clear()
        print((folder / "log").read_text())
        raise
    return served


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One server for the tests of a module that leave it as it was."""
    server = start(tmp_path_factory.mktemp("served"))
    yield server
    server.clear()


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Served]:
    """A server for a test that breaks it."""
    server = start(tmp_path)
    yield server
    server.clear()
