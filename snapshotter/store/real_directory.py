"""Directories of the daemon: made where they are missing, and never a link to somewhere else."""

import errno
import os
from contextlib import suppress
from pathlib import Path

_FLAGS = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def real_directory(path: Path, mode: int = 0o700, *, parents: bool = False) -> None:
    """Make `path` a directory, with `parents` also those above it; one that is there stays as it is.

    A symbolic link in its place is refused, also one that leads to a directory: what lies behind it is neither ours to
    fill nor to tidy.

    Raises:
        OSError: a link or something else lies there, or the disk refused.
    """
    with suppress(FileExistsError):
        path.mkdir(mode=mode, parents=parents)
    try:
        os.close(os.open(path, _FLAGS))
    except NotADirectoryError:
        what = "a symbolic link" if path.is_symlink() else "something else"
        message = f"{what} lies where a directory of the daemon's own belongs: remove it"
        raise NotADirectoryError(errno.ENOTDIR, message, str(path)) from None
