"""Work that ends in order when a signal says so: what it began is undone before the process ends."""

import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

import trio

from snapshotter.image.first_error import first_error

T = TypeVar("T")

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


async def heeding(work: Callable[[], Awaitable[T]], on_signal: Callable[[], None] = lambda: None) -> T | None:
    """What `work` returns; None if a signal came before its end, and it was cancelled; `on_signal` is called then.

    Raises:
        Exception: what `work` raised; of several at once the first that is ours.
    """
    done: list[T] = []
    # What whoever started this has had ignored (nohup) stays ignored.
    heeded = [number for number in ENDING if signal.getsignal(number) is not signal.SIG_IGN]
    try:
        with trio.open_signal_receiver(*heeded) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_heed, signals, nursery.cancel_scope, on_signal)
                done.append(await work())
                nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise first_error(group) from group
    return done[0] if done else None


async def _heed(signals: AsyncIterator[int], scope: trio.CancelScope, on_signal: Callable[[], None]) -> None:
    """Give up at the first signal; what tidies up afterwards is not disturbed by others."""
    async for _ in signals:
        if not scope.cancel_called:
            scope.cancel()
            on_signal()
