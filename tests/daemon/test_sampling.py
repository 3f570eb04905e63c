"""What the loop says to threads that must not depend on it."""

import itertools
import threading

import pytest
import trio

from snapshotter.daemon import sampling
from snapshotter.daemon.sampling import LoopSample
from tests.layer.world import run


def test_a_loop_that_turns_answers_anew_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "PATIENCE_S", 30)

    async def main() -> None:
        numbers = itertools.count(1)
        sample = LoopSample(trio.lowlevel.current_trio_token(), lambda: next(numbers), 0)
        answers = [await trio.to_thread.run_sync(sample.read) for _ in range(3)]
        assert [answer for answer, _ in answers] == [1, 2, 3]
        assert all(seconds >= 0 for _, seconds in answers)

    run(main)


def test_a_loop_that_hangs_leaves_the_answer_before_and_finds_one_question(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "PATIENCE_S", 0.05)

    async def main() -> None:
        asked = itertools.count(1)
        sample = LoopSample(trio.lowlevel.current_trio_token(), lambda: next(asked), 0)
        answers: list[tuple[int, float]] = []
        thread = threading.Thread(target=lambda: answers.extend(sample.read() for _ in range(4)))
        thread.start()
        thread.join(20)  # the loop stands still meanwhile
        assert [answer for answer, _ in answers] == [0, 0, 0, 0]
        assert all(seconds >= 0.05 for _, seconds in answers)
        await trio.testing.wait_all_tasks_blocked()
        await trio.lowlevel.checkpoint()
        assert next(asked) == 2

    run(main)


def test_a_loop_that_has_ended_leaves_the_answer_before() -> None:
    async def main() -> trio.lowlevel.TrioToken:
        return trio.lowlevel.current_trio_token()

    sample = LoopSample(run(main), lambda: "new", "old")
    assert sample.read()[0] == "old"
