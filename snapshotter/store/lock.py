"""One daemon per directory."""

import fcntl
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from snapshotter.errors import StoreError, StoreLocked

PAUSE_S = 0.002
SIGKILL_BIT = 1 << 8


class RootLock:
    """An flock on `<root>/lock` of a root or run directory, with the holder's pid inside; held until release(), or the end of the process.

    The root is created with mode 0700 if it is missing. The descriptor is close-on-exec: a child that kept it would keep the lock of a daemon that has died.
    """

    def __init__(self, root: Path, name: str = "root", *, wait_s: float = 0.0) -> None:
        """Take the lock; `name` says in errors which of the daemon's directories it is.

        A holder that has been killed may keep it for a moment: up to `wait_s` are spent on one, none on one that lives.

        Raises:
            StoreLocked: another instance holds it.
            StoreError: the directory cannot be used.
        """
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._fd = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise StoreError(f"{name} directory {root}: {error.strerror or error}") from error
        try:
            _lock(self._fd, time.monotonic() + wait_s)
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, b"%d\n" % os.getpid(), 0)
        except BlockingIOError as error:
            holder = _holder(self._fd) or "unknown"
            os.close(self._fd)
            raise StoreLocked(
                f"{name} directory {root} is in use by process {holder}: "
                "stop that instance, or give this one another directory"
            ) from error
        except OSError as error:
            os.close(self._fd)
            raise StoreError(f"lock file {root / 'lock'}: {error.strerror or error}") from error

    def release(self) -> None:
        """Give the lock up; again is harmless."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def _lock(fd: int, deadline: float) -> None:
    """Raises BlockingIOError: a process that lives has the lock, or one that is dying still at `deadline`."""
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline or not _is_dying(_holder(fd)):
                raise
            time.sleep(PAUSE_S)


def _holder(fd: int) -> str:
    return os.pread(fd, 32, 0).decode("ascii", "replace").strip()


def _is_dying(pid: str, proc: Path = Path("/proc")) -> bool:
    """Whether a process is dead, a zombie, or has SIGKILL before it. Source: proc(5), /proc/pid/status."""
    try:
        lines = (proc / pid / "status").read_text().splitlines() if pid else []
    except OSError:
        return True
    fields = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    pending = int(fields.get("ShdPnd", "0"), 16) | int(fields.get("SigPnd", "0"), 16)
    return fields.get("State", "")[:1] in ("Z", "X") or bool(pending & SIGKILL_BIT)
