"""`<run>/l/<snapshot id>`: the short names that overlays are made of.

Mount options end at one page, so 128 layers need names of few bytes. Both planes and ordinary snapshots use them.
"""

import os
import threading
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final

from snapshotter.errors import PlaneError
from snapshotter.store.real_directory import real_directory

EMPTY: Final = "empty"
"""A directory without entries beside the links: the second layer of an overlay of one."""


class Links:
    """The symbolic links below one directory; every method may be called from any thread."""

    def __init__(self, directory: Path) -> None:
        """Create the directory where needed, and drop what a killed process left half made."""
        self._directory = directory
        try:
            real_directory(directory, 0o755, parents=True)
            real_directory(directory / EMPTY, 0o755)
            for name in os.listdir(directory):
                if name.startswith("."):
                    (directory / name).unlink(missing_ok=True)
        except OSError as error:
            raise PlaneError(f"cannot prepare {directory}: {error.strerror}") from error

    @property
    def empty(self) -> Path:
        """The empty directory."""
        return self._directory / EMPTY

    def point(self, name: int | str, target: str) -> str:
        """Make the link of a snapshot, or one with a name of its own, lead to `target`; return the link's path.

        `target` is never opened: it may lie in the FUSE mount that this process serves.

        Raises:
            PlaneError: the link cannot be written.
        """
        link = self._directory / str(name)
        try:
            if os.readlink(link) == target:
                return str(link)
        except OSError:
            pass  # absent, or not a link: replaced below
        made = self._directory / f".{name}.{threading.get_ident()}"
        try:
            made.unlink(missing_ok=True)
            made.symlink_to(target)
            made.replace(link)
        except OSError as error:
            raise PlaneError(f"cannot write the link {link}: {error.strerror}") from error
        return str(link)

    def repoint(self, change: Callable[[str], str]) -> None:
        """Give every link the target that `change` makes of the one it has.

        Raises:
            PlaneError: a link cannot be written.
        """
        for name in os.listdir(self._directory):
            if name.isdecimal() and (self._directory / name).is_symlink():
                self.point(int(name), change(os.readlink(self._directory / name)))

    def forget(self, live: Collection[int], below: int) -> None:
        """Remove the links of every id under `below` that is not among `live`."""
        for name in os.listdir(self._directory):
            if name.isdecimal() and int(name) < below and int(name) not in live:
                (self._directory / name).unlink(missing_ok=True)
