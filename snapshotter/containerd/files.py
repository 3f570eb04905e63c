"""Several files changed together: each atomically, all or none."""

import contextlib
import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from snapshotter.errors import ConfigError

NEW_MODE = 0o644


@dataclass(frozen=True, slots=True)
class Change:
    """What a file is and what it becomes; None: it is not there. A new file gets mode and owner of `like`."""

    path: Path
    before: bytes | None
    after: bytes | None
    like: Path | None = None


def read(path: Path) -> bytes | None:
    """The bytes of a file, None if there is none. Raises ConfigError if it cannot be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except PermissionError:
        raise ConfigError(f"{path}: no permission to read it: run this command as root (sudo)") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None


@contextlib.contextmanager
def changed(changes: Sequence[Change]) -> Iterator[None]:
    """Make `changes` in their order, and keep them if the block ends well; else, and if one fails, put all back.

    Raises:
        ConfigError: one cannot be made; nothing is changed then.
    """
    done: list[Change] = []
    made: list[Path] = []
    try:
        for change in changes:
            for folder in missing_above(change.path):
                folder.mkdir(0o755)
                made.append(folder)
            done.append(change)
            _put(change.path, change.after, change.like)
        yield
    except BaseException as error:
        lost = [str(change.path) for change in reversed(done) if not _put_back(change)]
        for directory in reversed(made):
            with contextlib.suppress(OSError):
                directory.rmdir()
        if lost:
            raise ConfigError(
                f"{error}; and {', '.join(lost)} could not be put back: see to the disk, then run --revert"
            ) from error
        if isinstance(error, OSError):
            raise ConfigError(f"cannot write {done[-1].path if done else changes[0].path}: {_why(error)}") from None
        raise


def missing_above(path: Path) -> list[Path]:
    """Directories above `path` that are not there yet, the upper first."""
    return [folder for folder in reversed(path.parents) if not folder.is_dir()]


def remove_if_empty(folders: Sequence[Path]) -> None:
    """Remove those directories that hold nothing, the lower first."""
    for folder in sorted(folders, reverse=True):
        with contextlib.suppress(OSError):
            folder.rmdir()


def _put_back(change: Change) -> bool:
    try:
        if read(change.path) != change.before:
            _put(change.path, change.before, change.like)
    except (OSError, ConfigError):
        return False
    return True


def _why(error: OSError) -> str:
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"{error.strerror}; run this command as root (sudo). Nothing was changed"
    return f"{error.strerror}; nothing was changed"


def _put(path: Path, data: bytes | None, like: Path | None) -> None:
    """Write a file aside and rename it; through a symbolic link, to the file it leads to."""
    target = path.resolve()
    if data is None:
        target.unlink(missing_ok=True)
        _sync(target.parent)
        return
    model = target if target.exists() else like
    # No name that a pattern of imports takes: containerd may start at any moment.
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".new", dir=target.parent)
    aside = Path(name)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            _take_after(aside, model)
            os.fsync(file.fileno())
        aside.replace(target)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        _in_place(target, data)  # mounted over itself, as in a container that changes the node's file
    finally:
        aside.unlink(missing_ok=True)
    _sync(target.parent)


def _take_after(path: Path, model: Path | None) -> None:
    if model is None:
        path.chmod(NEW_MODE)
        return
    status = model.stat()
    with contextlib.suppress(PermissionError):
        os.chown(path, status.st_uid, status.st_gid)
    with contextlib.suppress(OSError):
        shutil.copystat(model, path)  # SELinux's label among it
    path.chmod(stat.S_IMODE(status.st_mode))
    os.utime(path)


def _in_place(target: Path, data: bytes) -> None:
    with target.open("r+b") as file:
        file.write(data)
        file.truncate()
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
