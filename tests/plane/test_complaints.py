"""What is logged of failed requests."""

import logging

import pytest

from snapshotter.errors import RegistryUnreachable
from snapshotter.plane.fuse.complaints import Complaints


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_storm_of_equal_errors_is_one_line_and_a_count(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    complaints = Complaints(interval_s=10, clock=clock)
    for _ in range(1000):
        complaints.about("read", RegistryUnreachable("no answer from r.example"))
    assert [record.getMessage() for record in caplog.records] == ["read failed: no answer from r.example"]
    clock.now += 10
    complaints.about("read", RegistryUnreachable("still none"))
    assert caplog.records[-1].getMessage() == "read failed: still none (999 more like it since)"


def test_errors_of_another_kind_are_not_lost_in_a_storm(caplog: pytest.LogCaptureFixture) -> None:
    complaints = Complaints(clock=Clock())
    complaints.about("read", RegistryUnreachable("no answer"))
    complaints.about("lookup", RegistryUnreachable("no answer"))
    complaints.about("read", ValueError("a fault"))
    assert [record.levelno for record in caplog.records] == [logging.WARNING, logging.WARNING, logging.ERROR]


def test_a_fault_of_the_program_is_logged_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    try:
        raise ValueError("a fault")
    except ValueError as error:
        Complaints().about("read", error)
    assert caplog.records[0].exc_info is not None
