"""Numbers of the gate's files, kept also when the disk is full: a later daemon must give the kernel the same ones.

They belong into `state.db`. Where that cannot be written, they go into a file of the run directory, which as a rule is in
memory and lasts as long as the mount does. Those count down from the top, so that the two never meet.
"""

import json
import logging
import os
import threading
from pathlib import Path
from typing import Final

from snapshotter.errors import StoreError
from snapshotter.plane.fuse.complaints import Complaints
from snapshotter.plane.fuse.inodes import GATE_FILE
from snapshotter.store.state import State
from snapshotter.store.state_gate import GateFile

EXTRA_NUMBERS: Final = "gate-files"
"""A file in the run directory, a line of JSON for each number."""

log = logging.getLogger(__name__)


class GateNumbers:
    """Fulfils the gate's `Numbers`; blocking, from any thread."""

    def __init__(self, state: State, extra: Path) -> None:
        """`extra` is read if it is there. Raises StoreError."""
        self._state = state
        self._path = extra
        self._lock = threading.Lock()  # guards the file and what is known of it
        self._extra = {(file.domain, file.name): file for file in _read(extra)}
        self._complaints = Complaints()

    def domains(self) -> dict[str, int]:
        """The number of every sharing domain."""
        return self._state.domains()

    def gate_files(self) -> list[GateFile]:
        """The files that have a number."""
        with self._lock:
            # The extra ones count first: what failed in the state may have been written after all, and the kernel was told these.
            return [*self._extra.values(), *self._state.gate_files()]

    def add_gate_file(self, domain: str, name: str, size: int) -> GateFile:
        """Give a file a number that outlives this process. Raises StoreError."""
        with self._lock:
            if (known := self._extra.get((domain, name))) is not None:
                return known
            try:
                return self._state.add_gate_file(domain, name, size)
            except StoreError as error:
                self._complaints.about("recording the number of a file that is served through FUSE", error)
            lowest = min((file.number for file in self._extra.values()), default=GATE_FILE)
            made = GateFile(lowest - 1, domain, name, size)
            self._append(made)
            self._extra[domain, name] = made
            return made

    def _append(self, file: GateFile) -> None:
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
            fd = os.open(self._path, flags, 0o600)
            try:
                # A line before this one may have been cut off.
                line = b"\n" + json.dumps(file).encode() + b"\n"
                if os.write(fd, line) != len(line):
                    raise StoreError(f"no room to write {self._path}: free space on its file system")
            finally:
                os.close(fd)
        except OSError as error:
            raise StoreError(f"cannot write {self._path}: {error.strerror}") from error


def _read(path: Path) -> list[GateFile]:
    """What was written; a last line that was cut off was never answered. Raises StoreError."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}") from error
    found = []
    for line in lines:
        try:
            number, domain, name, size = json.loads(line)
            found.append(GateFile(int(number), str(domain), str(name), int(size)))
        except (ValueError, TypeError):
            continue
    return found
