"""A program that the harness starts, waits for and stops by its process id."""

import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

# Only what goes wrong takes so long: other work on the machine may hold a program up for many seconds.
PATIENCE_S = 60.0
STOP_S = 30.0


class DidNotStart(RuntimeError):
    """A program ended or stayed silent where it should have become ready; the message ends with its log."""


class Process:
    """One started program with its log file.

    It gets a session of its own: Ctrl-C in a terminal reaches the harness alone, which then stops things in order.
    """

    def __init__(self, name: str, argv: Sequence[str], log: Path, env: Mapping[str, str] | None = None) -> None:
        self.name = name
        self.log = log
        with open(log, "ab") as out:
            self._popen = subprocess.Popen(
                [*argv],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env={**os.environ, **(env or {})},
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def running(self) -> bool:
        return self._popen.poll() is None

    def wait_until(self, ready: Callable[[], bool], timeout_s: float = PATIENCE_S) -> None:
        """Return when `ready` does; raise DidNotStart if the program ends before, or after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while not ready():
            if not self.running:
                message = f"{self.name} ended with {self._popen.returncode}:\n{self.tail()}"
                raise DidNotStart(message)
            if time.monotonic() > deadline:
                message = f"{self.name} was not ready after {timeout_s:.0f} s:\n{self.tail()}"
                raise DidNotStart(message)
            time.sleep(0.01)

    def stop(self, number: int = signal.SIGTERM, timeout_s: float = STOP_S) -> int:
        """Send `number`, after `timeout_s` SIGKILL; return the exit status as subprocess gives it."""
        if self.running:
            with suppress(ProcessLookupError):
                self._popen.send_signal(number)
            if not self._ends_within(timeout_s):
                self._popen.kill()
        return self._popen.wait(timeout_s)

    def _ends_within(self, timeout_s: float) -> bool:
        """Whether it is gone, told at once: `Popen.wait` with a limit looks every 50 ms."""
        fd = os.pidfd_open(self.pid)
        try:
            gone, _, _ = select.select([fd], [], [], timeout_s)
        finally:
            os.close(fd)
        return bool(gone)

    def tail(self, lines: int = 30) -> str:
        """The end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def resident_bytes(self) -> int:
        """Resident set size now. Source: proc(5), /proc/pid/statm."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def peak_resident_bytes(self) -> int:
        """Largest resident set size so far. Source: proc(5), VmHWM in kB."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        message = f"{self.name} has no VmHWM"
        raise RuntimeError(message)


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float = PATIENCE_S) -> None:
    """Return as soon as `condition` holds; TimeoutError names `what` did not happen."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            message = f"{what} did not happen within {timeout_s:.0f} s"
            raise TimeoutError(message)
        time.sleep(0.01)


def accepts(address: str | tuple[str, int]) -> bool:
    """Whether somebody listens at a unix socket path or at (host, port)."""
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(address)
        except OSError:
            return False
        return True
