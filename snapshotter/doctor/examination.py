"""Carrying checks out: one after the other, each for a limited time, none able to end the others."""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Final, Generic, TypeVar

from snapshotter.doctor.findings import Answer, Check, Finding, fault, of_error, skipped, warning
from snapshotter.errors import SnapshotterError

T = TypeVar("T")

GRACE_S: Final = 3.0
"""How long a check that somebody interrupts may still take: a trial takes its mounts away first."""


def examine(checks: Iterable[Check], timeout_s: float) -> Iterator[Finding]:
    """Yield the findings of `checks` in their order, each as soon as it is there; a check may take `timeout_s`.

    A check that takes longer is left alone: its thread ends with the process, and what it says later counts no more.
    """
    for check in checks:
        for answer in _carry_out(check, timeout_s):
            name = answer.name or check.name
            yield Finding(check.group, check.about, name, answer.verdict, answer.found, answer.advice)


def _carry_out(check: Check, timeout_s: float) -> list[Answer]:
    answers: queue.SimpleQueue[list[Answer]] = queue.SimpleQueue()
    thread = threading.Thread(target=lambda: answers.put(_look(check)), name=f"check {check.name}", daemon=True)
    try:
        thread.start()
        return answers.get(timeout=timeout_s)
    except KeyboardInterrupt:
        # It may have come while `start` waited for the thread, which looks already.
        if thread.is_alive():
            thread.join(GRACE_S)
        raise
    except queue.Empty:
        return [
            fault(
                f"no answer within {timeout_s:g} s",
                "something that was asked hangs: look at it by hand, or give more --timeout",
            )
        ]


def _look(check: Check) -> list[Answer]:
    """The door of a check: whatever goes wrong in it becomes its answer."""
    try:
        return list(check.look())
    except PermissionError as error:
        return [skipped(f"no permission: {error.filename or error.strerror}", "run this command as root (sudo)")]
    except SnapshotterError as error:
        return [of_error(error, "mend what it names")]
    except OSError as error:
        return [fault(f"cannot be looked at: {error}", "look at it by hand")]
    except Exception as error:  # noqa: BLE001 (the door: a fault of one check must not hide what the others find)
        return [
            warning(
                f"the check itself failed: {type(error).__name__}: {error}",
                "this is a mistake of this program: please report it",
            )
        ]


class Once(Generic[T]):
    """A fact that several checks need: asked for once, whatever came of it remembered.

    While one thread asks (or hangs in asking), others are told so instead of hanging as well.
    """

    def __init__(self, ask: Callable[[], T]) -> None:
        self._ask = ask
        # Guards what follows, and is held while the question is asked.
        self._asking = threading.Lock()
        self._value: list[T] = []
        self._error: SnapshotterError | None = None

    def get(self) -> T:
        """The fact.

        Raises:
            SnapshotterError: it could not be had, or another thread still waits for it.
        """
        if not self._asking.acquire(blocking=False):
            raise SnapshotterError("there was no answer before, and it is not asked again")
        try:
            if self._error is not None:
                raise self._error
            if not self._value:
                try:
                    self._value.append(self._ask())
                except SnapshotterError as error:
                    self._error = error
                    raise
            return self._value[0]
        finally:
            self._asking.release()
