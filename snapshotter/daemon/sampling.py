"""What only the loop may say, for threads that must not depend on it."""

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

import trio

PATIENCE_S = 1.0
"""A loop that takes longer to answer hangs, for all that its readers notice."""

T = TypeVar("T")


class LoopSample(Generic[T]):
    """Asks `question` on the loop; a loop that does not answer in time leaves the answer before. One thread at a time asks."""

    def __init__(self, token: trio.lowlevel.TrioToken, question: Callable[[], T], first: T) -> None:
        """`question` must not raise: on the loop nobody would catch it. `first` is what is known before an answer."""
        self._token = token
        self._question = question
        self._answered = threading.Event()
        self._last = first

    def read(self) -> tuple[T, float]:
        """The newest answer, and how many seconds the loop took for it; `PATIENCE_S` or more if it is an old one."""
        began = time.monotonic()
        self._answered.clear()
        try:
            # Idempotent: a loop that hangs finds one question, however many were asked meanwhile.
            self._token.run_sync_soon(self._answer, idempotent=True)
        except trio.RunFinishedError:
            return self._last, PATIENCE_S
        self._answered.wait(PATIENCE_S)
        return self._last, time.monotonic() - began

    def _answer(self) -> None:
        self._last = self._question()
        self._answered.set()
