"""Who waits at the gate: waits alone, not for ever where nobody could kill him, and not for a daemon that has died."""

import errno
import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from snapshotter.plane.erofs.gate import PATIENCE_S as GATE_PATIENCE_S
from tests.mount.composed import Composed, composed
from tests.mount.conftest import PATIENCE_S, Served, child
from tests.mount.gate_world import SPARE, STUCK, built, content_name

GONE_S = 15.0
"""So soon a process that was killed while it waited is gone, also where other work holds the machine up."""
TOGETHER = 20
"""Processes that would take twice as long if each kept the next one waiting for the gate's whole patience."""

OPEN = """
print(json.dumps("opening"), flush=True)
file = open(sys.argv[1], "rb")
print(json.dumps("opened"), flush=True)
print(json.dumps(file.read().decode("latin-1")), flush=True)
"""
OPEN_ALL = """
import threading
def read(number):
    open(f"{sys.argv[1]}/{number:03}", "rb").read()
first, count = map(int, sys.argv[2:])
threads = [threading.Thread(target=read, args=(number,)) for number in range(first, first + count)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""
READ = "print(json.dumps(open(sys.argv[1], 'rb').read().decode('latin-1')))"
ERRNO = """
try:
    open(sys.argv[1], "rb").read()
    print(json.dumps(0))
except OSError as error:
    print(json.dumps(error.errno))
"""
SPARE_FILES = iter(range(STUCK, STUCK + SPARE))


@pytest.fixture(scope="module")
def gate(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Composed]:
    """For tests that leave it as it was, but for files of their own."""
    with composed(served, tmp_path_factory.mktemp("gate")) as made:
        yield made


@pytest.fixture
def own_gate(own_server: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Composed]:
    with composed(own_server, tmp_path_factory.mktemp("own-gate")) as made:
        yield made


@pytest.fixture
def patient(gate: Composed) -> Iterator[Composed]:
    """A gate at which lookups wait for ever."""
    gate.served.command("patience 3600")
    yield gate
    gate.served.command(f"patience {GATE_PATIENCE_S}")


@pytest.fixture
def path() -> str:
    """A file that waits until it is released, of the test's own."""
    return f"stuck/{next(SPARE_FILES)}"


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for something to come true."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def text(path: str) -> str:
    return built().files[path].decode("latin-1")


def said(path: str) -> bytes:
    """A file's content as a process says it."""
    return json.dumps(text(path)).encode()


def line(process: subprocess.Popen[bytes]) -> bytes:
    """The next thing that a process says."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def kill(process: subprocess.Popen[bytes]) -> float:
    """Kill a process; return how long it took to go."""
    began = time.monotonic()
    process.send_signal(signal.SIGKILL)
    assert process.wait(PATIENCE_S) == -signal.SIGKILL
    return time.monotonic() - began


def opening(gate: Composed, file: Path) -> subprocess.Popen[bytes]:
    """A process that is about to open a file."""
    process = gate.start(OPEN, file)
    assert line(process) == b'"opening"'
    return process


# --- others


def test_200_lookups_that_wait_in_one_directory_delay_no_other(own_gate: Composed) -> None:
    own_gate.served.command("patience 3600")
    shards = {content_name(f"stuck/{number:03}")[:2] for number in range(STUCK)}
    assert shards == {content_name("small/in-the-same-shard")[:2]}
    root = own_gate.overlay()
    process = own_gate.start(OPEN_ALL, root / "stuck", "0", str(STUCK))
    until(lambda: own_gate.served.command("waiting") == STUCK, "not all of them came to wait")
    for place in (root, own_gate.overlay()):
        for path in ("small/in-the-same-shard", "small/000", "large/0"):
            assert child(READ, place / path) == text(path)
    assert own_gate.served.command("waiting") == STUCK
    assert kill(process) < GONE_S
    until(lambda: own_gate.served.command("waiting") == 0, "somebody still waits for a process that has gone")


def test_200_who_became_readers_delay_nobody_either(own_gate: Composed) -> None:
    root = own_gate.overlay()
    process = own_gate.start(OPEN_ALL, root / "stuck", "0", str(STUCK))
    until(lambda: own_gate.served.command("reads") >= STUCK, "not all of them came to read")
    assert own_gate.served.command("waiting") == 0
    for path in ("small/in-the-same-shard", "large/0"):
        assert child(READ, root / path) == text(path)
    assert kill(process) < GONE_S


# --- processes that are killed


def test_a_process_that_is_killed_while_it_waits_is_gone_and_the_file_comes_all_the_same(
    patient: Composed, path: str
) -> None:
    root = patient.overlay()
    process = opening(patient, root / path)
    until(lambda: patient.waiting(path) == 1, "it does not wait")
    assert kill(process) < GONE_S
    until(lambda: patient.waiting(path) == 0, "somebody still waits for it")
    patient.served.command(f"release {path}")
    assert child(READ, root / path) == text(path)
    assert patient.served.command(f"brought {path}") == 1


@pytest.mark.parametrize("containers", [1, 2])
def test_of_two_that_wait_for_one_name_each_can_be_killed(patient: Composed, path: str, containers: int) -> None:
    roots = [patient.overlay() for _ in range(containers)]
    first = opening(patient, roots[0] / path)
    until(lambda: patient.waiting(path) == 1, "it does not wait")
    second = opening(patient, roots[-1] / path)
    time.sleep(0.1)
    assert patient.lookups(path) == 1
    assert kill(first) < GONE_S
    until(lambda: patient.lookups(path) == 2, "the second does not ask for itself")
    assert second.poll() is None
    assert kill(second) < GONE_S


@pytest.mark.parametrize("containers", [1, 2])
def test_who_waits_for_another_ones_lookup_can_be_killed(gate: Composed, path: str, containers: int) -> None:
    """The kernel asks once and lets the second wait for that, which nothing can end but the answer."""
    roots = [gate.overlay() for _ in range(containers)]
    first = opening(gate, roots[0] / path)
    until(lambda: gate.lookups(path) == 1, "nobody asks")
    second = opening(gate, roots[-1] / path)
    time.sleep(0.1)
    assert kill(second) < GONE_S
    assert line(first) == b'"opened"'
    gate.served.command(f"release {path}")
    assert line(first) == said(path)
    assert gate.lookups(path) == 1


def test_many_that_wait_for_one_name_are_gone_together(gate: Composed, path: str) -> None:
    """Each that was killed would let the kernel ask for the next of them."""
    roots = [gate.overlay() for _ in range(TOGETHER)]
    processes = [gate.start(OPEN, root / path) for root in roots]
    assert [line(process) for process in processes] == [b'"opening"'] * TOGETHER
    until(lambda: gate.lookups(path) == 1, "nobody asks")
    began = time.monotonic()
    for process in processes:
        process.kill()
    for process in processes:
        process.wait(PATIENCE_S)
    assert time.monotonic() - began < GONE_S


def test_a_process_that_is_killed_while_it_reads_is_gone(gate: Composed, path: str) -> None:
    reads = gate.served.command("reads")
    process = opening(gate, gate.overlay() / path)
    assert line(process) == b'"opened"'
    until(lambda: gate.served.command("reads") == reads + 1, "it does not read")
    assert kill(process) < GONE_S


def test_threads_that_wait_go_with_their_process(patient: Composed) -> None:
    paths = [f"stuck/{next(SPARE_FILES)}" for _ in range(3)]
    process = patient.start(OPEN_ALL, patient.overlay() / "stuck", paths[0].partition("/")[2], "3")
    until(lambda: sum(map(patient.waiting, paths)) == 3, "they do not wait")
    assert kill(process) < GONE_S


# --- patience, and a registry that comes back


def test_who_waits_too_long_gets_a_file_that_is_readable_to_its_end_later(gate: Composed, path: str) -> None:
    root = gate.overlay()
    began = time.monotonic()
    process = opening(gate, root / path)
    assert line(process) == b'"opened"'
    assert time.monotonic() - began >= GATE_PATIENCE_S - 0.1
    gate.served.command(f"release {path}")
    assert line(process) == said(path)
    assert process.wait(PATIENCE_S) == 0
    # It is whole now: native elsewhere, and here still by the inode that this overlay knows, whatever is done to it.
    assert gate.content(path).read_bytes() == built().files[path]
    lookups = gate.lookups(path)
    assert child(READ, gate.overlay() / path) == text(path)
    assert gate.lookups(path) == lookups
    code = """
path = sys.argv[1]
content = open(path).read()
open(path + "-new", "w").write("new")
os.rename(path + "-new", path)
print(json.dumps([content, open(path).read()]))
"""
    assert child(code, root / path) == [text(path), "new"]


def test_a_file_that_failed_is_had_once_its_registry_is_back(own_gate: Composed) -> None:
    root = own_gate.overlay()
    for fault in ("outage", "bug"):
        assert child(ERRNO, root / fault / "0") == errno.EIO
    own_gate.served.command("mend")
    for fault in ("outage", "bug"):
        assert child(READ, root / fault / "0") == text(f"{fault}/0")
    assert own_gate.lookups("outage/0") == 2


# --- a daemon that has died


def test_what_is_on_the_node_outlives_the_daemon_and_the_rest_is_an_error_that_nobody_takes_for_absence(
    own_gate: Composed,
) -> None:
    own_gate.served.command("patience 3600")
    roots = [own_gate.overlay() for _ in range(2)]
    for path in ("small/000", "small/001"):
        assert child(READ, roots[0] / path) == text(path)
    assert child("print(json.dumps(len(open(sys.argv[1], 'rb').read(4096))))", roots[0] / "large/0") == 4096
    process = own_gate.start(ERRNO, roots[0] / "stuck/000")
    until(lambda: own_gate.waiting("stuck/000") == 1, "it does not wait")
    own_gate.served.stop()
    assert int(line(process)) not in (0, errno.ENOENT)
    for root in roots:
        for path in ("small/000", "small/001"):
            assert child(READ, root / path) == text(path)
        for path in ("small/002", "large/0", "large/1", "stuck/000"):
            assert child(ERRNO, root / path) not in (0, errno.ENOENT)
        assert child("print(json.dumps(sorted(os.listdir(sys.argv[1]))))", root / "full") == ["0"]
        assert child("print(json.dumps(os.stat(sys.argv[1]).st_size))", root / "small/002") == len(text("small/002"))
