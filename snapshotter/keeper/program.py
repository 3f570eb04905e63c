"""The keeper: a process that holds the node's FUSE connection while daemons come and go.

It holds a copy of the descriptor of /dev/fuse and a record that it does not read. A daemon connects, takes both, and
keeps the connection open as long as it lives; its end is the end of that connection. Then requests that it had read
go back into the kernel's queue, so that who waits for them can be killed, and a clock runs: if no daemon comes before
the deadline, the FUSE connection is aborted, and its readers fail instead of waiting for ever.

It ends when nothing is kept and nobody is connected: the last mount and the last overlay above it are gone.

Run without site-packages, it imports little and opens nothing: a working directory or a file inside the mount would hang it.
"""

import ctypes
import fcntl
import os
import select
import socket
import struct
import sys
import time
from contextlib import suppress
from typing import Final

from snapshotter.keeper.messages import (
    ANSWERED,
    BUSY,
    DONE,
    DROP,
    HELLO,
    KEPT,
    LOCK_NAME,
    LOOK,
    PUT,
    READY,
    RESEND,
    RESEND_NOTICE,
    SOCKET_NAME,
    STATE,
    WELCOME,
    Message,
    close_all,
    pack_kept,
    peer,
    receive,
    send,
    unpack_kept,
)

LOOK_S: Final = 2.0
"""How often it looks whether its socket is still there."""

IDLE_S: Final = 60.0
"""So long a keeper waits that keeps nothing and that nobody talks to."""

_FUSE_CONNECTIONS: Final = "/sys/fs/fuse/connections"
_MNT_FORCE: Final = 1
_MNT_DETACH: Final = 2
_PATIENCE_S: Final = 5.0
_GONE: Final = select.POLLERR | select.POLLHUP | select.POLLNVAL


class Kept:
    """A FUSE connection in custody. `deadline_s` of 0 means none."""

    def __init__(self, fd: int, message: Message) -> None:
        self.fd = fd
        self.minor, self.record = unpack_kept(message.payload)
        self.deadline_s = message.value
        self.resend = bool(message.flags & RESEND)
        # Before the kernel has its INIT reply nothing may be sent back: INIT itself would come again.
        self.answered = bool(message.flags & ANSWERED)


class Keeper:
    """Serves one listening socket, single-threaded."""

    def __init__(self, listener: socket.socket, idle_s: float = IDLE_S, path: str = "") -> None:
        """`path` is where the listener is found, and made anew if somebody took it away; empty: nobody looks."""
        self._path = path
        self._inode = self._look()
        self._listener = listener
        self._idle_s = idle_s
        self._clients: dict[int, socket.socket] = {}
        self._owner: socket.socket | None = None
        self._served = False  # whether the owner has begun to answer the kernel
        self._kept: Kept | None = None
        self._since = time.monotonic()  # the clock: of the deadline, or of idling
        self._left = self._since  # when the last daemon left
        self._poll = select.poll()
        self._poll.register(listener, select.POLLIN)

    def adopt(self, connection: socket.socket) -> None:
        """Serve a client that is connected already."""
        if peer(connection)[1] != os.geteuid():
            connection.close()
            return
        connection.settimeout(_PATIENCE_S)
        self._clients[connection.fileno()] = connection
        self._poll.register(connection, select.POLLIN)

    def run(self) -> None:
        """Serve until there is nothing left to do."""
        while True:
            left_s = self._left_s()
            if left_s is not None and left_s <= 0:
                if self._kept is None:
                    return
                abort(self._kept.minor)
                say(f"no daemon for {self._kept.deadline_s} s: the FUSE connection is aborted; readers get an error")
                self._forget()
                self._end_soon()
                continue
            wait_s = LOOK_S if left_s is None else min(left_s, LOOK_S)
            for fd, event in self._poll.poll(wait_s * 1000 + 1):
                self._turn(fd, event)
            if not self.is_found():
                self._listen_anew()

    def is_found(self) -> bool:
        """Whether the socket is where daemons look for it."""
        return not self._path or self._look() == self._inode

    def _look(self) -> int:
        try:
            return os.lstat(self._path).st_ino if self._path else 0
        except OSError:
            return 0

    def _listen_anew(self) -> None:
        """Without its socket no daemon could take over from this keeper, and no other begin beside it."""
        try:
            listener = listen(self._path)
        except OSError:
            return  # the run directory is full or gone: looked at again
        self._poll.unregister(self._listener)
        self._listener.close()
        self._listener = listener
        self._inode = self._look()
        self._poll.register(listener, select.POLLIN)
        say("the socket had been taken away; it is there again")

    def _left_s(self) -> float | None:
        """Seconds until something is to be done without being asked; None: nothing is."""
        if self._owner is not None:
            return None
        if self._kept is None:
            return None if self._clients else self._since + self._idle_s - time.monotonic()
        return self._since + self._kept.deadline_s - time.monotonic() if self._kept.deadline_s else None

    def _turn(self, fd: int, event: int) -> None:
        if fd == self._listener.fileno():
            self.adopt(self._listener.accept()[0])
        elif self._kept is not None and fd == self._kept.fd:
            if event & _GONE:
                say("the FUSE connection ended: its mounts are gone")
                self._forget()
                self._end_soon()
        elif fd in self._clients:
            self._hear(self._clients[fd])

    def _hear(self, client: socket.socket) -> None:
        try:
            message = receive(client)
            if message is None:
                self._leave(client)
                return
            try:
                answer = self._answer(client, message)
            finally:
                # A copy that nobody knows of would keep a dead connection alive.
                close_all(fd for fd in message.fds if self._kept is None or fd != self._kept.fd)
            if answer is None:
                self._leave(client)
            else:
                send(client, answer)
        except (OSError, struct.error):
            self._leave(client)

    def _answer(self, client: socket.socket, message: Message) -> Message | None:
        """What is said to a message; None to one that makes no sense, which ends the talk."""
        if message.kind == LOOK:
            owner = 0 if self._owner is None else peer(self._owner)[0]
            return Message(STATE, KEPT if self._kept else 0, owner)
        if self._owner not in (None, client):
            return Message(BUSY, value=peer(self._owner)[0]) if self._owner is not None else None
        if message.kind == HELLO:
            self._owner, self._served = client, False
            if self._kept is None:
                return Message(WELCOME)
            away_ms = int((time.monotonic() - self._left) * 1000)
            kept = pack_kept(self._kept.minor, self._kept.record)
            return Message(WELCOME, value=away_ms, payload=kept, fds=(self._kept.fd,))
        if message.kind == PUT and self._owner is client and len(message.fds) == 1:
            self._take(message)
            return Message(DONE)
        if message.kind == READY and self._kept is not None and self._owner is client:
            self._kept.answered = self._served = True
            return Message(DONE)
        if message.kind == DROP:
            self._forget()
            self._since = time.monotonic()
            return Message(DONE)
        return None

    def _take(self, message: Message) -> None:
        kept = Kept(message.fds[0], message)
        # The same connection: a daemon that dies before it says READY again has not undone that it was answered.
        kept.answered |= self._kept is not None and self._kept.minor == kept.minor and self._kept.answered
        # Nor does what is put stop the clock: only one that serves does.
        self._forget()
        self._kept = kept
        # No events asked for: only the end of the connection is reported. Requests are the daemon's.
        self._poll.register(kept.fd, 0)

    def _forget(self) -> None:
        if self._kept is not None:
            self._poll.unregister(self._kept.fd)
            os.close(self._kept.fd)
            self._kept = None

    def _end_soon(self) -> None:
        """What this process is for has ended: it ends as well, unless somebody talks to it."""
        self._since = time.monotonic() - self._idle_s

    def _leave(self, client: socket.socket) -> None:
        """A client is gone. If it was the daemon, what it had in hand is asked again and the clock starts."""
        self._poll.unregister(client)
        del self._clients[client.fileno()]
        client.close()
        if client is not self._owner:
            return
        self._owner = None
        self._left = time.monotonic()
        if self._kept is None:
            self._end_soon()
            return
        if self._served:
            # One that never came to answer stops no clock: a daemon that dies at each start has stayed away.
            self._since = time.monotonic()
        if self._kept.resend and self._kept.answered:
            with suppress(OSError):  # an older kernel, or the connection is gone
                os.write(self._kept.fd, RESEND_NOTICE)


def abort(minor: int) -> None:
    """Abort a FUSE connection whoever holds its descriptor; closing our copy does so only if it is the last one.

    Through fusectl where that is mounted, else by a forced unmount of what the kernel's table says is its mount.
    """
    try:
        with open(f"{_FUSE_CONNECTIONS}/{minor}/abort", "w") as control:
            control.write("1\n")
        return
    except OSError:
        pass
    libc = ctypes.CDLL(None)
    with open("/proc/self/mountinfo", "rb") as table:
        for line in table:
            fields = line.split(b" ")
            if fields[2] == b"0:%d" % minor and b" - fuse" in line:
                libc.umount2(fields[4], _MNT_FORCE | _MNT_DETACH)
                return


def say(sentence: str) -> None:
    """Tell the log, which is standard error."""
    # A full disk or a journal that is gone must not end what others stand on.
    with suppress(OSError, ValueError):
        sys.stderr.write(f"estargz-snapshotter keeper: {sentence}\n")
        sys.stderr.flush()


def tell_ready() -> None:
    """Tell the service manager, if it is one that started this process. Source: sd_notify(3)."""
    address = os.environ.pop("NOTIFY_SOCKET", "")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager, suppress(OSError):
        manager.sendto(b"READY=1", "\0" + address[1:] if address.startswith("@") else address)


def listen(path: str) -> socket.socket:
    """A listening socket at `path`, whatever was there."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with suppress(FileNotFoundError):
        os.unlink(path)
    listener.bind(path)
    listener.listen(64)
    return listener


def main(run_dir: str, first: int = -1) -> None:
    """Keep for the daemon of `run_dir`; `first` is the number of an open connection to it, if there is one.

    Returns at once if there is a keeper already.
    """
    os.chdir("/")
    os.umask(0o177)
    # Whatever the one who started this left open to its children.
    os.closerange(max(first, 2) + 1, os.sysconf("SC_OPEN_MAX"))
    lock = os.open(os.path.join(run_dir, LOCK_NAME), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        tell_ready()
        return
    path = os.path.join(run_dir, SOCKET_NAME)
    keeper = Keeper(listen(path), path=path)
    if first >= 0:
        keeper.adopt(socket.socket(fileno=first))
    tell_ready()
    keeper.run()
    if keeper.is_found():
        os.unlink(path)
