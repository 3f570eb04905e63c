"""How a fuzzer runs: a short while with the same examples each time in `make test`, until its time is over in `make fuzz`.

`make fuzz` gives each fuzzer FUZZ_SECONDS: rounds of new random examples follow each other until they are over. What fails is shrunk,
printed with the values that make it fail again, and kept in `.hypothesis`, from which the next run begins.
"""

import os
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from hypothesis import Phase, seed, settings

BUDGET_S = 0.6
"""What a fuzzer takes in `make test`, where a busy machine gets through fewer rounds, but always the same first ones."""

LONG_BUDGET_S = 10.0
"""The same with the profile "long", whose examples are new each time."""

ROUND = 100
"""Examples of a round in `make fuzz`."""

CPU_S = 20.0
"""Processor time that one example may take: thousands of times what the slowest takes, so that only a hang or a quadratic
loop gets there, and no busy machine."""


def fuzzed(examples: int) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Make a test of what `@given` made: rounds of so many examples, each from the next seed, until the time is over."""

    def decorate(target: Callable[[], None]) -> Callable[[], None]:
        chosen = float(os.environ.get("FUZZ_SECONDS", "0"))
        if chosen:
            # Without Phase.explain: what it says of a failure costs minutes with parsers.
            phases = (Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink)
            once = settings(max_examples=ROUND, derandomize=False, print_blob=True, phases=phases)(target)
        else:
            once = settings(max_examples=examples, database=None)(target)

        def until_time_is_over() -> None:
            long = settings.default is not None and settings.default.max_examples > 100
            end = time.monotonic() + (chosen or (LONG_BUDGET_S if long else BUDGET_S))
            number = 0
            while number == 0 or time.monotonic() < end:
                if not (chosen or long):
                    seed(number)(once)
                once()
                number += 1

        until_time_is_over.__name__, until_time_is_over.__module__ = target.__name__, target.__module__
        return until_time_is_over

    return decorate


@contextmanager
def bounded(memory: int) -> Iterator[None]:
    """Fail if what stands inside takes more than `memory` bytes of Python objects, or processor time without end."""
    began = time.thread_time()
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < memory, f"{peak} bytes"
    assert time.thread_time() - began < CPU_S
