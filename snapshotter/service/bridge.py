"""The one way from a gRPC thread to the trio loop, with a deadline on both sides."""

from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import TypeVar, TypeVarTuple

import trio

from snapshotter.errors import DaemonUnreachable

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

# The thread waits so much longer than the task may take: for a loop that is busy, not for one that has died.
_GRACE_S = 5.0
_STOPPING = "the daemon is stopping: ask again when it is back"


class Bridge:
    """Runs async functions on the trio loop whose token it holds; called from other threads only."""

    def __init__(self, token: trio.lowlevel.TrioToken, grace_s: float = _GRACE_S) -> None:
        self._token = token
        self._grace_s = grace_s

    def call(self, function: Callable[[*Ts], Awaitable[T]], *args: *Ts, timeout_s: float) -> T:
        """Run `function` on the loop and return what it returns.

        `trio.from_thread.run` has no deadline of its own: a loop that hangs would keep the thread for ever, and one
        that ends drops calls that it has not begun.

        Raises:
            TimeoutError: no answer within `timeout_s`; the function was cancelled, or the loop hangs.
            DaemonUnreachable: the loop is ending.
            Exception: whatever `function` raised.
        """
        answer: Future[T] = Future()

        async def bounded() -> T:
            with trio.fail_after(timeout_s):
                return await function(*args)

        def begin() -> None:
            if not answer.set_running_or_notify_cancel():
                return  # the thread has given up meanwhile
            try:
                trio.lowlevel.spawn_system_task(_answered, bounded, answer, name=function)
            except RuntimeError:  # the loop takes no tasks any more; raised on, it would be an internal error of trio
                answer.set_exception(DaemonUnreachable(_STOPPING))

        try:
            self._token.run_sync_soon(begin)
        except trio.RunFinishedError:
            raise DaemonUnreachable(_STOPPING) from None
        try:
            return answer.result(timeout_s + self._grace_s)
        except trio.TooSlowError:
            raise TimeoutError(f"no answer within {timeout_s:g} s") from None
        except TimeoutError:
            if not answer.cancel() and answer.done():
                raise  # the function's own
            raise TimeoutError(f"the loop did not answer within {timeout_s + self._grace_s:g} s") from None


async def _answered(function: Callable[[], Awaitable[T]], answer: "Future[T]") -> None:
    """Put the outcome of `function` into `answer`, whatever it is: an error in a system task would end the loop."""
    try:
        result = await function()
    except trio.Cancelled:
        answer.set_exception(DaemonUnreachable(_STOPPING))
        raise
    except BaseException as error:
        answer.set_exception(error)
        if not isinstance(error, Exception):
            raise
    else:
        answer.set_result(result)
