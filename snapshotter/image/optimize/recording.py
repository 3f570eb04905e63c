"""Which files a container opens and reads, in order of first access, as fanotify tells it.

The watching is done by `watch_program.py`, a process of its own.
"""

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

import trio

from snapshotter.errors import RecorderError
from snapshotter.image.optimize import watch_program

START_TIMEOUT_S: Final = 30.0
"""So long the program may take to begin, which on an idle machine it does in some hundredths."""
STOP_TIMEOUT_S: Final = 120.0
"""So long it may take to tell: for what waits in the kernel's queue each file is opened once."""

_PROGRAM: Final = Path(watch_program.__file__)
_PIECE: Final = 64 << 10
_GONE_S: Final = 5.0


class Recording:
    """What has been recorded of one container; made by `recording()`."""

    def __init__(self, program: subprocess.Popen[bytes], orders: int, words: int) -> None:
        """`program` is the one that watches, just started; `orders` and `words` are our ends of its pipes."""
        self._program = program
        self._orders = trio.lowlevel.FdStream(orders)
        self._words = trio.lowlevel.FdStream(words)
        self._stopped = False
        self.paths: tuple[str, ...] = ()
        """Files as the image names them, without a slash in front, in order of first access; known after `stop`."""
        self.lost = 0
        """Accesses that the kernel could not tell of: so many files may be missing, or more."""
        self.covers_all = True
        """Whether accesses by other mounts of the container's files are seen too."""

    @property
    def pid(self) -> int:
        """The process that watches."""
        return self._program.pid

    async def begin(self) -> None:
        """Return when every access from now on is recorded. Raises RecorderError."""
        data = b""
        with trio.move_on_after(START_TIMEOUT_S):
            while data.count(b"\0") < 2 and (piece := await self._words.receive_some(_PIECE)):
                data += piece
        word, _, rest = data.partition(b"\0")
        if word == b"refused":
            raise RecorderError(os.fsdecode(rest.rstrip(b"\0")))
        if word != b"ready":
            raise RecorderError(f"the program that watches files did not begin: {sys.executable} {_PROGRAM}")
        self.covers_all = rest == b"all\0"

    async def stop(self) -> None:
        """Stop; what happened before is in `paths` when this returns. A second call does nothing.

        Stop before the container's files are unmounted: an event that has not been told yet holds its file's mount.

        Raises:
            RecorderError: the program is gone or does not answer; nothing is known.
        """
        if self._stopped:
            return
        self._stopped = True
        data = bytearray()
        with trio.move_on_after(STOP_TIMEOUT_S) as waiting:
            with suppress(trio.BrokenResourceError):
                await self._orders.send_all(b".")
            while piece := await self._words.receive_some(_PIECE):
                data += piece
        self.kill()
        if waiting.cancelled_caught:
            raise RecorderError(
                f"the program that watches files did not tell them within {STOP_TIMEOUT_S:g} s and was stopped: "
                "does the daemon that serves the container's layers answer?"
            )
        *names, end, lost, rest = [b"", b"", *bytes(data).split(b"\0")]
        if end or rest or not lost:
            raise RecorderError(f"the program that watches files ended early, with {self._program.returncode}")
        self.paths = tuple(map(os.fsdecode, names[2:]))
        self.lost = int(lost)

    async def ended(self) -> None:
        """Wait for an end of the program that nobody asked for; not at the same time as `stop`.

        Raises:
            RecorderError: it has come; nothing is known.
        """
        await trio.lowlevel.wait_readable(self._words.fileno())
        await self.stop()

    def kill(self) -> None:
        """End the program whatever it does; nothing if it has ended."""
        self._stopped = True
        self._program.kill()
        with suppress(subprocess.TimeoutExpired):
            self._program.wait(_GONE_S)

    def close(self) -> None:
        """End the program and let go of its pipes."""
        self.kill()
        self._orders.close()
        self._words.close()


@asynccontextmanager
async def recording(pid: int) -> AsyncIterator[Recording]:
    """Record what is opened and read of the files of container process `pid`, which has been created, not started.

    In the block every access is seen: where the container's root is an overlay of its own, as a snapshot is, also by other mounts
    of it (in namespaces that the container makes, the runtime's own); else by the root's mount alone. Only regular files are
    recorded, and those on other file systems (/proc, volumes) are not. What the container itself made is, by its name: the image
    does not know it. A name is that of the image, also of a file or directory that was renamed before it was read, where the
    overlay remembers it.

    The container goes on as without it, but for one thing: until an access has been noted, which takes milliseconds, the mount by
    which the file was reached cannot be unmounted. That is felt by who binds a part of the root elsewhere and unmounts it at once.

    Raises:
        RecorderError: it cannot be watched; the message says what is missing.
    """
    argv = [sys.executable, "-I", "-S", os.fspath(_PROGRAM), str(pid), str(os.getpid())]
    theirs_orders, ours_orders = os.pipe2(os.O_CLOEXEC)
    ours_words, theirs_words = os.pipe2(os.O_CLOEXEC)
    try:
        # Not by trio: it starts processes from a thread, and with that thread the kernel would end the program. In a session of
        # its own, so that a terminal's Ctrl-C does not end it before it has told what it knows.
        program = subprocess.Popen(  # noqa: ASYNC220
            argv, stdin=theirs_orders, stdout=theirs_words, start_new_session=True
        )
    except OSError as error:
        os.close(ours_orders)
        os.close(ours_words)
        raise RecorderError(f"cannot start the program that watches files: {error.strerror}") from error
    finally:
        os.close(theirs_orders)
        os.close(theirs_words)
    record = Recording(program, ours_orders, ours_words)
    try:
        await record.begin()
        yield record
    finally:
        record.close()
