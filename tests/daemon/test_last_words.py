"""What a daemon leaves when it ends: a crash is told from a kill, and both from an error of ours."""

import faulthandler
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from snapshotter.daemon.last_words import CRASH_NAME, LastWords, report
from snapshotter.errors import PlaneError
from snapshotter.plane.fuse import in_hand
from snapshotter.plane.fuse.in_hand import DEATHS, IN_HAND_NAME, SUDDEN_NS, InHand, Request
from snapshotter.plane.fuse.protocol import OP_READ

READ = Request(OP_READ, 5, 0)

_DAEMON = """
import os, sys, time
from pathlib import Path
from snapshotter.daemon.last_words import LastWords
from snapshotter.errors import PlaneError

words = LastWords(Path(sys.argv[1]))
print(len(words.convicted(int(sys.argv[3]) if sys.argv[3] else None)), flush=True)
words.begin().begin("read", 5, 0)
how = sys.argv[2]
if how == "error":
    words.error(ValueError("a fault of ours"))
elif how == "refusal":
    words.error(PlaneError("a sentence"))
else:
    os.kill(os.getpid(), int(how))
os._exit(1)
"""


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Callable[[], LastWords]]:
    """Begins as the next daemon; the tests' own handler of fatal signals is put back."""
    was, made = faulthandler.is_enabled(), list[LastWords]()

    def begun() -> LastWords:
        made.append(LastWords(tmp_path))
        return made[-1]

    yield begun
    faulthandler.disable()
    for words in made:
        words._file.close()
    if was:
        faulthandler.enable()


def daemon(run_dir: Path, how: str | int, died_ns: int | None = None) -> int:
    """One that reads what is left, takes a request in hand and ends so; returns how many requests it convicted."""
    words = [sys.executable, "-c", _DAEMON, str(run_dir), str(how), "" if died_ns is None else str(died_ns)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    return int(done.stdout)


@pytest.mark.parametrize("how", [signal.SIGSEGV, signal.SIGABRT, "error"])
def test_a_crash_is_told_in_the_next_log_and_thrice_the_same_request_is_convicted(
    tmp_path: Path, begin: Callable[[], LastWords], how: str | int, caplog: pytest.LogCaptureFixture
) -> None:
    assert [daemon(tmp_path, how) for _ in range(DEATHS)] == [0] * DEATHS
    words = begin()
    assert words.crashed
    assert "the daemon before crashed:" in caplog.text
    assert ("a fault of ours" if how == "error" else "Fatal Python error") in caplog.text
    assert words.convicted(None) == {READ}
    assert (tmp_path / CRASH_NAME).read_bytes() == b""
    assert (tmp_path / CRASH_NAME).stat().st_mode & 0o777 == 0o600


def test_a_kill_is_no_crash_and_convicts_nobody(
    tmp_path: Path, begin: Callable[[], LastWords], caplog: pytest.LogCaptureFixture
) -> None:
    assert [daemon(tmp_path, signal.SIGKILL) for _ in range(DEATHS)] == [0] * DEATHS
    words = begin()
    assert not words.crashed
    assert caplog.text == ""
    assert words.convicted(None) == frozenset()


def test_kills_at_once_after_one_request_convict_it(
    tmp_path: Path, begin: Callable[[], LastWords], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the kernel ends a daemon for the memory that it took."""
    now_ns = time.monotonic_ns()
    monkeypatch.setattr(in_hand, "time", SimpleNamespace(monotonic_ns=lambda: now_ns))
    convicted = frozenset[Request]()
    for _ in range(DEATHS):
        InHand(tmp_path / IN_HAND_NAME).begin("read", 5, 0)
        convicted = begin().convicted(now_ns + SUDDEN_NS)
    assert convicted == {READ}


def test_an_end_with_a_sentence_is_no_crash_and_nothing_in_hand_is_to_blame(
    tmp_path: Path, begin: Callable[[], LastWords], caplog: pytest.LogCaptureFixture
) -> None:
    daemon(tmp_path, "error")
    daemon(tmp_path, "error")
    daemon(tmp_path, "refusal")
    words = begin()
    assert not words.crashed
    assert caplog.text == ""
    assert words.convicted(None) == frozenset()
    # It has ended the row, too.
    assert daemon(tmp_path, "error") == 0


def test_a_daemon_that_lives_ends_the_row(tmp_path: Path, begin: Callable[[], LastWords]) -> None:
    for _ in range(DEATHS):
        daemon(tmp_path, "error")
    words = begin()
    assert words.convicted(None) == {READ}
    words.live()
    daemon(tmp_path, "error")
    assert begin().convicted(None) == frozenset()


def test_where_notes_cannot_be_written_requests_are_served_all_the_same(
    tmp_path: Path, begin: Callable[[], LastWords], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    words = begin()
    notes = words.begin()
    notes.end(notes.begin("read", 5, 0))
    assert "No space left" in caplog.text
    assert not (tmp_path / IN_HAND_NAME).exists()
    words.error(PlaneError("a sentence"))


def test_a_long_crash_is_cut(tmp_path: Path, begin: Callable[[], LastWords], caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / CRASH_NAME).write_bytes(b"\xff" + b"x" * 1_000_000)
    begin()
    assert len(caplog.text) < 20_000


def test_what_was_refused_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    report({READ}, 2)
    assert "2 requests were answered with an I/O error" in caplog.text
    assert "operation 15 on inode 0x5 (0x0)" in caplog.text
