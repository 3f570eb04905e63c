"""A gate for a test, over contents that come when the test says so, and lookups in it."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import trio

from snapshotter.errors import SnapshotterError
from snapshotter.plane.erofs.gate import Gate, GateFile, Numbers
from tests.doubles.gate import DOMAIN, HeldContents, MemoryNumbers

T = TypeVar("T")
SMALL, OTHER, LARGE = "a1" * 32, "b2" * 32, "c3" * 32 + "-" + "d4" * 16
READER, VICTIM = 4001, 4002
LONG = 3600.0
"""Patience that no test has."""


def contents(*held: str) -> HeldContents:
    """Three files, the large one served in parts; those that are `held` arrive when the test says so."""
    sizes = {SMALL: [100], OTHER: [200], LARGE: [9000]}
    return HeldContents(sizes, set(held), {LARGE: False})


@asynccontextmanager
async def opened(
    of: HeldContents,
    numbers: Numbers | None = None,
    *,
    patience_s: float = LONG,
    killed: Callable[[int], bool] = lambda _pid: False,
) -> AsyncIterator[Gate]:
    """A gate that has taken over what is recorded."""
    async with trio.open_nursery() as nursery:
        gate = Gate(of, numbers or MemoryNumbers(), nursery, "_place", patience_s=patience_s, killed=killed)
        await gate.load()
        yield gate
        nursery.cancel_scope.cancel()


def run(main: Callable[[], Awaitable[T]]) -> T:
    """Run a test's coroutine; a test that hangs fails."""

    async def bounded() -> T:
        with trio.fail_after(30):
            return await main()

    return trio.run(bounded)


class Asked:
    """Lookups that go on side by side, and what each came to."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self.answers: list[GateFile | None] = []
        self.errors: list[SnapshotterError] = []

    async def one(self, name: str, pid: int = READER) -> None:
        try:
            self.answers.append(await self._gate.lookup(DOMAIN, name, pid))
        except SnapshotterError as error:
            self.errors.append(error)
