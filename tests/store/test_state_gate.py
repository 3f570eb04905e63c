"""Numbers that the kernel was told: of sharing domains, and of files that the gate serves."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from snapshotter.errors import StoreError
from snapshotter.store.sqlite import open_database
from snapshotter.store.state import State
from snapshotter.store.state_gate import GateFile
from snapshotter.store.state_schema import MIGRATIONS
from tests.store.test_state import record

A, B, LARGE = "a1" * 32, "b2" * 32, "c3" * 32 + "-" + "d4" * 16


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    opened = State(tmp_path / "state.db")
    yield opened
    opened.close()


def revision_1(path: Path, domains: list[str]) -> None:
    """A database as the first version left it, with a layer of each of these domains."""
    database = open_database(path, synchronous="OFF", migrations=MIGRATIONS[:1])
    for number, domain in enumerate(domains):
        database.execute(
            "INSERT INTO layers (layer_digest, toc_digest, domain, index_revision, blob_size, media_type, codec,"
            " toc_offset, toc_end, payload_end, verified, created_ns, last_used_ns)"
            " VALUES (?, 'sha256:t', ?, 3, 900, 'm', 'gzip', 700, 849, 700, 1, 1000, 1000)",
            (f"sha256:{number}", domain),
        )
    database.close()


# --- domains


def test_a_domain_has_a_number_from_its_first_layer_on(tmp_path: Path, state: State) -> None:
    assert state.domains() == {}
    for layer, domain in (("sha256:1", "node"), ("sha256:2", "other"), ("sha256:3", "node"), ("sha256:1", "other")):
        record(state, layer, domain=domain)
    assert state.domains() == {"node": 1, "other": 2}
    state.close()
    again = State(tmp_path / "state.db")
    assert again.domains() == {"node": 1, "other": 2}
    again.close()


def test_a_domain_keeps_its_number_when_its_layers_go(state: State) -> None:
    record(state, domain="node")
    state.forget_layer(1)
    assert state.domains() == {"node": 1}
    record(state, domain="other")
    record(state, domain="node")
    assert state.domains() == {"node": 1, "other": 2}


def test_a_layer_in_a_new_domain_is_recorded_with_it_or_not_at_all(state: State) -> None:
    with state.write() as db:
        db.execute("CREATE TRIGGER full BEFORE INSERT ON layers BEGIN SELECT RAISE(ABORT, 'no room'); END")
    with pytest.raises(StoreError, match="no room"):
        record(state)
    assert (state.domains(), state.layers()) == ({}, [])


def test_a_state_of_the_first_version_gets_numbers_for_the_domains_it_has(tmp_path: Path) -> None:
    revision_1(tmp_path / "old.db", ["registry-b", "node", "registry-b", "node"])
    state = State(tmp_path / "old.db")
    assert state.domains() == {"node": 1, "registry-b": 2}
    assert [(layer.number, layer.domain) for layer in state.layers()] == [
        (1, "registry-b"),
        (2, "node"),
        (3, "registry-b"),
        (4, "node"),
    ]
    assert state.gate_files() == []
    record(state, "sha256:new", domain="third")
    assert state.domains()["third"] == 3
    state.close()
    again = State(tmp_path / "old.db")
    assert again.domains() == {"node": 1, "registry-b": 2, "third": 3}
    again.close()


def test_an_empty_state_of_the_first_version_has_no_domains(tmp_path: Path) -> None:
    revision_1(tmp_path / "old.db", [])
    state = State(tmp_path / "old.db")
    assert (state.domains(), state.layers()) == ({}, [])
    state.close()


# --- files of the gate


def test_a_file_is_given_one_number_however_often_it_is_asked_for(tmp_path: Path, state: State) -> None:
    first = state.add_gate_file("node", A, 100)
    assert first == GateFile(1, "node", A, 100)
    assert state.add_gate_file("node", A, 100) == first
    # The kernel was told the first size.
    assert state.add_gate_file("node", A, 101) == first
    others = [state.add_gate_file("node", LARGE, 9000), state.add_gate_file("other", A, 100)]
    assert [file.number for file in others] == [2, 3]
    state.close()
    again = State(tmp_path / "state.db")
    assert sorted(again.gate_files()) == [first, *others]
    again.close()


def test_a_fresh_mount_knows_no_file_and_numbers_them_from_one(tmp_path: Path, state: State) -> None:
    for name in (A, B):
        state.add_gate_file("node", name, 100)
    state.begin_mount()
    assert state.gate_files() == []
    state.close()
    again = State(tmp_path / "state.db")
    assert again.add_gate_file("node", B, 200) == GateFile(1, "node", B, 200)
    assert again.add_gate_file("node", A, 100).number == 2
    again.begin_mount()
    assert again.add_gate_file("node", A, 100).number == 1
    again.close()


def test_numbers_of_one_mount_go_on_after_a_restart(tmp_path: Path, state: State) -> None:
    state.begin_mount()
    state.add_gate_file("node", A, 100)
    state.close()
    again = State(tmp_path / "state.db")
    assert again.add_gate_file("node", B, 100).number == 2
    again.close()


def test_threads_that_ask_at_once_are_given_the_same_number(state: State) -> None:
    with ThreadPoolExecutor(8) as pool:
        given = list(pool.map(lambda number: state.add_gate_file("node", (A, B, LARGE)[number % 3], 100), range(48)))
    assert {file.number for file in given} == {1, 2, 3}
    assert len(set(given)) == 3
    assert sorted(state.gate_files()) == sorted(set(given))


def test_every_column_says_what_it_is() -> None:
    script = MIGRATIONS[1]
    assert isinstance(script, str)
    for line in script.splitlines():
        declares_column = line.startswith("    ") and not line.lstrip().startswith(("UNIQUE", "PRIMARY"))
        assert not declares_column or " -- " in line, line


def test_a_fresh_mount_numbers_the_domains_that_layers_have_from_one(state: State) -> None:
    record(state, "sha256:1", domain="first")
    record(state, "sha256:2", domain="second")
    state.forget_layer(1)
    assert state.domains() == {"first": 1, "second": 2}
    state.begin_mount()
    assert state.domains() == {"second": 1}
