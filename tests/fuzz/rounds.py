"""How a fuzzer runs: a few fixed examples in `make test`, until its time is over in `make fuzz`.

`make fuzz` gives each fuzzer FUZZ_SECONDS: rounds of new random examples follow each other until they are over. What fails is shrunk,
printed with the values that make it fail again, and kept in `.hypothesis`, from which the next run begins.
"""

import os
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from hypothesis import Phase, settings

ROUND = 500
"""Examples between two looks at the clock."""

CPU_S = 20.0
"""Processor time that one example may take: thousands of times what the slowest takes, so that only a hang or a quadratic
loop gets there, and no busy machine."""


def fuzzed(examples: int) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Make a test of what `@given` made: `examples` of them in `make test`; more with the profile "long"."""
    seconds = float(os.environ.get("FUZZ_SECONDS", "0"))

    def decorate(target: Callable[[], None]) -> Callable[[], None]:
        if not seconds:
            count = max(examples, settings.default.max_examples if settings.default is not None else 0)
            return settings(max_examples=count)(target)
        # Without Phase.explain: what it says of a failure costs minutes with parsers.
        phases = (Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink)
        once = settings(max_examples=ROUND, derandomize=False, print_blob=True, phases=phases)(target)

        def until_time_is_over() -> None:
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                once()

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
