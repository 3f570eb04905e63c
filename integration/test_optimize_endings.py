"""However a run of `snapshotter image optimize` ends: nothing of it is left, or what the next run removes."""

import os
import random
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from integration.harness.leftovers import processes_rooted_in
from integration.harness.node import Node
from integration.harness.process import wait_for
from integration.harness.registry import Registry
from integration.images.script import (
    FIRST,
    LINE,
    SCRIPT,
    SECOND,
)
from integration.optimizing import (
    NEVER_OVER,
    SOURCE,
    TIMEOUT_S,
    begin,
    end,
    fronts,
    is_there,
    node_with_script,
    optimize,
    ready,
    remains,
    sample_mounts,
    scratch,
)
from snapshotter.cli.image_optimize import optimize_command
from snapshotter.errors import RecorderError, StoreFull
from snapshotter.image.optimize.record_file import parse_record

ROUNDS = 1
LONGEST_RUN_S = 1.5


@pytest.fixture(scope="module")
def place(registry: Registry) -> Iterator[Node]:
    """A node that these tests share: none of them may leave anything on it."""
    with node_with_script(registry) as made:
        yield made


@pytest.fixture(autouse=True)
def nothing_is_left(place: Node) -> Iterator[None]:
    """No test leaves anything behind, but what it pulled itself and removes."""
    yield
    assert remains(place) == {}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_makes_no_image(place: Node, number: int) -> None:
    with ready(place, target="script:interrupted") as process:
        process.send_signal(number)
        code, out, said = end(process)
    assert (code, out) == (130, ""), said
    assert "snapshotter: stopping …" in said
    assert not is_there(place, "interrupted")


def test_signal_that_is_waited_for_ends_the_run_alone(place: Node) -> None:
    with ready(place, "--wait-on-signal", target="script:signalled") as process:
        process.send_signal(signal.SIGINT)
        code, _, said = end(process)
    assert code == 0, said
    # The image names a stop signal, for which its program has an answer, which is shown.
    assert "told to end" in said.splitlines()
    assert fronts(place, "signalled")[1] == [SCRIPT, FIRST, SECOND]


def test_program_that_does_not_end_is_killed_after_the_period(place: Node) -> None:
    _, said = optimize(place, "--period", "0.5", "--args", '["stuck"]')
    assert "until the period was over" in said
    assert "exit code" not in said


def test_program_that_fails_is_told_and_what_it_read_counts(place: Node) -> None:
    _, said = optimize(place, *NEVER_OVER, "--args", '["fail"]')
    assert "the program ended with exit code 3" in said
    assert fronts(place)[1] == [SCRIPT, FIRST, SECOND]


def test_container_that_cannot_be_watched_is_removed_before_it_runs(
    place: Node, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    @asynccontextmanager
    async def refused(_pid: int) -> AsyncIterator[None]:
        # Its own process is there, and waits.
        assert len(processes_rooted_in(place.place.folder)) == 1
        raise RecorderError("no fanotify here")
        yield

    monkeypatch.setattr("snapshotter.image.optimize.sampling.recording", refused)
    with pytest.raises(RecorderError, match="no fanotify here"):
        optimize_here(place, "script:unwatched")
    assert LINE not in capfd.readouterr().err
    assert not is_there(place, "unwatched")


def test_conversion_that_fails_leaves_the_record_of_the_run(place: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    async def full(*_: object) -> None:
        raise StoreFull("no room left")

    monkeypatch.setattr("snapshotter.cli.image_optimize.convert", full)
    record = place.place / "kept-record"
    with pytest.raises(StoreFull):
        optimize_here(place, "script:unstored", "--wait-on-line", LINE, "--record-out", str(record))
    assert [one.path for one in parse_record(record.read_bytes()) if one.path.startswith("app/")] == [
        SCRIPT,
        FIRST,
        SECOND,
    ]
    assert not is_there(place, "unstored")


def optimize_here(node: Node, target: str, *options: str) -> None:
    """The command, in this process."""
    words = ["--plain-http", "--containerd", str(node.containerd.address), "--namespace", node.place.name, *options]
    names = (node.reference(SOURCE), node.reference(target))
    optimize_command.main([*words, "--scratch", str(scratch(node)), *names], standalone_mode=False)


def test_record_that_cannot_be_written_is_told_before_anything_runs(place: Node) -> None:
    for path in (place.place.folder, place.place / "missing" / "record"):
        code, out, said = end(begin(place, "--record-out", str(path), target="script:unrecorded"))
        assert (code, out) == (2, "")
        assert f"--record-out {path}: " in said
        assert LINE not in said


def test_run_that_nobody_watches_any_more_ends_at_once(place: Node) -> None:
    with ready(place, target="script:unwatched") as process:
        (watcher,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(watcher), signal.SIGKILL)
        code, _, said = end(process)
    assert (code, "ended early" in said) == (RecorderError.exit_code, True), said
    assert not is_there(place, "unwatched")


def test_task_that_somebody_else_kills_counts_as_ended(place: Node) -> None:
    ctr = place.ctr(place.place.name)
    with ready(place) as process:
        (task,) = ctr("tasks", "ls", "--quiet").split()
        ctr("tasks", "kill", "--signal", "SIGKILL", task)
        code, _, said = end(process)
    assert code == 0, said
    assert "exit code 137" in said


def test_program_that_is_not_there_is_told(place: Node) -> None:
    code, out, said = end(begin(place, "--entrypoint", '["/no/such/program"]', target="script:none"))
    assert (code, out) == (61, "")
    assert 'did not start: exec: "/no/such/program": stat /no/such/program: no such file or directory; say what' in said
    assert not is_there(place, "none")


def test_what_a_killed_command_left_the_next_one_removes(place: Node) -> None:
    with ready(place) as process:
        process.kill()
        process.communicate(timeout=TIMEOUT_S)
    left = remains(place)
    assert {"containers", "tasks", "leases", "snapshots", "scratch"} <= left.keys()
    _, said = optimize(place, "--wait-on-line", LINE)
    assert f"{left['containers'][0]}, left by a command that was killed, is removed" in said


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_command_that_ends_while_its_task_is_made_leaves_no_process_that_nobody_knows(place: Node, number: int) -> None:
    process = begin(place, *NEVER_OVER)
    # The root is mounted before the runtime is called.
    wait_for(lambda: bool(sample_mounts(place)), "the mount of the root", TIMEOUT_S)
    process.send_signal(number)
    code, _, said = end(process)
    assert code in (-signal.SIGKILL, 130), said
    if number == signal.SIGKILL:
        # The mount may go: containerd clears up what it has made for a call that was given up.
        assert "containers" in remains(place)
        optimize(place, "--wait-on-line", LINE)


@pytest.mark.long
def test_containerd_that_is_killed_is_told_and_the_next_run_clears_up(place: Node) -> None:
    with ready(place, target="script:lost") as process:
        place.containerd.stop(signal.SIGKILL)
        code, _, said = end(process)
    assert code == 62, said
    assert "broke off" in said
    assert not processes_rooted_in(place.place.folder)
    place.containerd.start()
    place.wait_until_served()
    assert not is_there(place, "lost")
    optimize(place, "--wait-on-line", LINE)


def test_run_of_another_command_is_left_alone(place: Node) -> None:
    with ready(place, target="script:other") as process:
        optimize(place, "--wait-on-line", LINE)
        assert place.ctr(place.place.name)("tasks", "ls").count("RUNNING") == 1
        process.send_signal(signal.SIGINT)
        assert end(process)[0] == 130


def test_signal_at_any_moment_leaves_nothing_or_what_the_next_run_removes(place: Node) -> None:
    for number in (signal.SIGINT, signal.SIGKILL) * ROUNDS:
        process = begin(place, "--wait-on-line", LINE, target="script:random")
        moment = random.uniform(0.2, LONGEST_RUN_S)
        time.sleep(moment)
        process.send_signal(number)
        code, _, said = end(process)
        word = f"signal {number} after {moment} s: {code} {said}"
        # Before the first line of the program runs, and after the last, a signal does what it does to every process.
        assert code in (0, 130, -number), word
        if number == signal.SIGKILL:
            optimize(place, "--wait-on-line", LINE)
        assert remains(place) == {}, word
