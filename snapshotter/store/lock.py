"""One daemon per directory."""

import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from snapshotter.errors import StoreError, StoreLocked


class RootLock:
    """An flock on `<root>/lock` of a root or run directory, with the holder's pid inside; held until release(), or the end of the process.

    The root is created with mode 0700 if it is missing. The descriptor is close-on-exec: a child that kept it would keep the lock of a daemon that has died.
    """

    def __init__(self, root: Path, name: str = "root") -> None:
        """Take the lock without waiting; `name` says in errors which of the daemon's directories it is.

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
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, b"%d\n" % os.getpid(), 0)
        except BlockingIOError as error:
            holder = os.pread(self._fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
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
