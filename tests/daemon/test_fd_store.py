"""What systemd hands back at a start: by name, in any order, and nothing of it stays open that is not ours."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from snapshotter.daemon.fd_store import FUSE_NAME, RECORD_NAME, inherited, read_record, record_file
from tests.doubles.service_manager import ServiceManager

_SERVICE = """
import json, os, sys
from snapshotter.daemon.fd_store import inherited

if sys.argv[1]:
    os.environ["LISTEN_PID"] = sys.argv[1]
given = range(3, 3 + int(os.environ.get("LISTEN_FDS", 0)))
found = inherited()
print(json.dumps({
    "found": {name: os.pread(fd, 100, 0).decode() for name, fd in found.items()},
    "inheritable": [fd for fd in found.values() if os.get_inheritable(fd)],
    "others": [fd for fd in given if fd not in found.values() and os.path.exists(f"/proc/self/fd/{fd}")],
    "left": [name for name in os.environ if name.startswith("LISTEN_")],
}))
"""


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[ServiceManager]:
    with ServiceManager(tmp_path) as made:
        yield made


def started(manager: ServiceManager, *held: tuple[str, str], pid: str = "") -> Any:
    """What a service finds that is started with files of these names and contents."""
    for name, content in held:
        fd = record_file(content.encode())
        manager.keep(name, fd)
        os.close(fd)
    words = manager.program(sys.executable, "-c", _SERVICE, pid)
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["left"] == []
    assert found["inheritable"] == []
    return found


@pytest.mark.parametrize("_", range(4))
def test_each_is_found_by_its_name_whatever_the_order(manager: ServiceManager, _: int) -> None:
    found = started(manager, (FUSE_NAME, "fuse"), (RECORD_NAME, "record"))
    assert found["found"] == {FUSE_NAME: "fuse", RECORD_NAME: "record"}


def test_of_several_with_one_name_one_is_taken_and_the_others_are_closed(manager: ServiceManager) -> None:
    found = started(manager, (FUSE_NAME, "a"), (FUSE_NAME, "b"), (FUSE_NAME, "c"))
    assert found["found"][FUSE_NAME] in {"a", "b", "c"}
    assert found["others"] == []


def test_what_is_not_ours_is_closed(manager: ServiceManager) -> None:
    found = started(manager, ("of another program", "x"), (RECORD_NAME, "record"))
    assert found["found"] == {RECORD_NAME: "record"}
    assert found["others"] == []


def test_nothing_stored_is_nothing_found(manager: ServiceManager) -> None:
    assert started(manager)["found"] == {}


def test_what_was_given_to_another_process_is_left_alone(manager: ServiceManager) -> None:
    found = started(manager, (FUSE_NAME, "fuse"), (RECORD_NAME, "record"), pid="1")
    assert found["found"] == {}
    assert found["others"] == [3, 4]


@pytest.mark.parametrize("count", ["", "x", "-1", "²"])
def test_variables_that_make_no_sense_are_taken_away(count: str) -> None:
    environment = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": count, "LISTEN_FDNAMES": FUSE_NAME, "PATH": "/bin"}
    assert inherited(environment) == {}
    assert environment == {"PATH": "/bin"}


def test_a_record_is_read_back_from_its_file() -> None:
    record = bytes(range(256)) * 40
    fd = record_file(record)
    try:
        assert read_record(fd) == record
        assert not os.get_inheritable(fd)
    finally:
        os.close(fd)
