"""Numbers of the gate's files where the database takes no more: a later daemon must know them all the same."""

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapshotter.daemon.gate_numbers import EXTRA_NUMBERS, GateNumbers
from snapshotter.errors import StoreError, StoreFull
from snapshotter.plane.fuse.inodes import GATE_FILE
from snapshotter.store.state import State
from snapshotter.store.state_gate import GateFile
from tests.store.test_state import record

DOMAIN = "node"
NAMES = [f"{number:02x}" * 32 for number in range(40)]


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    made = State(tmp_path / "state.db")
    record(made, domain=DOMAIN)
    yield made
    made.close()


@pytest.fixture
def full(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    """The database takes nothing more."""

    def refuse(*_: object) -> GateFile:
        raise StoreFull("no room to write state.db")

    monkeypatch.setattr(state, "add_gate_file", refuse)


def test_numbers_are_the_databases_while_it_takes_them(state: State, tmp_path: Path) -> None:
    numbers = GateNumbers(state, tmp_path / EXTRA_NUMBERS)
    made = numbers.add_gate_file(DOMAIN, NAMES[0], 9)
    assert made.number == 1
    assert numbers.add_gate_file(DOMAIN, NAMES[0], 9) == made
    assert state.gate_files() == numbers.gate_files() == [made]
    assert numbers.domains() == state.domains()
    assert not (tmp_path / EXTRA_NUMBERS).exists()


@pytest.mark.usefixtures("full")
def test_where_the_state_cannot_be_written_numbers_come_from_the_top_and_outlast_the_process(
    state: State, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    numbers = GateNumbers(state, tmp_path / EXTRA_NUMBERS)
    made = [numbers.add_gate_file(DOMAIN, name, size) for size, name in enumerate(NAMES[:2])]
    assert made == [GateFile(GATE_FILE - 1, DOMAIN, NAMES[0], 0), GateFile(GATE_FILE - 2, DOMAIN, NAMES[1], 1)]
    assert numbers.add_gate_file(DOMAIN, NAMES[0], 0) == made[0]
    assert "recording the number" in caplog.text
    assert (tmp_path / EXTRA_NUMBERS).stat().st_mode & 0o777 == 0o600
    again = GateNumbers(state, tmp_path / EXTRA_NUMBERS)
    assert again.gate_files() == made
    assert again.add_gate_file(DOMAIN, NAMES[2], 2).number == GATE_FILE - 3


def test_a_number_from_the_top_stays_when_the_database_takes_them_again(
    state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = GateNumbers(state, tmp_path / EXTRA_NUMBERS)
    with monkeypatch.context() as patch:
        patch.setattr(state, "add_gate_file", lambda *_: (_ for _ in ()).throw(StoreFull("no room")))
        first = numbers.add_gate_file(DOMAIN, NAMES[0], 7)
    assert numbers.add_gate_file(DOMAIN, NAMES[0], 7) == first
    assert numbers.add_gate_file(DOMAIN, NAMES[1], 8).number == 1
    assert {file.name: file.number for file in numbers.gate_files()} == {NAMES[0]: GATE_FILE - 1, NAMES[1]: 1}


@pytest.mark.usefixtures("full")
def test_threads_that_ask_at_the_same_time_get_one_number_a_file(state: State, tmp_path: Path) -> None:
    numbers = GateNumbers(state, tmp_path / EXTRA_NUMBERS)
    together = threading.Barrier(4)
    answers: list[list[GateFile]] = []

    def ask() -> None:
        together.wait(60)
        answers.append([numbers.add_gate_file(DOMAIN, name, 1) for name in NAMES])

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(answers) == 4
    assert all(each == answers[0] for each in answers)
    assert len({file.number for file in answers[0]}) == len(NAMES)
    assert GateNumbers(state, tmp_path / EXTRA_NUMBERS).gate_files() == numbers.gate_files()


@pytest.mark.usefixtures("full")
@pytest.mark.parametrize("left", range(12))
def test_a_last_line_that_was_cut_off_harms_no_number_before_or_after_it(
    state: State, tmp_path: Path, left: int
) -> None:
    path = tmp_path / EXTRA_NUMBERS
    numbers = GateNumbers(state, path)
    first, _ = (numbers.add_gate_file(DOMAIN, name, 1) for name in NAMES[:2])
    written = path.read_bytes()
    path.write_bytes(written[: written.index(b"\n", 1) + 1 + left])
    again = GateNumbers(state, path)
    assert again.gate_files() == [first]
    third = again.add_gate_file(DOMAIN, NAMES[2], 1)
    assert GateNumbers(state, path).gate_files() == [first, third]


@pytest.mark.usefixtures("full")
def test_where_the_run_directory_is_full_too_it_is_a_store_error_and_no_number(
    state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = GateNumbers(state, tmp_path / EXTRA_NUMBERS)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StoreError, match="No space left"):
        numbers.add_gate_file(DOMAIN, NAMES[0], 1)
    assert numbers.gate_files() == []


@pytest.mark.usefixtures("full")
def test_a_run_directory_that_is_gone_is_a_store_error(state: State, tmp_path: Path) -> None:
    numbers = GateNumbers(state, tmp_path / "gone" / EXTRA_NUMBERS)
    with pytest.raises(StoreError, match="No such file"):
        numbers.add_gate_file(DOMAIN, NAMES[0], 1)
