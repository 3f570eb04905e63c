"""A scratch folder of its own for everything that one node does, and its complete removal."""

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from integration.harness.leftovers import Traces, detach_mounts, kill_all, remove_cgroups

# The product refuses run directories longer than 20 bytes; "<temporary>/eXXXXXXXX/r" must fit.
LONGEST_TEMPORARY = 8
GONE_S = 60.0


@contextmanager
def scratch() -> Iterator["Scratch"]:
    """A folder with a short path, emptied of processes, mounts and files at the end, whatever happened inside."""
    top = tempfile.gettempdir()
    folder = Path(tempfile.mkdtemp(prefix="e", dir=top if len(top) <= LONGEST_TEMPORARY else "/tmp"))
    folder.chmod(0o711)
    place = Scratch(folder)
    try:
        with place.traces.marked():
            yield place
    finally:
        with undisturbed():
            place.clear()


class Scratch:
    """One scratch folder. `name` is unique on the machine and also names its control group."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # containerd takes no "_" at the end of a name, nor two.
        self.name = f"estargz-{folder.name.replace('_', 'U')}"
        self.traces = Traces(self.name, folder)

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    def clear(self) -> None:
        """Kill, detach and delete what was made here; what cannot be removed is an error that names it."""
        deadline = time.monotonic() + GONE_S
        while True:
            kill_all(self.name, self.folder)
            self._unlink_shim_sockets()
            detach_mounts(self.folder)
            remove_cgroups(self.name)
            # A killed process goes, and so do its control group and a loop device, when the kernel comes to it.
            if not (left := self.traces.left()) or time.monotonic() > deadline:
                break
            time.sleep(0.05)
        if left:
            message = f"the harness could not remove: {'; '.join(left)}; look at them, then delete {self.folder}"
            raise RuntimeError(message)
        shutil.rmtree(self.folder)

    def _unlink_shim_sockets(self) -> None:
        """A killed shim leaves its socket in containerd's fixed directory; the task's folder says which it is."""
        for note in self.folder.glob("*/state/io.containerd.runtime.v2.task/*/*/address"):
            Path(note.read_text().strip().removeprefix("unix://")).unlink(missing_ok=True)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Hold SIGINT and SIGTERM back, so that an impatient second Ctrl-C does not stop the cleaning up half way."""
    held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)


@contextmanager
def termination_unwinds() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into an exception, so that every context manager is left properly."""

    def leave(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def drop_caches(what: int = 3) -> None:
    """Write back, then forget clean page cache (1), dentries and inodes (2), or both (3).

    Source: Linux Documentation/admin-guide/sysctl/vm.rst, drop_caches.
    """
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text(str(what))
