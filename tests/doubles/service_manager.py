"""A stand-in for systemd: hears what a daemon notifies, keeps the descriptors that it is given, and starts daemons with them.

It does what sd_notify(3) and sd_listen_fds(3) promise, in a thread: a descriptor that reports an error or a hang-up
is dropped, BARRIER=1 is answered by closing, and a start gets what is kept in no particular order.
"""

import json
import os
import queue
import random
import select
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

HEARD_S: Final = 300.0

_MAX_FDS: Final = 16
_GONE: Final = select.POLLERR | select.POLLHUP
_MARK: Final = b"MARK=1"
"""Of our own: when it is heard, all that was sent before it is."""
_START: Final = """
import fcntl, json, os, socket, sys
with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as manager:
    manager.connect(sys.argv[1])
    names, fds, _, _ = socket.recv_fds(manager, 65536, 64)
os.environ["NOTIFY_SOCKET"] = sys.argv[2]
if fds:
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 100) for fd in fds]
    for fd in fds:
        os.close(fd)
    for number, fd in enumerate(high, 3):
        os.dup2(fd, number)
    os.environ["LISTEN_PID"] = str(os.getpid())
    os.environ["LISTEN_FDS"] = str(len(fds))
    os.environ["LISTEN_FDNAMES"] = ":".join(json.loads(names))
os.execvp(sys.argv[3], sys.argv[3:])
"""


class ServiceManager:
    """Listens below `folder` until closed. Thread-safe."""

    def __init__(self, folder: Path) -> None:
        self.address = str(folder / "notify")
        self._heard: list[str] = []
        self._states: queue.Queue[str] = queue.Queue()
        self._lock = threading.Lock()  # guards the store
        self._store: list[tuple[str, int]] = []
        self._starter = str(folder / "start")
        self._notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notified.bind(self.address)
        self._starting = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._starting.bind(self._starter)
        self._starting.listen()
        self._end, self._ended = os.pipe2(os.O_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name="service manager")
        self._thread.start()

    def said(self, alive: Callable[[], bool] = lambda: True) -> str:
        """The next state that is not about descriptors.

        Raises:
            queue.Empty: none came in time, or while `alive`.
        """
        deadline = time.monotonic() + HEARD_S
        while True:
            try:
                return self._states.get(timeout=0.05)
            except queue.Empty:
                if time.monotonic() > deadline:
                    raise
            if not alive():
                self.settle()
                return self._states.get_nowait()

    def settle(self) -> None:
        """Return once all that was sent so far is heard. Raises TimeoutError."""
        ours, theirs = os.pipe2(os.O_CLOEXEC)
        try:
            try:
                with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                    sender.connect(self.address)
                    socket.send_fds(sender, [_MARK], [theirs])
            finally:
                os.close(theirs)
            poll = select.poll()
            poll.register(ours, 0)
            if not poll.poll(HEARD_S * 1000):
                raise TimeoutError("the service manager hears nothing")
        finally:
            os.close(ours)

    @property
    def heard(self) -> list[str]:
        """Every state that was sent so far in its order, those about descriptors too."""
        self.settle()
        return list(self._heard)

    @property
    def names(self) -> list[str]:
        """Of what is kept after all that was sent so far, in the order in which it came."""
        self.settle()
        with self._lock:
            return [name for name, _ in self._store]

    def keep(self, name: str, fd: int) -> None:
        """Keep a copy of `fd`, as if a service had sent it."""
        with self._lock:
            self._store.append((name, os.dup(fd)))

    def lose(self) -> None:
        """Drop everything that is kept, as where the store is off."""
        with self._lock:
            for _, fd in self._store:
                os.close(fd)
            self._store.clear()

    def program(self, *argv: str) -> tuple[str, ...]:
        """The command that runs `argv` as this manager's service, with what is kept when it starts."""
        return (sys.executable, "-I", "-S", "-c", _START, self._starter, self.address, *argv)

    def close(self) -> None:
        """Stop; what is kept is dropped."""
        os.close(self._ended)
        self._thread.join()
        self.lose()
        os.close(self._end)
        self._notified.close()
        self._starting.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self) -> None:
        while True:
            poll = select.poll()
            for fd in (self._notified.fileno(), self._starting.fileno(), self._end):
                poll.register(fd, select.POLLIN)
            with self._lock:
                for _, fd in self._store:
                    poll.register(fd, 0)
            # What was stored meanwhile is looked at soon.
            events = dict(poll.poll(100))
            if self._end in events:
                return
            self._drop_dead(events)
            if self._notified.fileno() in events:
                self._hear()
            if self._starting.fileno() in events:
                self._hand_over()

    def _drop_dead(self, events: dict[int, int]) -> None:
        with self._lock:
            dead = [one for one in self._store if events.get(one[1], 0) & _GONE]
            self._store = [one for one in self._store if one not in dead]
        for _, fd in dead:
            os.close(fd)

    def _hear(self) -> None:
        packet, fds, _, _ = socket.recv_fds(self._notified, 65536, _MAX_FDS)
        for fd in fds:
            os.set_inheritable(fd, False)
        if packet == _MARK:
            for fd in fds:
                os.close(fd)
            return
        state = packet.decode()
        self._heard.append(state)
        fields: dict[str, str] = dict(line.split("=", 1) for line in state.splitlines())
        if "FDSTORE" in fields:
            with self._lock:
                self._store += [(fields["FDNAME"], fd) for fd in fds]
            return
        for fd in fds:
            os.close(fd)
        if "FDSTOREREMOVE" in fields:
            with self._lock:
                gone = [fd for name, fd in self._store if name == fields["FDNAME"]]
                self._store = [one for one in self._store if one[1] not in gone]
            for fd in gone:
                os.close(fd)
        elif "BARRIER" not in fields:
            self._states.put(state)

    def _hand_over(self) -> None:
        client, _ = self._starting.accept()
        with client, self._lock:
            given = random.sample(self._store, len(self._store))
            socket.send_fds(client, [json.dumps([name for name, _ in given]).encode()], [fd for _, fd in given])
