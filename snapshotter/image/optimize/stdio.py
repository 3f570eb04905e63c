"""A container's input and output: FIFOs that containerd's shim opens, carried to and from this process's own streams."""

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import trio

from snapshotter.containerd.tasks import Pipes, Task
from snapshotter.image.optimize.terminal import Screen
from snapshotter.image.places.disk import disk_errors

_PIECE = 64 << 10
_LOOK_S = 0.01
_LINE_MAX = 1 << 20
"""How much of a line is kept to look for a text in it."""


@dataclass(frozen=True, slots=True)
class Streams:
    """Descriptors of this process that a container's streams are carried to and from; `stdin` None: there is no input."""

    stdin: int | None
    stdout: int
    stderr: int


class LineWatch:
    """Looks for a text in what passes, line by line; the end of a line need not have come."""

    def __init__(self, text: str) -> None:
        self.seen = trio.Event()
        self._text = text.encode()

    def stream(self) -> Callable[[bytes], None]:
        """What looks at the next bytes of one more stream, whose lines are its own."""
        rest = b""

        def feed(data: bytes) -> None:
            nonlocal rest
            if not self._text or self.seen.is_set():
                return
            rest += data
            if any(self._text in line for line in rest.split(b"\n")):
                self.seen.set()
            rest = rest.rpartition(b"\n")[2][-max(_LINE_MAX, len(self._text)) :]

        return feed


@dataclass(slots=True)
class Stdio:
    """The FIFOs of one container; usable after `open_stdio`, until `close`."""

    pipes: Pipes
    _streams: Streams
    _watch: LineWatch
    _outputs: dict[int, int]
    _screen: Screen
    _ended: trio.Event = field(default_factory=trio.Event)
    _running: int = 0
    _unended: set[int] = field(default_factory=set)

    def begin(self, nursery: trio.Nursery, task: Task) -> None:
        """Carry in tasks of `nursery`; `task` is told when there is no more input."""
        self._running = len(self._outputs)
        for source, target in self._outputs.items():
            nursery.start_soon(self._carry_out, source, target, self._watch.stream())
        if self._streams.stdin is not None:
            nursery.start_soon(self._carry_in, self._streams.stdin, task)

    async def drained(self) -> None:
        """Return when all that the container wrote has been passed on; the shim closes its ends at the task's deletion."""
        await self._ended.wait()

    def close(self) -> None:
        """Close our ends; whoever writes next to where the container wrote is at the beginning of a line of the usual screen."""
        if put_back := self._screen.put_back():
            _shown(self._streams.stdout, put_back)
        for target in self._unended:
            _shown(target, b"\n")
        self._unended = set()
        for fd in self._outputs:
            os.close(fd)
        self._outputs = {}

    async def _carry_out(self, source: int, target: int, watch: Callable[[bytes], None]) -> None:
        shown = True
        while True:
            await trio.lowlevel.wait_readable(source)
            try:
                data = os.read(source, _PIECE)
            except BlockingIOError:
                continue
            if not data:
                break
            watch(data)
            # The container's files are what this is about; nobody has to look at its words.
            shown = shown and await trio.to_thread.run_sync(_shown, target, data, abandon_on_cancel=True)
            if shown:
                self._after(target, data)
        self._running -= 1
        if not self._running:
            self._ended.set()

    def _after(self, target: int, data: bytes) -> None:
        """Remember how what was shown leaves the place where it was shown."""
        if self.pipes.terminal:
            self._screen.feed(data)
        if data.endswith(b"\n"):
            self._unended.discard(target)
        else:
            self._unended.add(target)

    async def _carry_in(self, source: int, task: Task) -> None:
        target = await _read_by_somebody(Path(self.pipes.stdin))
        try:
            while data := await _read(source):
                while data:
                    await trio.lowlevel.wait_writable(target)
                    with suppress(BlockingIOError):
                        data = data[os.write(target, data) :]
        except BrokenPipeError:
            return  # the container has ended
        finally:
            os.close(target)
        await task.close_stdin()


def open_stdio(place: Path, streams: Streams, watch: LineWatch, *, terminal: bool) -> Stdio:
    """Make FIFOs in the directory `place` and open our ends of what comes out, so that neither side waits for the other.

    Raises:
        StoreError: no room, or no FIFOs there.
    """
    names = {"stdout": streams.stdout} if terminal else {"stdout": streams.stdout, "stderr": streams.stderr}
    outputs: dict[int, int] = {}
    with disk_errors(place):
        for name, target in names.items():
            os.mkfifo(place / name, 0o600)
            outputs[os.open(place / name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)] = target
        if streams.stdin is not None:
            os.mkfifo(place / "stdin", 0o600)
    pipes = Pipes(
        stdin="" if streams.stdin is None else str(place / "stdin"),
        stdout=str(place / "stdout"),
        stderr="" if terminal else str(place / "stderr"),
        terminal=terminal,
    )
    return Stdio(pipes, streams, watch, outputs, Screen())


async def _read_by_somebody(fifo: Path) -> int:
    """A descriptor to write to a FIFO, once it is open for reading: what is written before is gone when we close it first.

    The shim opens it some time after it has said that the task is there. Source: fifo(7).
    """
    while True:
        try:
            return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
        await trio.sleep(_LOOK_S)


async def _read(source: int) -> bytes:
    """The next bytes of our input, b"" at its end. Its mode is left alone: others share it."""
    with suppress(PermissionError):  # a file, which never makes anybody wait
        await trio.lowlevel.wait_readable(source)
    try:
        return await trio.to_thread.run_sync(os.read, source, _PIECE, abandon_on_cancel=True)
    except OSError:
        return b""  # a terminal whose other end is gone


def _shown(target: int, data: bytes) -> bool:
    """Write it all; False where nobody takes it any more."""
    try:
        while data:
            data = data[os.write(target, data) :]
    except OSError:
        return False
    return True
