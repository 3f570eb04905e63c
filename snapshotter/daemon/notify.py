"""Telling systemd how the daemon is: sd_notify(3) in plain Python, since one datagram is all there is to it."""

import os
import select
import socket
from array import array
from collections.abc import MutableMapping, Sequence

BARRIER_S = 2.0
"""The manager answers in milliseconds; one that does not know the message never does."""


class Notifier:
    """Sends states to the service manager named by NOTIFY_SOCKET; without one it does nothing.

    The variable is removed from the environment, so that no child speaks in the daemon's name.
    """

    def __init__(self, environment: MutableMapping[str, str] = os.environ) -> None:
        self._address = environment.pop("NOTIFY_SOCKET", "")
        watched = environment.pop("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        wanted_us = environment.pop("WATCHDOG_USEC", "")
        self.watchdog_s: float | None = int(wanted_us) / 2e6 if watched and wanted_us.isdecimal() else None
        """Seconds between two signs of life: half of what the manager waits for. None: it waits for none."""

    def ready(self, status: str) -> None:
        """The daemon serves from now on; `status` appears in `systemctl status`."""
        self._send(f"READY=1\nSTATUS={status}")

    def stopping(self) -> None:
        """The daemon ends."""
        self._send("STOPPING=1")

    def status(self, status: str) -> None:
        """What the daemon is doing, in a line."""
        self._send(f"STATUS={status}")

    def alive(self) -> None:
        """A sign of life, due every `watchdog_s`."""
        self._send("WATCHDOG=1")

    def store(self, name: str, fd: int) -> None:
        """Have the manager hold `fd` under `name` and give it to the next process of this unit.

        What was held under that name is given up; the manager takes nothing where the unit does not allow it.
        """
        self.forget(name)
        self._send(f"FDSTORE=1\nFDNAME={name}", (fd,))

    def forget(self, name: str) -> None:
        """Have the manager close what it holds under `name`."""
        self._send(f"FDSTOREREMOVE=1\nFDNAME={name}")

    def settle(self, timeout_s: float = BARRIER_S) -> None:
        """Return once the manager has done what it was told so far, or after `timeout_s`. Source: sd_notify(3), BARRIER=1."""
        if not self._address:
            return
        ours, theirs = os.pipe2(os.O_CLOEXEC)
        try:
            self._send("BARRIER=1", (theirs,))
        finally:
            os.close(theirs)
        poll = select.poll()
        poll.register(ours, 0)
        poll.poll(timeout_s * 1000)
        os.close(ours)

    def _send(self, state: str, fds: Sequence[int] = ()) -> None:
        if not self._address:
            return
        # A leading "@" stands for the abstract name space, whose names begin with NUL.
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as manager:
            manager.setblocking(False)
            try:
                # Not socket.send_fds, which drops the address (Python 3.11).
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))] if fds else []
                manager.sendmsg([state.encode()], rights, socket.MSG_NOSIGNAL, address)
            except OSError:
                # A manager that is gone or whose queue is full must not end the daemon; it would say so itself.
                return
