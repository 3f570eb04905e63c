import time

import pytest

from snapshotter.doctor import clock
from snapshotter.doctor.examination import Once
from snapshotter.doctor.findings import Answer, Verdict
from snapshotter.doctor.reach import Knock
from snapshotter.errors import RegistryUnreachable
from tests.doctor.world import World, failing, look, the_one

NOW = 1_900_000_000.0


def against(world: World, date: float | None) -> Answer:
    subject = world.subject(machine_now=lambda: NOW)
    return the_one(clock.check_against("r.test", Once(lambda: Knock(200, date, 0.1)), subject).look())


def test_a_clock_after_the_build_is_in_order(world: World) -> None:
    assert the_one(look(clock.checks(world.subject(machine_now=time.time)), "clock")).verdict is Verdict.OK


def test_a_clock_before_the_build_is_a_fault(world: World) -> None:
    answer = the_one(look(clock.checks(world.subject(machine_now=lambda: 0.0)), "clock"))
    assert answer.verdict is Verdict.FAULT
    assert "1970-01-01" in answer.found


@pytest.mark.parametrize(
    ("date", "verdict"),
    [
        (NOW - 59, Verdict.OK),
        (NOW + 59, Verdict.OK),
        (NOW - 61, Verdict.WARNING),
        (NOW + 3600, Verdict.WARNING),
        (None, Verdict.NOTE),
    ],
)
def test_more_than_a_minute_between_the_clocks_is_a_warning(world: World, date: float | None, verdict: Verdict) -> None:
    assert against(world, date).verdict is verdict


def test_the_side_to_which_a_clock_is_wrong_is_told(world: World) -> None:
    assert "3600 s behind" in against(world, NOW + 3600).found
    assert "3600 s ahead of" in against(world, NOW - 3600).found


def test_a_registry_that_does_not_answer_has_no_clock(world: World) -> None:
    fact: Once[Knock] = Once(failing(RegistryUnreachable("no")))
    assert the_one(clock.check_against("r.test", fact, world.subject()).look()).verdict is Verdict.NOTE
