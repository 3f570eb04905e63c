"""Which requests of the kernel a daemon had in hand when it died: kept in shared memory that outlives it.

The kernel gives a dead daemon's requests to the next one. If one of them is what killed it, that one dies of it too, and
every one after. So each handler notes its request in a mapped file before it begins and wipes the note when it is
done, and the daemon that comes next looks at what was left. What was in hand at several deaths in a row is a suspect,
and is answered with an error before anything else is done.

    file       32 bytes: completed u64, last begun (slot) u64, clean u64, unused; then slots of 32 bytes:
    slot       opcode u64 (0: free), inode u64, argument u64, begun u64 (CLOCK_MONOTONIC, ns)

In the byte order of the machine: nobody else reads it.
"""

import json
import logging
import mmap
import os
import time
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple, Self

from snapshotter.plane.fuse.protocol import (
    OP_GETXATTR,
    OP_LOOKUP,
    OP_READ,
    OP_READDIR,
    OP_READDIRPLUS,
    OPCODES,
)

IN_HAND_NAME: Final = "in-hand"
DEATHS_NAME: Final = "deaths"
"""Both in the run directory."""

DEATHS: Final = 3
"""So many deaths in a row with the same request in hand convict it."""
SUDDEN_NS: Final = 50_000_000
"""A daemon that was killed, and did not crash, is taken for a victim of the request that it began last, if that was at most so
long before its death. A kill from outside hits a request that waits at any time; three in a row within this time none."""
ROW_S: Final = 3600.0
"""Deaths that lie further apart do not belong together. Long: who starts daemons may take minutes between two attempts, and a row
ends by itself when one serves for some seconds."""

SLOTS: Final = 8192
_WORDS: Final = 4
_SIZE: Final = 8 * _WORDS * (SLOTS + 1)
_COMPLETED, _LAST, _CLEAN = range(3)
_U64: Final = (1 << 64) - 1

log = logging.getLogger(__name__)


class Request(NamedTuple):
    """A request as it can be told apart from others; `argument` is an offset, or the checksum of a name."""

    opcode: int
    inode: int
    argument: int


def argument_of(opcode: int, value: object) -> int:
    """What tells requests of one kind for one inode apart: the second word of a handler's arguments."""
    if opcode in (OP_LOOKUP, OP_GETXATTR) and isinstance(value, bytes):
        return zlib.crc32(value)
    if opcode in (OP_READ, OP_READDIR, OP_READDIRPLUS) and isinstance(value, int):
        return value
    return 0


class InHand:
    """The notes of this process. Used on the trio thread, by every handler: short on purpose."""

    def __init__(self, path: Path | None) -> None:
        """Begin with none in hand; `path` is made anew, whatever lies there. None: nobody will read it. Raises OSError."""
        self._map = mmap.mmap(-1, _SIZE) if path is None else _new_file(path)
        self._words = memoryview(self._map).cast("Q")
        self._free = list(range(SLOTS * _WORDS, 0, -_WORDS))

    def begin(self, name: str, inode: object = 0, value: object = None, *_: object) -> int:
        """Note a request before it is handled, by the handler's name and arguments; returns what `end` is to be given."""
        opcode = OPCODES.get(name, 0)
        if not opcode or not self._free:
            return 0
        slot = self._free.pop()
        words = self._words
        # statfs names no inode.
        words[slot + 1] = inode & _U64 if isinstance(inode, int) else 0
        words[slot + 2] = argument_of(opcode, value) & _U64
        words[slot + 3] = time.monotonic_ns()
        words[slot] = opcode
        words[_LAST] = slot
        return slot

    def end(self, slot: int) -> None:
        """Wipe the note of a request that was handled."""
        if slot:
            self._words[slot] = 0
            self._words[_COMPLETED] += 1
            self._free.append(slot)

    def clean(self) -> None:
        """This process ends because it wants to: nothing that it has in hand is to blame."""
        self._words[_CLEAN] = 1


def _new_file(path: Path) -> mmap.mmap:
    path.unlink(missing_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        # Blocks that exist: a full disk must not end the process by SIGBUS at the first note.
        os.posix_fallocate(fd, 0, _SIZE)
        return mmap.mmap(fd, _SIZE)
    except OSError:
        # One of the wrong size would be read as no death at all; none is the same.
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)


@dataclass(frozen=True, slots=True)
class Death:
    """How a daemon ended. `last` was begun `after_last_ns` before; None: nothing was begun, or the time is not known."""

    at_s: float
    crashed: bool
    in_hand: frozenset[Request]
    last: Request | None
    after_last_ns: int | None

    def suspects(self) -> frozenset[Request]:
        """What may have caused it."""
        if self.crashed:
            return self.in_hand
        sudden = self.after_last_ns is not None and 0 <= self.after_last_ns <= SUDDEN_NS
        return frozenset([self.last]) & self.in_hand if self.last is not None and sudden else frozenset()


def read_death(path: Path, *, crashed: bool, died_ns: int | None, now_s: float) -> Death | None:
    """What the process that wrote `path` had in hand when it died, at `died_ns` (CLOCK_MONOTONIC); None if it ended by itself."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    if len(data) != _SIZE:
        return None
    words = memoryview(data).cast("Q")
    if words[_CLEAN]:
        return None
    found = {
        slot: Request(words[slot], words[slot + 1], words[slot + 2])
        for slot in range(_WORDS, len(words), _WORDS)
        if words[slot]
    }
    last_slot = words[_LAST]
    last = found.get(last_slot)
    after = None if last is None or died_ns is None else died_ns - words[last_slot + 3]
    return Death(now_s, crashed, frozenset(found.values()), last, after)


class Deaths:
    """The last deaths in a row, in a small file beside the notes. Clocks are CLOCK_BOOTTIME in seconds."""

    def __init__(self, path: Path, deaths: tuple[Death, ...] = ()) -> None:
        self._path = path
        self.row = deaths

    @classmethod
    def load(cls, path: Path) -> Self:
        """What an earlier process wrote; none if there is nothing to be read."""
        try:
            return cls(path, tuple(_decode(fields) for fields in json.loads(path.read_bytes())))
        except (OSError, ValueError, KeyError, TypeError):
            return cls(path)

    def add(self, death: Death | None) -> None:
        """Note how the last process ended; None, no death, ends the row."""
        row = [*self.row, death] if death is not None else []
        self.row = tuple(one for one in row if death is not None and death.at_s - one.at_s <= ROW_S)[-DEATHS:]
        self._save()

    def convicted(self) -> frozenset[Request]:
        """The request that each of the last deaths is put down to, if there is one.

        Of several that were in hand each time the one that was begun last most often; if it was another, that one is not in
        hand any more at the next death. So not all who wait for a registry are refused for one.
        """
        if len(self.row) < DEATHS:
            return frozenset()
        common = frozenset.intersection(*(death.suspects() for death in self.row))
        last = Counter(death.last for death in self.row if death.last in common)
        return frozenset(sorted(common, key=lambda one: (-last[one], one))[:1])

    def forget(self) -> None:
        """The row has ended: this process serves, or what was to blame has its answer."""
        self.row = ()
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("cannot remove %s: %s", self._path, error.strerror)

    def _save(self) -> None:
        aside = self._path.with_suffix(".tmp")
        try:
            aside.write_text(json.dumps([_encode(death) for death in self.row]))
            aside.replace(self._path)
        except OSError as error:
            log.warning("cannot write %s: %s", self._path, error.strerror)


def _encode(death: Death) -> dict[str, object]:
    return {
        "at_s": death.at_s,
        "crashed": death.crashed,
        "in_hand": sorted(death.in_hand),
        "last": death.last,
        "after_last_ns": death.after_last_ns,
    }


def _decode(fields: dict[str, object]) -> Death:
    in_hand, last, after = fields["in_hand"], fields["last"], fields["after_last_ns"]
    if not isinstance(in_hand, list) or not isinstance(fields["at_s"], float):
        raise TypeError
    return Death(
        fields["at_s"],
        bool(fields["crashed"]),
        frozenset(Request(*one) for one in in_hand),
        Request(*last) if isinstance(last, list) else None,
        after if isinstance(after, int) else None,
    )
