"""The keeper as the process that it is, with a stand-in for the connection or a real mount."""

import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from snapshotter.errors import KeeperGone, PlaneError
from snapshotter.keeper import client, program
from snapshotter.keeper.client import Keeper, find, greet, keeper_argv
from snapshotter.keeper.messages import SOCKET_NAME, Message, receive, send
from snapshotter.keeper.program import Keeper as Program
from snapshotter.keeper.program import listen
from tests.doubles.keepers import END_S, await_no_keeper, run_dir, wait_for_end
from tests.doubles.raw_fuse import ECONNABORTED, RESENT, RawMount, raw_mount, said

__all__ = ["run_dir"]

NO_MINOR = 0xFFFFF
"""Of no mount: giving it up aborts nothing."""


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[RawMount]:
    with raw_mount(tmp_path / "mnt") as made:
        yield made


@pytest.fixture
def connection() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A stand-in: the first end is kept, and hangs up when the second is closed."""
    one, other = socket.socketpair()
    with one, other:
        yield one, other


def put(
    keeper: Keeper, fd: int, *, minor: int = NO_MINOR, deadline_s: int = 0, resend: bool = True, answered: bool = False
) -> None:
    keeper.put(fd, b"record", minor=minor, deadline_s=deadline_s, resend=resend, answered=answered)


def first_daemon(run_dir: Path) -> Keeper:
    keeper, kept = greet(run_dir)
    assert kept is None
    return keeper


def same_socket(fd: int, other: socket.socket) -> bool:
    return os.path.samestat(os.fstat(fd), os.fstat(other.fileno()))


def test_what_one_daemon_gives_the_next_one_gets(
    run_dir: Path, connection: tuple[socket.socket, socket.socket]
) -> None:
    first = first_daemon(run_dir)
    put(first, connection[0].fileno())
    first.ready()
    assert first.state() == client.KeeperState(first.pid, os.getpid(), keeps=True)
    first.close()
    second, kept = greet(run_dir)
    assert kept is not None
    assert (kept.record, second.pid) == (b"record", first.pid)
    assert kept.away_ms is not None
    assert kept.away_ms >= 0
    assert same_socket(kept.fd, connection[0])
    assert not os.get_inheritable(kept.fd)
    os.close(kept.fd)
    second.drop()
    assert not second.state().keeps
    second.close()


def test_it_is_a_process_of_its_own_that_holds_nothing_of_its_starters(
    run_dir: Path, connection: tuple[socket.socket, socket.socket]
) -> None:
    # Inherited by whatever is started.
    os.set_inheritable(connection[0].fileno(), True)
    with first_daemon(run_dir) as keeper:
        pid = keeper.pid
        assert pid == find_pid(run_dir) != os.getpid()
        assert os.getsid(pid) == pid
        assert os.readlink(f"/proc/{pid}/cwd") == "/"
        opened = set[str]()
        for number in os.listdir(f"/proc/{pid}/fd"):
            with suppress(FileNotFoundError):  # that of a client who has just left
                opened.add(os.readlink(f"/proc/{pid}/fd/{number}"))
        assert os.readlink(f"/proc/self/fd/{connection[0].fileno()}") not in opened
    assert [path for path in opened if not path.startswith(("/dev/null", "socket:", str(run_dir)))] == []


def find_pid(run_dir: Path) -> int:
    found = find(run_dir)
    assert found is not None
    with found:
        return found.pid


def test_while_one_daemon_lives_no_other_is_given_anything(
    run_dir: Path, connection: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "PATIENCE_S", 0.05)
    first = first_daemon(run_dir)
    put(first, connection[0].fileno())
    with pytest.raises(PlaneError, match=f"another daemon, process {os.getpid()}"):
        greet(run_dir)
    other = find(run_dir)
    assert other is not None
    with other:
        with pytest.raises(PlaneError, match="another daemon"):
            other.drop()
        with pytest.raises(PlaneError, match="another daemon"):
            put(other, connection[1].fileno())
        assert other.state().keeps
    assert first.state().keeps
    first.drop()
    first.close()


def test_a_daemon_that_is_dying_is_waited_for(run_dir: Path, connection: tuple[socket.socket, socket.socket]) -> None:
    first = first_daemon(run_dir)
    put(first, connection[0].fileno())
    ending = threading.Timer(0.1, first.close)
    ending.start()
    second, kept = greet(run_dir)
    assert kept is not None
    os.close(kept.fd)
    second.drop()
    second.close()
    ending.join()


@pytest.mark.parametrize(
    "message",
    [Message(4), Message(6), Message(77), Message(4, payload=b"x", fds=(2, 2))],
    ids=["PUT without a descriptor", "READY of nothing", "unknown", "two descriptors"],
)
def test_what_makes_no_sense_ends_the_talk_and_harms_nobody(run_dir: Path, message: Message) -> None:
    with first_daemon(run_dir) as keeper:
        stranger = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with stranger:
            stranger.settimeout(60)
            stranger.connect(os.fspath(run_dir / SOCKET_NAME))
            keeper.state()
            send(stranger, message)
            answer = receive(stranger)
            # Another daemon has it: most are told so. Nobody is told anything else.
            assert answer is None or answer.kind == 3
        assert keeper.state().daemon_pid == os.getpid()


_OTHER_USER = """
import os, socket, sys
os.setgroups([]); os.setuid(65534)
with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as keeper:
    keeper.connect(sys.argv[1])
    try:
        keeper.send(b"EKP1" + bytes([8, 0]) + bytes(6))
        print(len(keeper.recv(100)))
    except ConnectionError:
        print(0)
"""


def test_another_user_is_refused_even_where_files_let_him_in(run_dir: Path, tmp_path: Path) -> None:
    with first_daemon(run_dir) as keeper:
        assert (run_dir / SOCKET_NAME).stat().st_mode & 0o777 == 0o600
        (run_dir / SOCKET_NAME).chmod(0o666)
        for directory in (run_dir, *run_dir.parents):
            if directory == Path("/tmp"):
                break
            directory.chmod(0o755)
        words = [sys.executable, "-I", "-S", "-c", _OTHER_USER, str(run_dir / SOCKET_NAME)]
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
        assert (done.stdout, done.stderr) == ("0\n", "")
        assert keeper.state().daemon_pid == os.getpid()


def test_it_ends_with_a_daemon_that_left_nothing(run_dir: Path) -> None:
    keeper = first_daemon(run_dir)
    pid = keeper.pid
    keeper.close()
    assert wait_for_end(pid)
    assert find(run_dir) is None


def test_it_ends_with_the_last_mount_and_its_daemon(run_dir: Path, mount: RawMount) -> None:
    keeper = first_daemon(run_dir)
    put(keeper, mount.fd, minor=mount.minor)
    mount.end()
    while keeper.state().keeps:
        pass
    pid = keeper.pid
    keeper.close()
    assert wait_for_end(pid)
    assert "its mounts are gone" in (run_dir / client.LOG_NAME).read_text()


def test_it_ends_with_the_last_mount_when_no_daemon_is_there(run_dir: Path, mount: RawMount) -> None:
    keeper = first_daemon(run_dir)
    put(keeper, mount.fd, minor=mount.minor)
    pid = keeper.pid
    keeper.close()
    assert not wait_for_end(pid, 0.05)
    mount.end()
    assert wait_for_end(pid)


def test_one_that_nobody_talks_to_ends_after_a_time(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(os.fspath(tmp_path / "s"))
        listener.listen()
        ended = threading.Event()

        def run() -> None:
            Program(listener, idle_s=0.05).run()
            ended.set()

        threading.Thread(target=run, daemon=True).start()
        assert ended.wait(60)


def test_of_two_that_start_at_once_one_serves_and_the_other_ends(run_dir: Path) -> None:
    both = [subprocess.Popen(keeper_argv(run_dir), stderr=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        ready = select.poll()
        fds = [os.pidfd_open(each.pid) for each in both]
        for fd in fds:
            ready.register(fd, select.POLLIN)
        assert len(ready.poll(60_000)) == 1
        for fd in fds:
            os.close(fd)
        (ended,) = (each for each in both if each.poll() is not None)
        (living,) = (each for each in both if each is not ended)
        assert (ended.returncode, ended.communicate()[1]) == (0, "")
        keeper = first_daemon(run_dir)
        assert keeper.pid == living.pid
        keeper.close()
        assert living.wait(60) == 0
    finally:
        for each in both:
            with each:
                each.kill()


def test_a_keeper_that_ends_as_it_is_greeted_is_followed_by_another(run_dir: Path) -> None:
    for _ in range(20):
        # Each leaves nothing: its keeper ends while the next one comes.
        keeper = first_daemon(run_dir)
        keeper.close()


def test_one_that_was_killed_is_gone_and_leaves_its_place_to_the_next(run_dir: Path) -> None:
    keeper = first_daemon(run_dir)
    os.kill(keeper.pid, signal.SIGKILL)
    poll = select.poll()
    poll.register(keeper, select.POLLIN)
    assert poll.poll(60_000)
    with pytest.raises(KeeperGone):
        keeper.state()
    keeper.close()
    with first_daemon(run_dir) as another:
        assert another.pid != keeper.pid


def test_at_the_deadline_who_waits_has_an_error(run_dir: Path, mount: RawMount) -> None:
    keeper = first_daemon(run_dir)
    put(keeper, mount.fd, minor=mount.minor, deadline_s=1)
    keeper.ready()
    # Read by the daemon that dies, and not answered.
    child = mount.ask("trusted.a")
    mount.read()
    pid = keeper.pid
    keeper.close()
    assert said(child) == ECONNABORTED
    assert wait_for_end(pid, END_S + 60)
    assert "no daemon for 1 s: " in (run_dir / client.LOG_NAME).read_text()


def test_a_daemon_that_never_serves_does_not_put_the_deadline_off(run_dir: Path, mount: RawMount) -> None:
    keeper = first_daemon(run_dir)
    put(keeper, mount.fd, minor=mount.minor, deadline_s=2)
    keeper.ready()
    keeper.close()
    poll = select.poll()
    poll.register(mount.fd, 0)
    while not poll.poll(100):
        # As one does that dies at each start.
        again, kept = greet(run_dir)
        if kept is None:
            again.close()
            break
        os.close(kept.fd)
        again.close()
    assert poll.poll(60_000)


def test_a_daemon_that_comes_in_time_stops_the_clock(
    tmp_path: Path, mount: RawMount, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(now=time.monotonic())
    monkeypatch.setattr(program, "time", SimpleNamespace(monotonic=lambda: clock.now))
    with listen(str(tmp_path / SOCKET_NAME)) as listener:
        serving = threading.Thread(target=Program(listener).run, daemon=True)
        serving.start()
        keeper = first_daemon(tmp_path)
        put(keeper, mount.fd, minor=mount.minor, deadline_s=60)
        keeper.ready()
        keeper.close()
        second, kept = greet(tmp_path)  # after it has seen the end of the one before
        assert kept is not None
        os.close(kept.fd)
        clock.now += 59
        second.ready()
        clock.now += 3600
        # The second answer comes from a turn that has looked at the clock.
        assert [second.state().keeps for _ in range(2)] == [True, True]
        second.drop()
        second.close()
        serving.join(END_S)
        assert not serving.is_alive()


@pytest.mark.parametrize(("resend", "answered"), [(True, True), (False, True), (True, False)])
def test_what_a_dead_daemon_had_read_goes_back_to_the_queue(
    run_dir: Path, mount: RawMount, resend: bool, answered: bool
) -> None:
    keeper = first_daemon(run_dir)
    put(keeper, mount.fd, minor=mount.minor, resend=resend, answered=answered)
    child = mount.ask("trusted.a")
    first = mount.read()
    keeper.close()
    second, kept = greet(run_dir)  # after it has seen the end of the one before
    assert kept is not None
    os.close(kept.fd)
    if resend and answered:
        again = mount.read()
        assert again.unique == first.unique | RESENT
    else:
        # Never before INIT is answered, which would come again too.
        again = first
        assert mount.asks_nothing()
    mount.give(again.unique, "value")
    assert said(child) == "value"
    second.drop()
    second.close()


def test_it_needs_nothing_but_the_standard_library(run_dir: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import snapshotter.keeper.program; "
        "print(sorted(name for name in sys.modules if name.split('.')[0] == 'snapshotter'))"
    )
    package = keeper_argv(run_dir)[5]
    words = [sys.executable, "-I", "-S", "-c", code, package]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(
        ["snapshotter", "snapshotter.keeper", "snapshotter.keeper.messages", "snapshotter.keeper.program"]
    )


def test_no_keeper_stays(run_dir: Path) -> None:
    with first_daemon(run_dir):
        pass
    await_no_keeper(run_dir)
