"""From a thread to the trio loop and back."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar, cast

import pytest
import trio
import trio.testing

from snapshotter.errors import DaemonUnreachable, RegistryDenied
from snapshotter.service.bridge import Bridge

T = TypeVar("T")


def from_thread(work: Callable[[Bridge], T]) -> T:
    """Run `work` in a thread beside a trio loop; time on the loop passes by itself."""

    async def main() -> T:
        bridge = Bridge(trio.lowlevel.current_trio_token())
        return await trio.to_thread.run_sync(work, bridge)

    return trio.run(main)


async def double(number: int) -> int:
    """A function with something to wait for."""
    await trio.lowlevel.checkpoint()
    return number * 2


def test_an_answer_comes_back() -> None:
    assert from_thread(lambda bridge: bridge.call(double, 21, timeout_s=30)) == 42


def test_errors_come_back_and_the_loop_goes_on() -> None:
    async def refuse() -> None:
        raise RegistryDenied("no")

    async def time_out() -> None:
        raise TimeoutError("its own")

    def work(bridge: Bridge) -> int:
        with pytest.raises(RegistryDenied):
            bridge.call(refuse, timeout_s=30)
        with pytest.raises(TimeoutError, match="its own"):
            bridge.call(time_out, timeout_s=30)
        return bridge.call(double, 1, timeout_s=30)

    assert from_thread(work) == 2


def test_a_deadline_cancels_the_function() -> None:
    cancelled = threading.Event()

    async def wait() -> None:
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    def work(bridge: Bridge) -> None:
        with pytest.raises(TimeoutError, match="within 0 s"):
            bridge.call(wait, timeout_s=0)

    from_thread(work)
    assert cancelled.is_set()


def test_a_loop_that_hangs_is_not_waited_for() -> None:
    release = threading.Event()
    blocked = threading.Event()

    async def main() -> None:
        bridge = Bridge(trio.lowlevel.current_trio_token(), grace_s=0)
        with ThreadPoolExecutor(1) as pool:
            call = pool.submit(ask, bridge)
            blocked.wait(30)  # the loop answers nobody meanwhile
            call.result(30)

    def ask(bridge: Bridge) -> None:
        blocked.set()
        with pytest.raises(TimeoutError, match="the loop did not answer"):
            bridge.call(double, 1, timeout_s=0.001)
        release.set()

    trio.run(main)
    assert release.is_set()


def test_a_loop_that_ended_says_so() -> None:
    async def main() -> trio.lowlevel.TrioToken:
        return trio.lowlevel.current_trio_token()

    bridge = Bridge(trio.run(main))
    with pytest.raises(DaemonUnreachable, match="stopping"):
        bridge.call(double, 1, timeout_s=30)


def test_a_loop_that_takes_no_tasks_any_more_says_so() -> None:
    class Ending:
        """A token of a loop that runs callbacks still, but has no place for tasks."""

        def run_sync_soon(self, callback: Callable[[], object]) -> None:
            callback()

    token = cast("trio.lowlevel.TrioToken", Ending())
    with pytest.raises(DaemonUnreachable, match="stopping"):
        Bridge(token).call(double, 1, timeout_s=30)


def test_a_call_under_way_when_the_loop_ends_is_told() -> None:
    started = threading.Event()

    async def wait() -> None:
        started.set()
        await trio.sleep_forever()

    async def main(pool: ThreadPoolExecutor) -> Future[None]:
        bridge = Bridge(trio.lowlevel.current_trio_token())
        call = pool.submit(lambda: bridge.call(wait, timeout_s=30))
        await trio.to_thread.run_sync(started.wait, 30)
        return call

    with ThreadPoolExecutor(1) as pool:
        call = trio.run(main, pool)
        with pytest.raises(DaemonUnreachable):
            call.result(30)
