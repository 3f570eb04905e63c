"""What every test run shares: Hypothesis profiles, and the assertion that nothing stays behind."""

import os
from collections.abc import Iterator
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, settings

from integration.harness.leftovers import Traces
from integration.harness.process import wait_for

# Deadlines would be timing asserts; on a loaded machine they fail for nothing.
settings.register_profile(
    "short",
    deadline=None,
    max_examples=50,
    derandomize=True,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "long", deadline=None, max_examples=1000, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("short")


@pytest.fixture(scope="session", autouse=True)
def nothing_stays_behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fail the run if a mount, a loop device or a process of it is left at its end."""
    traces = Traces(marker=os.urandom(8).hex(), folder=tmp_path_factory.getbasetemp())
    with traces.marked():
        yield
    # What was ended goes when the kernel comes to it. If it does not, the list says more than that time is over.
    with suppress(TimeoutError):
        wait_for(lambda: not traces.left(), "the end of all that a run has started")
    assert traces.left() == []
