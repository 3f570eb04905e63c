"""The two files of a partial file on disk: `<name>.data` and `<name>.map`."""

import os
from collections.abc import Iterable
from contextlib import suppress

from snapshotter.store.disk import write_all

CREATE_FLAGS = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
OPEN_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


def remove_files(directory: int, name: str) -> None:
    """Remove the files of a partial file, as far as they are there.

    Raises:
        OSError: the disk refused.
    """
    for suffix in (".map", ".data"):
        try:
            os.unlink(name + suffix, dir_fd=directory)
        except FileNotFoundError:
            continue


def write_pieces(fd: int, pieces: Iterable[bytes], offset: int) -> None:
    """Write pieces one after the other from `offset` on.

    Raises:
        OSError: the disk refused.
    """
    for piece in pieces:
        write_all(fd, piece, offset)
        offset += len(piece)


def write_map(directory: int, name: str, data: bytes) -> None:
    """Put a whole map file in place at once.

    Raises:
        OSError: the disk refused; the old one stays.
    """
    temporary = f"{name}.tmp"
    try:
        fd = os.open(temporary, CREATE_FLAGS, 0o600, dir_fd=directory)
        try:
            write_all(fd, data, 0)
        finally:
            os.close(fd)
        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    except OSError:
        with suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=directory)
        raise


def read_map(directory: int, name: str) -> bytes:
    """All of a map file.

    Raises:
        OSError: it is not there, or the disk refused.
    """
    fd = os.open(name, OPEN_FLAGS, dir_fd=directory)
    with open(fd, "rb") as file:
        return file.read()
