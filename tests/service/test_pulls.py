"""The line about a pull."""

import logging

import pytest

from snapshotter.errors import Reason
from snapshotter.request import LayerRequest
from snapshotter.service.pulls import LayerOutcome, Outcome, PullLog


def request(layer: str, *above: str, reference: str = "r/x:1") -> LayerRequest:
    """A request for `layer` of an image."""
    return LayerRequest("n", reference, None, layer, (layer, *above), None, None, skip_verify=False, trusted_only=False)


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was said so far."""
    return [record.getMessage() for record in caplog.records]


def test_a_pull_begun_anew_ends_the_one_before(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    log = PullLog()
    log.note(request("a", "b"), LayerOutcome("a", Outcome.ORDINARY, Reason.BUSY, "too many"))
    log.note(request("a", "b"), LayerOutcome("a", Outcome.LAZY))
    assert lines(caplog) == [f"pull of r/x:1: 1 layers, 1 not lazy: a ordinary ({Reason.BUSY})"]
    log.close()
    assert lines(caplog)[1:] == ["pull of r/x:1: 1 layers, 0 not lazy: a lazy"]


def test_pulls_that_broke_off_are_told_in_the_end(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    now = [0]
    log = PullLog(lambda: now[0])
    log.note(request("a", "b", reference="old"), LayerOutcome("a", Outcome.LAZY))
    now[0] = 10**12
    log.note(request("a", "b", reference="new"), LayerOutcome("a", Outcome.LAZY))
    assert lines(caplog) == ["pull of old: 1 layers, 0 not lazy: a lazy"]
    for number in range(64):
        log.note(request("a", "b", reference=f"more-{number}"), LayerOutcome("a", Outcome.LAZY))
    assert lines(caplog)[1:] == ["pull of new: 1 layers, 0 not lazy: a lazy"]


def test_a_layer_without_readable_labels_has_its_own_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    PullLog().note_unknown("", LayerOutcome("chain", Outcome.ORDINARY, Reason.NO_LABELS, "none"))
    assert lines(caplog) == ["pull of an image without a name: 1 layers, 1 not lazy: chain ordinary (no-source-labels)"]


def test_results_are_counted_by_outcome_and_reason() -> None:
    log = PullLog()
    log.note(request("a", "b"), LayerOutcome("a", Outcome.LAZY))
    log.note(request("b"), LayerOutcome("b", Outcome.ORDINARY, Reason.BUSY, "too many"))
    log.note_unknown("", LayerOutcome("chain", Outcome.ORDINARY, Reason.NO_LABELS, "none"))
    log.note_unknown("", LayerOutcome("chain", Outcome.ORDINARY, Reason.NO_LABELS, "none"))
    assert log.results() == {
        (Outcome.LAZY, None): 1,
        (Outcome.ORDINARY, Reason.BUSY): 1,
        (Outcome.ORDINARY, Reason.NO_LABELS): 2,
    }
