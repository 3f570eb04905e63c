"""Which request a daemon died of: notes that outlive it, and who is convicted by them."""

import os
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest

from snapshotter.plane.fuse.in_hand import (
    DEATHS,
    ROW_S,
    SLOTS,
    SUDDEN_NS,
    Death,
    Deaths,
    InHand,
    Request,
    argument_of,
    read_death,
)
from snapshotter.plane.fuse.protocol import OP_GETXATTR, OP_LOOKUP, OP_READ, OPCODES

A, B, C = Request(OP_READ, 5, 0), Request(OP_READ, 5, 4096), Request(OP_LOOKUP, 1, 99)


def killed(*in_hand: Request, last: Request | None = None, after_ns: int | None = 1, at_s: float = 100.0) -> Death:
    return Death(at_s, False, frozenset(in_hand), last, after_ns)


def crashed(*in_hand: Request, last: Request | None = None, at_s: float = 100.0) -> Death:
    return Death(at_s, True, frozenset(in_hand), last, None)


def convicted(path: Path, *deaths: Death | None) -> frozenset[Request]:
    """By a daemon that comes after so many deaths, each noted by the next one."""
    for death in deaths:
        row = Deaths.load(path)
        row.add(death)
    return Deaths.load(path).convicted()


def left(path: Path, *, crashed: bool = False, died_ns: int | None = None) -> Death | None:
    return read_death(path, crashed=crashed, died_ns=died_ns, now_s=1.0)


_DAEMON = """
import os, signal, sys
from pathlib import Path
from snapshotter.plane.fuse.in_hand import InHand

notes = InHand(Path(sys.argv[1]))
done = notes.begin("read", 5, 0)
notes.begin("lookup", 1, b"name")
notes.end(done)
notes.begin("read", (1 << 64) - 1, 8192)
print("begun", flush=True)
os.kill(os.getpid(), int(sys.argv[2]))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_what_was_in_hand_outlives_the_process(tmp_path: Path, number: int) -> None:
    path = tmp_path / "in-hand"
    done = subprocess.run([sys.executable, "-c", _DAEMON, path, str(number)], stdout=subprocess.PIPE, check=False)
    assert (done.returncode, done.stdout) == (-number, b"begun\n")
    now = time.monotonic_ns()
    death = left(path, died_ns=now)
    assert death is not None
    last = Request(OP_READ, (1 << 64) - 1, 8192)
    assert death.in_hand == {Request(OP_LOOKUP, 1, zlib.crc32(b"name")), last}
    assert death.last == last
    assert death.after_last_ns is not None
    assert 0 < death.after_last_ns < now
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_clean_end_is_no_death(tmp_path: Path) -> None:
    notes = InHand(tmp_path / "n")
    notes.begin("read", 5, 0)
    assert left(tmp_path / "n") is not None
    notes.clean()
    assert left(tmp_path / "n") is None


def test_a_new_process_begins_with_nothing_in_hand_and_follows_no_link(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("mine")
    (tmp_path / "n").symlink_to(elsewhere)
    InHand(tmp_path / "n")
    assert elsewhere.read_text() == "mine"
    death = left(tmp_path / "n", crashed=True)
    assert death is not None
    assert (death.in_hand, death.last) == (frozenset(), None)


@pytest.mark.parametrize("content", [None, b"", b"x" * 100])
def test_notes_that_are_missing_or_of_another_size_are_no_death(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "n").write_bytes(content)
    assert left(tmp_path / "n", crashed=True) is None


def test_notes_that_nobody_will_read_need_no_file() -> None:
    notes = InHand(None)
    notes.end(notes.begin("read", 5, 0))


def test_more_requests_than_slots_are_served_without_a_note(tmp_path: Path) -> None:
    notes = InHand(tmp_path / "n")
    slots = [notes.begin("read", number, 0) for number in range(SLOTS + 3)]
    assert slots[SLOTS:] == [0, 0, 0]
    assert len(set(slots[:SLOTS])) == SLOTS
    for slot in reversed(slots):
        notes.end(slot)
    death = left(tmp_path / "n")
    assert death is not None
    assert death.in_hand == frozenset()
    assert notes.begin("read", 1, 0)


def test_statfs_which_names_no_inode_is_noted_and_an_unknown_handler_is_not(tmp_path: Path) -> None:
    notes = InHand(tmp_path / "n")
    assert notes.begin("statfs", object())
    assert notes.begin("forget", [(1, 1)]) == 0
    death = left(tmp_path / "n")
    assert death is not None
    assert death.in_hand == {Request(OPCODES["statfs"], 0, 0)}


def test_requests_are_told_apart_by_name_or_offset() -> None:
    assert argument_of(OP_LOOKUP, b"a") != argument_of(OP_LOOKUP, b"b")
    assert argument_of(OP_GETXATTR, b"a") == zlib.crc32(b"a")
    assert argument_of(OP_READ, 4096) == 4096
    assert argument_of(OPCODES["getattr"], 4096) == 0


def test_what_was_in_hand_at_three_crashes_is_convicted(tmp_path: Path) -> None:
    path = tmp_path / "deaths"
    assert convicted(path, *[crashed(A, B)] * (DEATHS - 1)) == frozenset()
    assert convicted(path, crashed(A, C)) == {A}


def test_of_several_the_one_that_was_begun_last_most_often_is_taken(tmp_path: Path) -> None:
    assert convicted(tmp_path / "deaths", *[crashed(A, B, last=B)] * 3) == {B}
    assert convicted(tmp_path / "more", crashed(A, B, last=B), crashed(A, B, last=A), crashed(A, B, last=A)) == {A}


def test_only_one_is_convicted_at_a_time_and_the_next_one_after_the_next_death(tmp_path: Path) -> None:
    """Those who wait for a registry were in hand at each death."""
    path = tmp_path / "deaths"
    assert convicted(path, *[crashed(A, B, C)] * 3) == {min(A, B, C)}
    left = sorted({A, B, C})[1:]
    assert convicted(path, crashed(*left)) == {left[0]}


def test_kills_convict_nobody_whatever_waited_for_long(tmp_path: Path) -> None:
    assert convicted(tmp_path / "deaths", *[killed(A, B, last=A, after_ns=SUDDEN_NS + 1)] * 5) == frozenset()
    # Nor where nobody knows when it died, nor where the clock makes no sense.
    assert convicted(tmp_path / "unknown", *[killed(A, last=A, after_ns=None)] * 5) == frozenset()
    assert convicted(tmp_path / "before", *[killed(A, last=A, after_ns=-1)] * 5) == frozenset()


def test_kills_right_after_the_same_beginning_convict_it(tmp_path: Path) -> None:
    assert convicted(tmp_path / "deaths", *[killed(A, B, last=A, after_ns=SUDDEN_NS)] * 3) == {A}
    # One that was done already is not to blame.
    assert convicted(tmp_path / "done", *[killed(B, last=None)] * 3) == frozenset()


def test_a_kill_among_crashes_ends_what_it_does_not_confirm(tmp_path: Path) -> None:
    late = killed(A, last=A, after_ns=10 * SUDDEN_NS)
    assert convicted(tmp_path / "deaths", crashed(A), crashed(A), late) == frozenset()
    assert convicted(tmp_path / "deaths", crashed(A), crashed(A), crashed(A)) == {A}


def test_a_clean_end_ends_the_row(tmp_path: Path) -> None:
    assert convicted(tmp_path / "deaths", crashed(A), crashed(A), None, crashed(A)) == frozenset()


def test_deaths_far_apart_are_no_row(tmp_path: Path) -> None:
    deaths = [crashed(A, at_s=100.0 + number * (ROW_S / 2 + 1)) for number in range(3)]
    assert convicted(tmp_path / "deaths", *deaths) == frozenset()
    near = [crashed(A, at_s=100.0 + number * ROW_S / 2) for number in range(3)]
    assert convicted(tmp_path / "near", *near) == {A}


def test_a_row_is_forgotten_when_a_daemon_has_served(tmp_path: Path) -> None:
    path = tmp_path / "deaths"
    convicted(path, *[crashed(A)] * 3)
    row = Deaths.load(path)
    assert row.convicted() == {A}
    row.forget()
    assert not path.exists()
    row.forget()
    assert convicted(path, crashed(A)) == frozenset()


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[1]", b'[{"at_s": 1}]', b"\xff", b'[{"at_s": 1.0, "in_hand": [[1]]}]']
)
def test_a_file_that_cannot_be_read_is_no_row(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "deaths"
    path.write_bytes(content)
    assert Deaths.load(path).row == ()


def test_a_run_directory_that_takes_no_file_keeps_nobody_from_starting(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    row = Deaths.load(tmp_path / "gone" / "deaths")
    row.add(crashed(A))
    assert row.row == (crashed(A),)
    assert "cannot write" in caplog.text
    with pytest.raises(OSError, match="No such file"):
        InHand(tmp_path / "gone" / "n")
    assert os.listdir(tmp_path) == []
