"""A server that does not answer is passed over, and found again when it is back."""

import pytest

from snapshotter.errors import RegistryError
from snapshotter.registry.auth import Need
from snapshotter.registry.health import (
    COMPLAINT_MAX,
    FIRST_S,
    LONGEST_S,
    SERVERS_KEPT,
    Complaints,
    Health,
)
from snapshotter.registry.hosts import Endpoint


class Clock:
    """Time that passes when the test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def need(name: str, scheme: str = "https") -> Need:
    return Need(Endpoint(f"{scheme}://{name}", "r.test"), "a/b", ())


A, B, C = need("a"), need("b"), need("c")


def order(health: Health, *needs: Need) -> str:
    return "".join(one.endpoint.host for one in health.ordered(needs or (A, B, C), lambda one: one))


def test_a_sick_server_goes_behind_the_others_and_has_its_place_again_when_its_time_is_over() -> None:
    clock = Clock()
    health = Health(clock)
    health.failed(A)
    assert order(health) == "bca"
    clock.now = FIRST_S - 0.01
    assert order(health) == "bca"
    clock.now = FIRST_S
    assert order(health) == "abc"


def test_one_request_finds_out_whether_it_is_back_and_the_others_pass_it_over_meanwhile() -> None:
    clock = Clock()
    health = Health(clock)
    health.failed(A)
    clock.now = FIRST_S
    assert order(health) == "abc"
    health.asking(A)
    assert order(health) == "bca"
    health.answered(A)
    assert order(health) == "abc"


def test_a_server_that_is_not_reached_in_the_order_keeps_its_turn() -> None:
    clock = Clock()
    health = Health(clock)
    health.failed(B)
    clock.now = FIRST_S
    for _ in range(3):
        assert order(health) == "abc"
        health.asking(A)
        health.answered(A)
    health.failed(A)
    assert order(health) == "bca"


def test_where_all_are_sick_all_are_asked_in_their_order() -> None:
    health = Health(Clock())
    for one in (C, A, B):
        health.failed(one)
    assert order(health) == "abc"


def test_each_failure_doubles_the_pause_up_to_a_minute() -> None:
    clock = Clock()
    health = Health(clock)
    pauses = []
    for _ in range(6):
        health.failed(A)
        began = clock.now
        while not health.is_well(A):
            clock.now += 1
        pauses.append(clock.now - began)
    assert pauses == [FIRST_S, 2 * FIRST_S, 4 * FIRST_S, 8 * FIRST_S, LONGEST_S, LONGEST_S]


def test_what_is_shown_are_hosts_and_a_host_is_well_if_it_answers_one_way() -> None:
    clock = Clock()
    health = Health(clock)
    health.failed(need("a", "https"))
    health.answered(need("a", "http"))
    health.failed(B)
    clock.now = 10 * LONGEST_S
    assert health.sick() == {"a": False, "b": True}


def test_no_more_servers_are_remembered_than_there_is_room_for() -> None:
    health = Health(Clock())
    for number in range(SERVERS_KEPT + 50):
        health.failed(need(f"s{number}"))
    assert len(health.sick()) == SERVERS_KEPT
    assert health.is_well(need("s0"))
    assert not health.is_well(need(f"s{SERVERS_KEPT + 49}"))


def test_an_error_tells_what_the_other_servers_said_last() -> None:
    complaints = Complaints()
    last = RegistryError("no")
    complaints.note(A, RegistryError("first"))
    complaints.note(A, RegistryError("second"))
    complaints.note(B, RegistryError("x" * 10_000))
    complaints.note(C, last)
    told = complaints.beside(last)
    assert told.startswith("no (asked as well: https://a: second; https://b: xxx")
    assert len(told) < 2 * COMPLAINT_MAX


@pytest.mark.parametrize("times", [1, 3])
def test_an_error_of_the_only_server_stands_alone(times: int) -> None:
    complaints = Complaints()
    errors = [RegistryError("no") for _ in range(times)]
    for error in errors:
        complaints.note(A, error)
    assert complaints.beside(errors[-1]) == "no"
