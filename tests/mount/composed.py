"""Overlays as the erofs plane composes them, over the test server's gate."""

import itertools
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from snapshotter.plane.erofs.probing import probe
from snapshotter.plane.mounts import detach, mounts_on
from tests.mount import gate_world
from tests.mount.conftest import Served, run, start_child
from tests.mount.test_erofs_images import mount_file

OPTIONS = "metacopy=on,redirect_dir=on,index=off"
END_S = 30.0


@dataclass
class Composed:
    """The layer's image, mounted, and overlays of it and of the places where contents are looked for."""

    served: Served
    folder: Path
    overlays: list[Path] = field(default_factory=list)
    children: list[subprocess.Popen[bytes]] = field(default_factory=list)
    numbers: Iterator[int] = field(default_factory=itertools.count)

    @property
    def image(self) -> Path:
        return self.folder / "image"

    def mount(self) -> None:
        source = self.folder / "image.erofs"
        source.write_bytes(gate_world.image())
        self.image.mkdir()
        mount_file(source, self.image)

    def overlay(self, *, writable: bool = True) -> Path:
        """A container's root."""
        folder = self.folder / f"overlay-{next(self.numbers)}"
        for name in ("upper", "work", "merged"):
            (folder / name).mkdir(parents=True)
        session = self.served.mount_point / str(self.served.session)
        state = self.served.state_dir
        data = (state / "objects", session / "gate", state / "late", session / "fail")
        options = f"{OPTIONS},lowerdir={'::'.join(map(str, (self.image, *data)))}"
        if writable:
            options += f",upperdir={folder}/upper,workdir={folder}/work"
        run("mount", "-t", "overlay", "overlay", "-o", options, folder / "merged")
        self.overlays.append(folder / "merged")
        return folder / "merged"

    def start(self, code: str, *arguments: str | Path) -> subprocess.Popen[bytes]:
        """Start a process that is killed at the end at the latest."""
        process = start_child(code, *arguments, stdin=subprocess.PIPE)
        self.children.append(process)
        return process

    def content(self, path: str, top: str = "objects") -> Path:
        """Where the content of a file lies, or would lie."""
        return gate_world.place_in(self.served.state_dir, top, gate_world.content_name(path))

    def lookups(self, path: str) -> int:
        """How often the kernel asked the gate for the content of a file."""
        count: int = self.served.command(f"count lookup {gate_world.content_name(path)}")
        return count

    def waiting(self, path: str) -> int:
        """How many of these were not answered yet."""
        count: int = self.served.command(f"waiting {gate_world.content_name(path)}")
        return count

    def clear(self) -> None:
        for process in self.children:
            process.kill()
            # One that cannot be killed goes with the server.
            with suppress(subprocess.TimeoutExpired):
                process.wait(END_S)
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()
        for place in (*self.overlays, self.image):
            while mounts_on(place):
                detach(place)


@contextmanager
def composed(served: Served, folder: Path) -> Iterator[Composed]:
    """An image that is mounted meanwhile; skips the test where the machine does not have what it takes."""
    trial = folder / "trial"
    for name in ("root", "run"):
        (trial / name).mkdir(parents=True)
    found = probe(trial / "root", trial / "run")
    if not found.works:
        pytest.skip(f"this machine does not run the erofs plane: {found.reason}")
    made = Composed(served, folder)
    try:
        made.mount()
        yield made
    finally:
        made.clear()
