"""What a daemon leaves behind when it dies, and what the next one makes of it.

A fatal signal writes the stacks of all threads into `<run>/crash`, and so does an error that ends the daemon: it tells
a crash from a kill, and the next start puts it into the log, where an admin finds it.
"""

import faulthandler
import logging
import os
import sys
import time
import traceback
from collections.abc import Collection
from pathlib import Path
from typing import Final, TextIO

from snapshotter.errors import SnapshotterError
from snapshotter.plane.fuse.in_hand import DEATHS_NAME, IN_HAND_NAME, Deaths, InHand, Request, read_death

CRASH_NAME: Final = "crash"
LONGEST_SHOWN: Final = 16 << 10

log = logging.getLogger(__name__)


class LastWords:
    """Reads what the daemon before left in `run_dir`, then begins to note for the next one."""

    def __init__(self, run_dir: Path) -> None:
        crash = run_dir / CRASH_NAME
        try:
            words = crash.read_text(errors="replace")
        except OSError:
            words = ""
        self.crashed = bool(words.strip())
        if self.crashed:
            log.error("the daemon before crashed:\n%s", words[:LONGEST_SHOWN].rstrip())
        try:
            crash.unlink(missing_ok=True)
            self._file: TextIO = open(os.open(crash, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w")  # noqa: SIM115
        except OSError as error:
            # To standard error instead, where the next daemon does not find it.
            log.warning("cannot write %s: %s", crash, error.strerror)
            self._file = sys.stderr
        faulthandler.enable(self._file)
        self._notes = run_dir / IN_HAND_NAME
        self._deaths = Deaths.load(run_dir / DEATHS_NAME)
        self._in_hand: InHand | None = None

    def convicted(self, died_ns: int | None) -> frozenset[Request]:
        """The requests of which the last daemons died, one after the other. `died_ns`: the last one's end, by CLOCK_MONOTONIC."""
        now_s = time.clock_gettime(time.CLOCK_BOOTTIME)
        self._deaths.add(read_death(self._notes, crashed=self.crashed, died_ns=died_ns, now_s=now_s))
        return self._deaths.convicted()

    def begin(self) -> InHand:
        """The notes of this process."""
        try:
            self._in_hand = InHand(self._notes)
        except OSError as error:
            log.warning("cannot write %s, so a request that ends this daemon will not be found: %s", self._notes, error)
            self._in_hand = InHand(None)
        return self._in_hand

    def live(self) -> None:
        """This daemon serves: whatever the ones before died of is over."""
        self._deaths.forget()

    def error(self, error: BaseException) -> None:
        """An error ends this daemon. One of ours is no crash: what it had in hand is not to blame."""
        if isinstance(error, SnapshotterError):
            if self._in_hand is not None:
                self._in_hand.clean()
            return
        traceback.print_exception(error, file=self._file)
        self._file.flush()


def report(convicted: Collection[Request], count: int) -> None:
    """Tell the log of requests that were refused."""
    log.error(
        "%d requests were answered with an I/O error, because the last daemons died of them: %s. Please report this, with "
        "the crash above it in this log",
        count,
        "; ".join(f"operation {one.opcode} on inode {one.inode:#x} ({one.argument:#x})" for one in sorted(convicted)),
    )
