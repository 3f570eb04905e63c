"""A registry that holds answers back, and a clock on which the wait for them is over as soon as it has begun."""

from collections.abc import Awaitable, Callable
from typing import TypeVar
from urllib.parse import SplitResult

import trio
import trio.testing

from tests.doubles.registry import LoopbackRegistry
from tests.doubles.server import Handler, Recorded

T = TypeVar("T")

READ_TIMEOUT_S = 20.0
"""What the client's configuration allows for an answer: nothing but an answer that is held back takes so long."""


class HoldingRegistry(LoopbackRegistry):
    """Counts the answers that a script holds back (`hang`, `stall`), each when all before it has been sent."""

    def __init__(self) -> None:
        super().__init__()
        self.held = 0
        self._answered: set[int] = set()

    def answer(self, handler: Handler, record: Recorded, url: SplitResult) -> None:
        try:
            super().answer(handler, record, url)
        finally:
            self._answered.add(id(record))

    def settled(self, record: Recorded) -> None:
        super().settled(record)
        self.held += id(record) not in self._answered

    async def hurry(self, clock: trio.testing.MockClock) -> None:
        """Have the time for an answer go by once for each that is held back, when the client has read what came."""
        seen = 0
        while True:
            await trio.sleep(0.002)
            if self.held > seen:
                seen += 1
                await trio.testing.wait_all_tasks_blocked(0.01)
                clock.jump(READ_TIMEOUT_S)


def run_hurried(main: Callable[[], Awaitable[T]], *servers: LoopbackRegistry) -> T:
    """Run `main` on a clock that jumps over the waits for what these servers hold back, and goes on as usual otherwise."""
    clock = trio.testing.MockClock(rate=1.0)

    async def hurried() -> T:
        async with trio.open_nursery() as nursery:
            for server in servers:
                if isinstance(server, HoldingRegistry):
                    nursery.start_soon(server.hurry, clock)
            found = await main()
            nursery.cancel_scope.cancel()
        return found

    return trio.run(hurried, clock=clock)
