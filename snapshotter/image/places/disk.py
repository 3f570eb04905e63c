"""Where errors of the file system get names, and files appear whole or not at all."""

import errno
import fcntl
import hashlib
import os
import stat
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import trio

from snapshotter.errors import FormatError, NotFound, StoreError, StoreFull

PIECE = 1 << 20

_NEW = ".estargz-new-"
_YOUNG_S = 60.0


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Map what the file system says of `path` to our errors.

    Raises:
        NotFound: it does not exist.
        StoreFull: no room.
        StoreError: anything else.
    """
    try:
        yield
    except FileNotFoundError as fault:
        raise NotFound(f"{fault.filename or path} does not exist") from fault
    except OSError as fault:
        if fault.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreFull(f"no room left at {fault.filename or path}; free some, or use another directory") from fault
        raise StoreError(f"{fault.filename or path}: {fault.strerror or fault}") from fault


def open_file(path: Path) -> BinaryIO:
    """A regular file to be read; what else has its name, such as a pipe, is refused instead of waited for."""
    with disk_errors(path):
        file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115 (it is the caller's)
        if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return file
        file.close()
        raise StoreError(f"{path} is not a file")


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """A regular file while it is read, and the errors of reading it."""
    with open_file(path) as file, disk_errors(path):
        yield file


def new_beside(path: Path) -> "tempfile._TemporaryFileWrapper[bytes]":
    """A new file in the directory of `path`, which its caller renames or deletes; those of killed processes are deleted.

    It is locked as long as it is open. Raises OSError.
    """
    _remove_abandoned(path.parent)
    try:
        made = tempfile.NamedTemporaryFile(dir=path.parent, prefix=_NEW, delete=False)  # noqa: SIM115 (as above)
    except OSError as fault:
        raise OSError(fault.errno, fault.strerror) from fault  # whose name tells people nothing
    with suppress(OSError):  # a file system without locks keeps what a killed process leaves
        fcntl.flock(made.fileno(), fcntl.LOCK_EX)
    return made


def _remove_abandoned(directory: Path) -> None:
    """Delete what nobody holds of the files that never got their names; what cannot be deleted stays."""
    for path in directory.glob(f"{_NEW}*"):
        with suppress(OSError), open(path, "rb", opener=_without_following) as file:
            found = os.fstat(file.fileno())
            # A younger one may be another process's that has not come to its lock yet.
            if found.st_uid == os.geteuid() and found.st_mtime < time.time() - _YOUNG_S:
                fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the name `path` when the block ends well, and is gone when it does not."""
    with new_beside(path) as out:
        try:
            yield out  # type: ignore[misc]
            out.flush()
            os.fchmod(out.fileno(), 0o644)
            os.fsync(out.fileno())
            os.replace(out.name, path)
        except BaseException:
            os.unlink(out.name)
            raise


def pieces_of(file: BinaryIO, on_progress: Callable[[int], None]) -> Iterator[bytes]:
    """The rest of a file; the work of a thread ends here when the task that waits for it is cancelled."""
    while piece := file.read(PIECE):
        trio.from_thread.check_cancelled()
        yield piece
        on_progress(len(piece))


def copy_exactly(
    content: Path | bytes, size: int, write: Callable[[bytes], object], on_progress: Callable[[int], None]
) -> None:
    """Hand all of `content` to `write`, piece by piece.

    Raises:
        FormatError: it has not `size` bytes.
    """
    copied = 0
    if isinstance(content, bytes):
        write(content)
        copied = len(content)
        on_progress(copied)
    else:
        with closing(_pieces_at(content, on_progress)) as pieces:
            for piece in pieces:
                copied += len(piece)
                write(piece)
    if copied != size:
        raise FormatError(f"a blob has {copied} bytes and was announced with {size}; it changed meanwhile, try again")


def _pieces_at(path: Path, on_progress: Callable[[int], None]) -> Generator[bytes, None, None]:
    """The pieces of a file; only what goes wrong with reading it is told in its name."""
    with opened(path) as source:
        yield from pieces_of(source, on_progress)


def digest_of(file: BinaryIO, on_progress: Callable[[int], None]) -> tuple[str, int]:
    """Digest and size of the rest of a file."""
    whole, size = hashlib.sha256(), 0
    for piece in pieces_of(file, on_progress):
        whole.update(piece)
        size += len(piece)
    return f"sha256:{whole.hexdigest()}", size


def _without_waiting(name: str, flags: int) -> int:
    return os.open(name, flags | os.O_NONBLOCK | os.O_CLOEXEC)


def _without_following(name: str, flags: int) -> int:
    return _without_waiting(name, flags | os.O_NOFOLLOW)
