"""Telling systemd how the daemon is: sd_notify(3) in plain Python, since one datagram is all there is to it."""

import os
import socket
from collections.abc import MutableMapping


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

    def _send(self, state: str) -> None:
        if not self._address:
            return
        # A leading "@" stands for the abstract name space, whose names begin with NUL.
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as manager:
            manager.setblocking(False)
            try:
                manager.sendto(state.encode(), address)
            except OSError:
                # A manager that is gone or whose queue is full must not end the daemon; it would say so itself.
                return
