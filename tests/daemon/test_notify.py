import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapshotter.daemon.notify import Notifier


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    name = f"@{tmp_path}" if request.param == "abstract" else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("\0" + name[1:] if name.startswith("@") else name)
        listener.settimeout(60)
        yield listener, name


def test_states_reach_the_manager_in_its_words(manager: tuple[socket.socket, str]) -> None:
    listener, name = manager
    environment = {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "4000000", "WATCHDOG_PID": str(os.getpid())}
    notifier = Notifier(environment)
    assert environment == {}
    assert notifier.watchdog_s == 2.0
    notifier.ready("3 lazy layers")
    notifier.alive()
    notifier.stopping()
    assert [listener.recv(100) for _ in range(3)] == [b"READY=1\nSTATUS=3 lazy layers", b"WATCHDOG=1", b"STOPPING=1"]


def test_a_descriptor_goes_to_the_manager_with_its_name_and_takes_the_place_of_the_one_before(
    manager: tuple[socket.socket, str], tmp_path: Path
) -> None:
    listener, name = manager
    kept = tmp_path / "kept"
    kept.write_text("x")
    with kept.open() as file:
        Notifier({"NOTIFY_SOCKET": name}).store("of-mine", file.fileno())
        own = os.fstat(file.fileno())
    assert listener.recv(100) == b"FDSTOREREMOVE=1\nFDNAME=of-mine"
    state, fds, _, _ = socket.recv_fds(listener, 100, 4)
    assert state == b"FDSTORE=1\nFDNAME=of-mine"
    (fd,) = fds
    assert os.path.samestat(os.fstat(fd), own)
    os.close(fd)


def test_settling_lasts_until_the_manager_closes_what_it_was_sent(manager: tuple[socket.socket, str]) -> None:
    listener, name = manager
    settled = threading.Event()

    def settle() -> None:
        Notifier({"NOTIFY_SOCKET": name}).settle(timeout_s=60)
        settled.set()

    thread = threading.Thread(target=settle)
    thread.start()
    state, fds, _, _ = socket.recv_fds(listener, 100, 4)
    assert (state, len(fds)) == (b"BARRIER=1", 1)
    assert not settled.wait(0.05)
    os.close(fds[0])
    thread.join(60)
    assert settled.is_set()


def test_a_manager_that_knows_no_barrier_is_not_waited_for_long(manager: tuple[socket.socket, str]) -> None:
    _, name = manager
    Notifier({"NOTIFY_SOCKET": name}).settle(timeout_s=0.01)


def test_without_a_manager_nothing_happens() -> None:
    notifier = Notifier({})
    notifier.ready("x")
    notifier.store("name", 0)
    notifier.forget("name")
    notifier.settle(timeout_s=3600)
    assert notifier.watchdog_s is None


def test_a_manager_that_is_gone_does_not_end_the_daemon(tmp_path: Path) -> None:
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "none")}).ready("x")


def test_a_watchdog_meant_for_another_process_is_not_ours() -> None:
    assert Notifier({"WATCHDOG_USEC": "4000000", "WATCHDOG_PID": "1"}).watchdog_s is None
