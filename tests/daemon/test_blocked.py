"""Threads that wait, found in a made-up /proc; integration/test_top.py finds real ones."""

import os
import threading
from collections.abc import Iterable
from pathlib import Path

import pytest

from snapshotter.daemon import blocked as module
from snapshotter.daemon.blocked import BlockedThread, Doing, Lookout, blocked_threads
from snapshotter.daemon.users import ContainerName

READ, EXECVE = "0 0x3 0x7000 0x10 0x0 0x0 0x0 0x7fff0000 0x401000", "59 0x0 0x0 0x0 0x0 0x0 0x0 0x7fff0000 0x401000"
FAULT = "-1 0x7fff0000 0x401000"
MAPS = """\
00400000-00402000 r-xp 00000000 00:2a 11                         /bin/program
00500000-00501000 r--p 00000000 00:2a 12                         /lib/with space.so
7ff000000000-7ff000001000 rw-p 00000000 00:00 0                  [heap]
"""


def thread(
    proc: Path,
    number: int,
    *,
    state: str = "D",
    wchan: str = "folio_wait_bit_common",
    syscall: str = READ,
    stack: str = "",
    namespace: str = "mnt:[2]",
    pid: int = 0,
    files: dict[int, str] | None = None,
) -> Path:
    pid = pid or number
    place = proc / str(number)
    (place / "ns").mkdir(parents=True)
    (place / "fd").mkdir()
    (place / "task" / str(number)).mkdir(parents=True)
    for link, target in {"ns/mnt": namespace, "root": "/", "cwd": "/work"}.items():
        os.symlink(target, place / link)
    for fd, target in (files or {}).items():
        os.symlink(target, place / "fd" / str(fd))
    texts = {
        "stat": f"{number} (odd ) name) {state} 1 1",
        "wchan": wchan,
        "syscall": syscall + "\n",
        "stack": stack,
        "status": f"Name:\tprogram\nTgid:\t{pid}\n",
        "maps": MAPS,
        "mountinfo": "",
        "cgroup": "0::/x/" + "ab" * 32,
        "mem": "",
    }
    for name, text in texts.items():
        (place / name).write_text(text)
    return place


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    thread(tmp_path, 1, state="S", wchan="do_epoll_wait", namespace="mnt:[1]")
    os.symlink("1", tmp_path / "self")
    (tmp_path / "meminfo").write_text("")
    return tmp_path


def test_a_thread_that_reads_is_found_with_the_file_it_has_open_and_its_container(proc: Path) -> None:
    thread(proc, 70, files={0: "/dev/null", 3: "/usr/lib/libc.so"})
    (found,) = blocked_threads((), proc)
    # The call's other arguments are no open files: 0 is one by chance, and no file that anybody waits for.
    assert found.paths[0] == "/usr/lib/libc.so"
    assert found == BlockedThread(70, 70, "program", Doing.CALL, found.paths, ContainerName("ab" * 32))


@pytest.mark.parametrize(
    ("state", "wchan", "waits"),
    [
        ("S", "request_wait_answer", True),
        ("D", "request_wait_answer", True),
        ("D", "d_alloc_parallel", True),
        ("D", "wait_on_page_bit_common", True),
        ("D", "0", True),  # a kernel that tells no names
        ("S", "0", False),
        ("S", "folio_wait_bit_common", False),
        ("S", "futex_wait", False),
        ("D", "kernel_clone", False),
        ("R", "0", False),
        ("Z", "0", False),
    ],
)
def test_a_thread_waits_for_us_by_where_it_sleeps(proc: Path, state: str, wchan: str, waits: bool) -> None:
    thread(proc, 70, state=state, wchan=wchan)
    assert bool(blocked_threads((), proc)) == waits


def test_a_page_fault_is_for_one_of_the_mapped_files_first_that_of_the_code(proc: Path) -> None:
    thread(proc, 70, syscall=FAULT)
    thread(proc, 71, syscall=READ, stack="[<0>] folio_wait_bit_common+0x1/0x2\n[<0>] filemap_fault+0x1/0x2\n")
    for found in blocked_threads((), proc):
        assert found.doing is Doing.FAULT
        assert found.paths == ("/bin/program", "/lib/with space.so")


def test_a_path_is_read_from_the_memory_of_the_process_that_looks_it_up(proc: Path) -> None:
    place = thread(
        proc, 70, state="S", wchan="request_wait_answer", stack="[<0>] fuse_lookup+0x1/0x2", files={5: "/opt"},
        syscall="257 0x5 0x2ffa 0x0 0x0 0x0 0x0 0x7fff0000 0x401000",
    )  # fmt: skip
    with open(place / "mem", "wb") as memory:
        memory.seek(0x2FFA)
        memory.write(b"../lib/x\0behind")  # across the end of a page
    (found,) = blocked_threads((), proc)
    assert found.doing is Doing.LOOKUP
    assert {"/lib/x"} <= set(found.paths)


def test_threads_of_the_host_are_looked_at_only_when_hinted(proc: Path) -> None:
    thread(proc, 80, namespace="mnt:[1]", pid=79)
    assert blocked_threads((), proc) == []
    (found,) = blocked_threads((80, 80, 12345), proc)
    assert (found.thread, found.pid) == (80, 79)


def test_threads_that_end_meanwhile_and_odd_files_are_passed_over(proc: Path) -> None:
    for name in ("stat", "wchan", "syscall", "status"):
        (thread(proc, 90 + len(name), files={}) / name).unlink()
    for name in ("stat", "syscall", "status"):
        (thread(proc, 190 + len(name), files={}) / name).write_text("")
    thread(proc, 99, syscall="running")
    (proc / "300").mkdir()
    assert [found.thread for found in blocked_threads((301,), proc)] == [99]


def test_so_many_threads_are_looked_at_and_no_more(proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "THREADS_MAX", 5)
    for number in range(100, 120):
        thread(proc, number)
    assert len(blocked_threads((), proc)) == 5


def test_a_look_that_hangs_is_left_alone_and_no_other_is_begun_beside_it() -> None:
    """A process that waits in a page fault may hold the lock that /proc needs."""
    free, begun, looks = threading.Event(), threading.Event(), 0

    def look(_hinted: Iterable[int]) -> list[BlockedThread]:
        nonlocal looks
        looks += 1
        begun.set()
        free.wait(30)
        return []

    lookout = Lookout(look)
    assert lookout.look((), 0.05) is None
    assert begun.wait(30)
    assert lookout.look((), 0.05) is None
    assert looks == 1
    free.set()
    assert lookout.look((), 30) == []
    assert looks == 2


def test_a_look_that_fails_is_as_one_that_hangs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert Lookout(lambda hinted: blocked_threads(hinted, tmp_path)).look((), 30) is None
    assert "cannot be looked for" in caplog.text
