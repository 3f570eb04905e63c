"""The daemon's side: reach the keeper of a run directory or start one, take what it keeps, give it what to keep.

Everything blocks, as a rule for milliseconds.
"""

import os
import select
import socket
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

import snapshotter
from snapshotter.errors import KeeperGone, PlaneError
from snapshotter.keeper.messages import (
    ANSWERED,
    BUSY,
    DONE,
    DROP,
    HELLO,
    KEPT,
    LOOK,
    PUT,
    READY,
    RESEND,
    SOCKET_NAME,
    STATE,
    WELCOME,
    Message,
    pack_kept,
    peer,
    receive,
    send,
    unpack_kept,
)

LOG_NAME: Final = "keeper.log"
PATIENCE_S: Final = 5.0
"""So long a daemon that has just died may still seem to be there, and keepers may end as they are greeted."""
ANSWER_S: Final = 30.0
"""So long an answer may take: on a node that is overloaded a keeper that we have just started takes seconds to begin."""

_PAUSE_S: Final = 0.002
_FIRST: Final = 3
"""Number of its first connection in a keeper that we start."""
_PROGRAM: Final = (
    "import sys; sys.path.insert(0, sys.argv[1]); from snapshotter.keeper.program import main; "
    "main(sys.argv[2], *map(int, sys.argv[3:]))"
)
_left: Final[set[int]] = set()
"""Keepers that this process has started and left, and that had not ended when it looked last."""


class Kept(NamedTuple):
    """What a new daemon is given. The descriptor is the receiver's; `away_ms` is the time since the last daemon's end."""

    fd: int
    record: bytes
    away_ms: int | None


class KeeperState(NamedTuple):
    """What a keeper says of itself. `daemon_pid` is 0 while no daemon has the connection."""

    pid: int
    daemon_pid: int
    keeps: bool


class Keeper:
    """A connection to a keeper as the daemon's: it lasts as long as the daemon does."""

    def __init__(self, connection: socket.socket, child: int = 0) -> None:
        """`child` is the keeper's process if it is one of ours."""
        self._connection = connection
        self._connection.settimeout(ANSWER_S)
        self._child = child

    @classmethod
    def reach(cls, run_dir: Path) -> Self:
        """Connect to the keeper of `run_dir`, after starting one if there is none.

        Raises:
            PlaneError: none can be started.
        """
        connection = _connect(run_dir)
        return cls(connection) if connection is not None else cls(*_launch(run_dir))

    @property
    def pid(self) -> int:
        """The keeper's process."""
        # Of a pair of sockets the kernel names the process that made it, which is this one.
        return self._child or peer(self._connection)[0]

    def fileno(self) -> int:
        """The connection's descriptor: readable once the keeper is gone."""
        return self._connection.fileno()

    def is_gone(self) -> bool:
        """Whether it has ended. Only while nobody waits for an answer, which would look like a keeper that is there."""
        poll = select.poll()
        poll.register(self._connection, select.POLLIN)
        if not poll.poll(0):
            return False
        try:
            return not self._connection.recv(1, socket.MSG_PEEK)
        except OSError:
            return True

    def hello(self) -> Kept | None:
        """Be the daemon from now on; returns what an earlier one left, if anything.

        Raises:
            KeeperGone: it has ended.
            PlaneError: another daemon has the connection, or the keeper does not answer.
        """
        deadline = time.monotonic() + PATIENCE_S
        while True:
            answer = self._ask(Message(HELLO))
            if answer.kind == WELCOME:
                if not answer.fds:
                    return None
                return Kept(answer.fds[0], unpack_kept(answer.payload)[1], answer.value)
            if answer.kind != BUSY or time.monotonic() > deadline:
                raise PlaneError(f"the keeper serves another daemon, process {answer.value}: stop that one")
            time.sleep(_PAUSE_S)

    def put(self, fd: int, record: bytes, *, minor: int, deadline_s: int, resend: bool, answered: bool) -> None:
        """Have `fd` and `record` kept in place of what was. Raises PlaneError."""
        flags = (RESEND if resend else 0) | (ANSWERED if answered else 0)
        self._tell(Message(PUT, flags, deadline_s, pack_kept(minor, record), (fd,)))

    def ready(self) -> None:
        """Say that the kernel has its INIT reply and this daemon answers. Raises PlaneError."""
        self._tell(Message(READY))

    def drop(self) -> None:
        """Have the keeper forget what it keeps. Raises PlaneError."""
        self._tell(Message(DROP))

    def state(self) -> KeeperState:
        """What the keeper does. Raises PlaneError."""
        answer = self._ask(Message(LOOK))
        if answer.kind != STATE:
            raise PlaneError("the keeper did not say what it does")
        return KeeperState(self.pid, answer.value, bool(answer.flags & KEPT))

    def close(self) -> None:
        """Leave: for the keeper the daemon has ended."""
        self._connection.close()
        if self._child:
            _left.add(self._child)
            _reap()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _tell(self, message: Message) -> None:
        answer = self._ask(message)
        if answer.kind == BUSY:
            raise PlaneError(f"the keeper serves another daemon, process {answer.value}")
        if answer.kind != DONE:
            raise PlaneError("the keeper did not do what it was told")

    def _ask(self, message: Message) -> Message:
        try:
            send(self._connection, message)
            answer = receive(self._connection)
        except ConnectionError as error:
            raise KeeperGone("the keeper is gone") from error
        except OSError as error:
            raise PlaneError(f"the keeper does not answer: {error.strerror or error}") from error
        if answer is None:
            raise KeeperGone("the keeper is gone")
        return answer


def _reap() -> None:
    """Look after keepers of ours that were left: one that has ended stays a zombie until its parent looks."""
    for child in tuple(_left):
        try:
            gone = os.waitpid(child, os.WNOHANG)[0]
        except ChildProcessError:
            gone = child
        if gone:
            _left.discard(child)


def greet(run_dir: Path) -> tuple[Keeper, Kept | None]:
    """Be the daemon of `run_dir` for its keeper from now on; returns also what an earlier daemon left, if anything.

    One is started if there is none. One that ends at this very moment, having nothing to keep, is followed by another.

    Raises:
        PlaneError: another daemon has the connection, or no keeper can be started.
    """
    deadline = time.monotonic() + PATIENCE_S
    while True:
        keeper = Keeper.reach(run_dir)
        try:
            return keeper, keeper.hello()
        except KeeperGone:
            keeper.close()
            if time.monotonic() > deadline:
                raise
        except PlaneError:
            keeper.close()
            raise
        time.sleep(_PAUSE_S)


def find(run_dir: Path) -> Keeper | None:
    """The keeper of `run_dir`, if there is one that lives; none is started."""
    connection = _connect(run_dir)
    return None if connection is None else Keeper(connection)


def _connect(run_dir: Path) -> socket.socket | None:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    connection.settimeout(ANSWER_S)
    try:
        connection.connect(os.fspath(run_dir / SOCKET_NAME))
    except OSError:
        connection.close()
        return None
    return connection


def keeper_argv(run_dir: Path) -> list[str]:
    """The command of a keeper: the interpreter without site-packages, which it needs none of."""
    package = Path(snapshotter.__file__).resolve().parent.parent
    return [sys.executable, "-I", "-S", "-c", _PROGRAM, os.fspath(package), os.fspath(run_dir)]


def _launch(run_dir: Path) -> tuple[socket.socket, int]:
    """Start a keeper in a session of its own; returns a connection to it, and its process. Its words go to `<run>/keeper.log`."""
    _reap()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with theirs:
            log = os.open(
                run_dir / LOG_NAME, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
            )
            try:
                child = os.posix_spawn(
                    sys.executable,
                    [*keeper_argv(run_dir), str(_FIRST)],
                    os.environ,
                    file_actions=[
                        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                        (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                        (os.POSIX_SPAWN_DUP2, log, 2),
                        (os.POSIX_SPAWN_DUP2, theirs.fileno(), _FIRST),
                    ],
                    setsid=True,
                )
            finally:
                os.close(log)
    except OSError as error:
        ours.close()
        raise PlaneError(f"cannot start the keeper: {error.strerror}") from error
    return ours, child
