"""What pyfuse3 sees as its `trio`: the real one, with two corrections.

pyfuse3 waits until the connection is readable and then reads it while holding the interpreter's lock. If the request
vanishes in between (its process was killed), a blocking read stops every thread of the daemon until the next request,
and a non-blocking one ends `pyfuse3.main` with EAGAIN. pyfuse3 looks its `trio` up as a module attribute on purpose,
so that it can be replaced; we replace two names of it.
"""

import select
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pyfuse3
import trio


class _Lowlevel:
    """`trio.lowlevel` whose `wait_readable` returns only when a read right after it finds something."""

    def __init__(self) -> None:
        self._polls: dict[int, select.poll] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(trio.lowlevel, name)

    async def wait_readable(self, fd: int) -> None:
        poll = self._polls.get(fd)
        if poll is None:
            poll = self._polls[fd] = select.poll()
            poll.register(fd, select.POLLIN)
        # Asking first saves two system calls and a turn of the event loop when requests come in a row. Other tasks
        # are not starved: pyfuse3 takes a trio.Lock before each wait, and that yields.
        while not poll.poll(0):
            await trio.lowlevel.wait_readable(fd)


class _Nursery:
    """A nursery whose tasks outlive a read that found nothing."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery

    def __getattr__(self, name: str) -> Any:
        return getattr(self._nursery, name)

    def start_soon(self, function: Callable[..., Awaitable[Any]], *args: Any, name: object = None) -> None:
        self._nursery.start_soon(_until_done, function, args, name=name)


class GuardedTrio:
    """Stands in for the module `trio` inside pyfuse3."""

    def __init__(self) -> None:
        self.lowlevel = _Lowlevel()

    def __getattr__(self, name: str) -> Any:
        return getattr(trio, name)

    @asynccontextmanager
    async def open_nursery(self) -> AsyncIterator[_Nursery]:
        async with trio.open_nursery() as nursery:
            yield _Nursery(nursery)


def install() -> None:
    """Make pyfuse3 use `GuardedTrio` from now on."""
    vars(pyfuse3)["trio"] = GuardedTrio()


def uninstall() -> None:
    """Give pyfuse3 the real trio back."""
    vars(pyfuse3)["trio"] = trio


async def _until_done(function: Callable[..., Awaitable[Any]], args: tuple[Any, ...]) -> None:
    while True:
        try:
            await function(*args)
        except BlockingIOError:
            # The request went away between poll and read. pyfuse3's count of tasks still counts this one, so it goes
            # on; the buffer that it had (1 MiB, never touched) is lost.
            continue
        return
