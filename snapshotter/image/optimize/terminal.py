"""Our terminal while a container has it: keys go there unchanged, and the container's follows its size."""

import os
import re
import signal
import termios
import tty
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress

import trio

from snapshotter.errors import ConfigError

_MODES = re.compile(rb"\x1b\[\?([0-9;]{1,40})([hl])")
_LONGEST = 44
"""Characters of the longest sequence of that kind."""

_ON_AT_FIRST = 25
_UNUSUAL = (1000, 1002, 1003, 1006, 2004, 1, 47, 1047, 1049)
"""Modes that outlast the program that asked for them, in the order in which they are left: the mouse and what is pasted come as
characters, other cursor keys, the alternate screen. 25 is the cursor. Source: Xterm Control Sequences, DEC private mode set."""


class Screen:
    """What a program makes of a terminal that it may not get to put back, since it is killed in the middle."""

    def __init__(self) -> None:
        self._on: dict[int, bool] = {}
        self._rest = b""

    def feed(self, data: bytes) -> None:
        """Look at what the terminal is sent next."""
        data = self._rest + data
        end = 0
        for found in _MODES.finditer(data):
            end = found.end()
            for number in filter(None, found[1].split(b";")):
                self._on[int(number)] = found[2] == b"h"
        self._rest = data[end:][-_LONGEST:]

    def put_back(self) -> bytes:
        """What puts the terminal back; nothing for one that is as it was: to leave a screen that is not shown moves the cursor."""
        modes = [b"\x1b[?%dl" % number for number in _UNUSUAL if self._on.get(number)]
        if not self._on.get(_ON_AT_FIRST, True):
            modes.append(b"\x1b[?%dh" % _ON_AT_FIRST)
        self._on = {}
        # Colours, too: whoever leaves such a thing behind has used some.
        return b"".join(modes) + b"\x1b[0m" if modes else b""


def terminal_size(fd: int) -> tuple[int, int] | None:
    """Columns and rows; None of what is no terminal, or one that does not know."""
    try:
        size = os.get_terminal_size(fd)
    except OSError:
        return None
    return (size.columns, size.lines) if size.columns and size.lines else None


def check_terminal(fd: int) -> None:
    """Refuse what is no terminal. Raises ConfigError."""
    if not os.isatty(fd):
        raise ConfigError("--terminal: standard input is no terminal; leave it out, or run this in one")


@contextmanager
def raw(fd: int) -> Iterator[None]:
    """Keys are passed on as they are, signals' too, while the block runs; the terminal is as before when it ends."""
    before = termios.tcgetattr(fd)
    try:
        tty.setraw(fd)
        yield
    finally:
        # A terminal that is gone needs nothing. Not TCSADRAIN: it waits, perhaps for somebody who will never read.
        with suppress(termios.error):
            termios.tcsetattr(fd, termios.TCSANOW, before)


async def follow_size(fd: int, tell: Callable[[int, int], Awaitable[None]]) -> None:
    """Tell columns and rows now and whenever they change, until cancelled."""
    with trio.open_signal_receiver(signal.SIGWINCH) as changes:
        size = terminal_size(fd)
        if size is not None:
            await tell(*size)
        async for _ in changes:
            size = terminal_size(fd)
            if size is not None:
                await tell(*size)
