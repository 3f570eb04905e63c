"""A container's output and input, with this process in the shim's place."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from snapshotter.containerd.tasks import Task
from snapshotter.image.optimize.stdio import LineWatch, Streams, open_stdio

SECOND_S = 30.0


class ToldTask:
    """What is told of the end of input."""

    def __init__(self) -> None:
        self.closed = trio.Event()

    async def close_stdin(self) -> None:
        self.closed.set()


@pytest.fixture
def pipes() -> Iterator[list[int]]:
    """Four ends: what we read as input and its writer, the reader of what we show and that."""
    ends = [*os.pipe(), *os.pipe()]
    yield ends
    for end in ends:
        try:
            os.close(end)
        except OSError:
            continue


@given(st.lists(st.binary(max_size=20), max_size=10), st.sampled_from(["ab", "x", "\u00e4"]))
def test_text_is_seen_however_the_output_is_cut(pieces: Sequence[bytes], text: str) -> None:
    watch = LineWatch(text)
    feed = watch.stream()
    for piece in pieces:
        feed(piece)
    assert watch.seen.is_set() == (text.encode() in b"".join(pieces))


def test_text_across_two_lines_is_none() -> None:
    watch = LineWatch("ab")
    watch.stream()(b"a\nb")
    assert not watch.seen.is_set()
    watch = LineWatch("")
    watch.stream()(b"anything\n")
    assert not watch.seen.is_set()


def test_text_across_two_streams_is_none_and_in_any_of_them_is_one() -> None:
    watch = LineWatch("ab")
    first, second = watch.stream(), watch.stream()
    first(b"a")
    second(b"b")
    assert not watch.seen.is_set()
    second(b" ab")
    assert watch.seen.is_set()


def test_streams_go_both_ways_until_both_ends(tmp_path: Path, pipes: list[int]) -> None:
    source, writer, reader, shown = pipes

    async def run() -> None:
        watch, task = LineWatch("ready"), ToldTask()
        stdio = open_stdio(tmp_path, Streams(source, shown, shown), watch, terminal=False)
        # As the shim opens them.
        inside = [os.open(stdio.pipes.stdin, os.O_RDONLY | os.O_NONBLOCK)]
        inside += [os.open(path, os.O_WRONLY) for path in (stdio.pipes.stdout, stdio.pipes.stderr)]
        with trio.fail_after(SECOND_S):
            async with trio.open_nursery() as nursery:
                stdio.begin(nursery, cast(Task, task))
                os.write(inside[1], b"rea")
                os.write(inside[1], b"dy\n")
                await watch.seen.wait()
                said = b""
                while not said.endswith(b"\n"):
                    await trio.lowlevel.wait_readable(reader)
                    said += os.read(reader, 100)
                assert said == b"ready\n"
                os.write(writer, b"typed\n")
                os.close(writer)
                await task.closed.wait()
                assert os.read(inside[0], 100) == b"typed\n"
                assert os.read(inside[0], 100) == b""
                os.write(inside[2], b"last words\n")
                for end in inside:
                    os.close(end)
                await stdio.drained()
        stdio.close()

    trio.run(run)
    os.close(shown)
    assert os.read(reader, 100) == b"last words\n"


def test_input_that_has_ended_before_the_shim_opens_its_end_is_not_lost(tmp_path: Path, pipes: list[int]) -> None:
    source, writer, _, shown = pipes
    os.write(writer, b"all there is")
    os.close(writer)

    async def run() -> None:
        task = ToldTask()
        stdio = open_stdio(tmp_path, Streams(source, shown, shown), LineWatch(""), terminal=False)
        with trio.fail_after(SECOND_S):
            async with trio.open_nursery() as nursery:
                stdio.begin(nursery, cast(Task, task))
                await trio.sleep(0.1)
                assert not task.closed.is_set()
                late = os.open(stdio.pipes.stdin, os.O_RDONLY | os.O_NONBLOCK)
                await task.closed.wait()
                assert os.read(late, 100) == b"all there is"
                assert os.read(late, 100) == b""
                os.close(late)
                nursery.cancel_scope.cancel()
        stdio.close()

    trio.run(run)


def test_output_that_nobody_takes_stops_nothing(tmp_path: Path, pipes: list[int]) -> None:
    _, _, reader, shown = pipes
    os.close(reader)

    async def run() -> None:
        watch = LineWatch("end")
        stdio = open_stdio(tmp_path, Streams(None, shown, shown), watch, terminal=True)
        assert (stdio.pipes.stdin, stdio.pipes.stderr) == ("", "")
        inside = os.open(stdio.pipes.stdout, os.O_WRONLY)
        with trio.fail_after(SECOND_S):
            async with trio.open_nursery() as nursery:
                stdio.begin(nursery, cast(Task, ToldTask()))
                os.write(inside, b"x" * 50_000 + b"\n")
                os.write(inside, b"the end\n")
                await watch.seen.wait()
                os.close(inside)
                await stdio.drained()
        stdio.close()

    trio.run(run)


@pytest.mark.parametrize(("terminal", "back"), [(True, b"\x1b[?1049l\x1b[?25h\x1b[0m\n"), (False, b"\n")])
def test_screen_that_a_program_leaves_is_put_back_and_its_last_line_ended(
    tmp_path: Path, pipes: list[int], terminal: bool, back: bytes
) -> None:
    _, _, reader, shown = pipes

    async def run() -> None:
        stdio = open_stdio(tmp_path, Streams(None, shown, shown), LineWatch(""), terminal=terminal)
        inside = [os.open(path, os.O_WRONLY) for path in (stdio.pipes.stdout, stdio.pipes.stderr) if path]
        with trio.fail_after(SECOND_S):
            async with trio.open_nursery() as nursery:
                stdio.begin(nursery, cast(Task, ToldTask()))
                os.write(inside[0], b"\x1b[?1049h\x1b[?25lfull")
                for end in inside:
                    os.close(end)
                await stdio.drained()
        stdio.close()
        stdio.close()

    trio.run(run)
    os.close(shown)
    assert os.read(reader, 1000) == b"\x1b[?1049h\x1b[?25lfull" + back
