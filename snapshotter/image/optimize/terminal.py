"""Our terminal while a container has it: keys go there unchanged, and the container's follows its size."""

import os
import signal
import termios
import tty
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress

import trio

from snapshotter.errors import ConfigError


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
