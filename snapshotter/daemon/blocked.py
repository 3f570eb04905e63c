"""Which threads of this node wait inside a FUSE file system or for a page, and for which files: found in /proc.

The kernel tells a FUSE server which thread an OPEN or LOOKUP is for and, through libfuse, not which one a READ is for; and
those who wait for a page that somebody else has asked for, or for somebody else's LOOKUP, are not told at all.

Nothing here opens a path on a layer. Reading /proc of a thread that waits may itself wait, for locks that the thread
holds: `Lookout` looks in a thread of its own and goes on without it.
"""

import logging
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from snapshotter.daemon.users import ContainerName, Containers

log = logging.getLogger(__name__)

FUSE_ANSWER = "request_wait_answer"
PLACES = (
    FUSE_ANSWER,
    "folio_",
    "__folio_",
    "filemap_",
    "wait_on_page",
    "__lock_page",
    "io_schedule",
    "d_alloc_parallel",
)
"""Beginnings of kernel functions in which a thread sleeps that waits for FUSE's answer, for a page, or for another's
LOOKUP of the same name (Linux 5.10 to 6.18). What waits for a disk may be in the same places, and matches no file then."""

LOOKUPS = (b"fuse_lookup", b"d_alloc_parallel")
PAGE_FAULT = b"filemap_fault"
HIGHEST_FD = 1 << 16
PAGE = 4096
LONGEST_PATH = 4096
TEXT_ARGUMENTS = 3
"""A path is the first, second or third argument of every call that takes one."""

THREADS_MAX = 4000
"""Waiting threads that are looked at: more cannot wait for us at once (`plane.fuse.session.MAX_TASKS`)."""

_MAPPING = re.compile(rb"^([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ [1-9]\d*\s+(/.*)$", re.MULTILINE)


class Doing(Enum):
    """What a thread that waits does, and what its `paths` are."""

    CALL = "a system call: the open files among its arguments, then the texts that may name one, as with execve"
    FAULT = "it touches a page of a mapped file: one of them, the likeliest first"
    LOOKUP = "it looks a name up, for an open: the texts among the call's arguments"


@dataclass(frozen=True, slots=True)
class BlockedThread:
    """A thread that waits; `paths` are as its own root has them. Texts may be anything that lies where a path could."""

    thread: int
    pid: int
    process: str
    doing: Doing
    paths: tuple[str, ...]
    container: ContainerName


def blocked_threads(hinted: Iterable[int], proc: Path = Path("/proc")) -> list[BlockedThread]:
    """Return the waiting threads among all that have mounts of their own, as containers have, and those `hinted`."""
    containers = Containers(proc)
    found: dict[int, BlockedThread] = {}
    for thread in (*_in_containers(proc), *hinted):
        if thread in found or len(found) >= THREADS_MAX:
            continue
        try:
            blocked = _look(thread, proc / str(thread), containers)
        except (OSError, ValueError, LookupError):
            continue  # it has ended meanwhile, or went on
        if blocked is not None:
            found[thread] = blocked
    return list(found.values())


def _in_containers(proc: Path) -> Iterator[int]:
    """Yield the threads of processes outside our own mount namespace."""
    ours = os.readlink(proc / "self/ns/mnt")
    for name in os.listdir(proc):
        if name.isdecimal():
            try:
                if os.readlink(proc / name / "ns/mnt") != ours:
                    yield from map(int, os.listdir(proc / name / "task"))
            except OSError:
                continue


def _look(thread: int, place: Path, containers: Containers) -> BlockedThread | None:
    """Source: proc(5): stat's third field, wchan, syscall."""
    state = (place / "stat").read_bytes().rpartition(b")")[2].split()[0]
    if state not in (b"D", b"S"):
        return None
    where = (place / "wchan").read_text()
    if where in ("", "0"):  # a kernel that does not tell
        if state == b"S":
            return None
    elif not where.startswith(PLACES) or (state == b"S" and where != FUSE_ANSWER):
        return None
    doing, paths = _doing(place)
    status = dict(line.split(b":\t", 1) for line in (place / "status").read_bytes().splitlines() if b":\t" in line)
    pid = int(status[b"Tgid"])
    return BlockedThread(thread, pid, status[b"Name"].decode("utf-8", "replace"), doing, paths, containers.of(pid))


def _doing(place: Path) -> tuple[Doing, tuple[str, ...]]:
    call = (place / "syscall").read_text().split()
    stack = _stack(place)
    # Whatever the call is on this architecture: an argument that is the number of an open file is taken for one, and so is
    # a text for a path. Neither has the path of a file that is waited for by chance.
    arguments = [int(argument, 16) for argument in call[1:-2]]
    if any(name in stack for name in LOOKUPS):
        return Doing.LOOKUP, tuple(_texts(place, arguments))
    if call[0] == "-1" or PAGE_FAULT in stack:
        return Doing.FAULT, tuple(_mapped(place, int(call[-1], 16)))
    return Doing.CALL, (*_open_files(place, arguments), *_texts(place, arguments))


def _stack(place: Path) -> bytes:
    try:
        return (place / "stack").read_bytes()
    except OSError:
        return b""  # a kernel built without


def _open_files(place: Path, arguments: Iterable[int]) -> Iterator[str]:
    for number in arguments:
        if number < HIGHEST_FD:
            try:
                path = os.readlink(place / "fd" / str(number))
            except OSError:
                continue
            if path.startswith("/"):
                yield path


def _texts(place: Path, arguments: Sequence[int]) -> Iterator[str]:
    """Yield the texts that arguments point to, as paths: relative ones from the directory of the call, if it has one."""
    try:
        memory = os.open(place / "mem", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        folders = [*_open_files(place, arguments[:1]), os.readlink(place / "cwd")]
        for address in arguments[:TEXT_ARGUMENTS]:
            text = _text_at(memory, address)
            if text:
                yield from (os.path.normpath(os.path.join(folder, text)) for folder in folders)
    finally:
        os.close(memory)


def _text_at(memory: int, address: int) -> str:
    """Return the text that ends with a zero byte at an address of a process; empty if there is none."""
    found = b""
    while len(found) < LONGEST_PATH:
        try:
            # Page by page: the one behind may not be there.
            piece = os.pread(memory, PAGE - (address + len(found)) % PAGE, address + len(found))
        except (OSError, OverflowError):
            return ""
        text, end, _ = piece.partition(b"\0")
        found += text
        if end or not piece:
            break
    return os.fsdecode(found)


def _mapped(place: Path, instruction: int) -> list[str]:
    """Return the files that a process has mapped, that of the current instruction first."""
    found: dict[str, bool] = {}
    for begin, end, name in _MAPPING.findall((place / "maps").read_bytes()):
        path = os.fsdecode(name)
        found[path] = found.get(path, False) or int(begin, 16) <= instruction < int(end, 16)
    return sorted(found, key=lambda path: not found[path])


class Lookout:
    """Looks at /proc with a deadline. One look at a time; called from any thread."""

    def __init__(self, look: Callable[[Iterable[int]], list[BlockedThread]] = blocked_threads) -> None:
        self._look = look
        # Guards `_looking`: a look that hangs must not have others hang beside it.
        self._lock = threading.Lock()
        self._looking: threading.Thread | None = None

    def look(self, hinted: Iterable[int], timeout_s: float) -> list[BlockedThread] | None:
        """Return the waiting threads, or None where looking fails, takes longer, or an earlier look still hangs."""
        found: list[list[BlockedThread]] = []

        def work() -> None:
            try:
                found.append(self._look(hinted))
            except OSError as error:
                log.warning("the processes that wait cannot be looked for: %s", error)

        with self._lock:
            if self._looking is not None:
                self._looking.join(timeout_s)
                if self._looking.is_alive():
                    return None
            self._looking = threading.Thread(target=work, name="proc-lookout", daemon=True)
            self._looking.start()
            self._looking.join(timeout_s)
            return found[0] if found else None
