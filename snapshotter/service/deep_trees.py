"""Measuring and deleting trees that a container made: of any depth, with any names, changing under our hands.

A container can nest directories deeper than a path, the stack or the table of descriptors reaches; what walks by path
or by recursion alone would fail on such a tree, and it would never leave the disk.
"""

import os
import secrets
import stat
from pathlib import Path

# st_blocks counts units of this size whatever the file system's block size is (stat(2)).
_BLOCK = 512
# A relative path is opened up to this length; below it a directory of the tree becomes the next starting point.
# PATH_MAX is 4096, a name at most 255.
_MAX_RELATIVE = 3000
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def measure_tree(top: Path) -> tuple[int, int]:
    """Return (bytes on disk, inodes) of a tree, `top` included, a file with several links once.

    What vanishes meanwhile is not counted. Source: containerd's fs.DiskUsage; containerd-contract 3.7.

    Raises:
        OSError: `top` cannot be read.
    """
    linked: set[tuple[int, int]] = set()
    descriptor = os.open(top, _DIRECTORY)
    try:
        found = os.fstat(descriptor)
        size, inodes = _measure_below(descriptor, linked)
    finally:
        os.close(descriptor)
    return size + found.st_blocks * _BLOCK, inodes + 1


def _measure_below(anchor: int, linked: set[tuple[int, int]]) -> tuple[int, int]:
    """Sum up what is below the directory `anchor`; recursion happens once per `_MAX_RELATIVE` bytes of path."""
    size = inodes = 0
    pending = [b"."]
    deep: list[bytes] = []
    while pending:
        relative = pending.pop()
        try:
            descriptor = os.open(relative, _DIRECTORY, dir_fd=anchor)
        except OSError:
            continue  # gone, or no directory any more
        try:
            for name, found in _entries(descriptor):
                if not stat.S_ISDIR(found.st_mode) and found.st_nlink > 1:
                    if (found.st_dev, found.st_ino) in linked:
                        continue
                    linked.add((found.st_dev, found.st_ino))
                size += found.st_blocks * _BLOCK
                inodes += 1
                if stat.S_ISDIR(found.st_mode):
                    path = relative + b"/" + name
                    (deep if len(path) > _MAX_RELATIVE else pending).append(path)
        finally:
            os.close(descriptor)
    for relative in deep:
        try:
            descriptor = os.open(relative, _DIRECTORY, dir_fd=anchor)
        except OSError:
            continue
        try:
            more, more_inodes = _measure_below(descriptor, linked)
        finally:
            os.close(descriptor)
        size, inodes = size + more, inodes + more_inodes
    return size, inodes


def _entries(descriptor: int) -> list[tuple[bytes, os.stat_result]]:
    """Names and attributes in a directory; what vanishes between the two is left out."""
    entries = []
    with os.scandir(descriptor) as listing:
        for entry in listing:
            try:
                entries.append((os.fsencode(entry.name), entry.stat(follow_symlinks=False)))
            except OSError:
                continue
    return entries


def delete_tree(top: Path) -> None:
    """Delete a tree that nobody else changes; nothing happens if it is not there.

    Only where a path grows too long is a directory renamed up into `top`: such a rename takes the lock of the whole file
    system, which the kernel may hold while it waits for the FUSE mount that this process serves.

    Raises:
        OSError: something cannot be removed.
    """
    try:
        descriptor = os.open(top, _DIRECTORY)
    except FileNotFoundError:
        return
    except NotADirectoryError:
        top.unlink(missing_ok=True)
        return
    try:
        # A directory stands here twice: first to be emptied, then, below its subdirectories, to be removed.
        pending = [(name, False) for name in _empty(b".", descriptor)]
        while pending:
            relative, emptied = pending.pop()
            if emptied:
                os.rmdir(relative, dir_fd=descriptor)
            else:
                pending.append((relative, True))
                pending += [(name, False) for name in _empty(relative, descriptor)]
    finally:
        os.close(descriptor)
    top.rmdir()


def _empty(relative: bytes, top: int) -> list[bytes]:
    """Unlink what is in a directory and return its subdirectories, by their paths from `top`."""
    found = []
    directory = os.open(relative, _DIRECTORY, dir_fd=top)
    try:
        with os.scandir(directory) as listing:
            entries = [(os.fsencode(entry.name), entry.is_dir(follow_symlinks=False)) for entry in listing]
        for name, is_directory in entries:
            if not is_directory:
                os.unlink(name, dir_fd=directory)
                continue
            path = relative + b"/" + name
            if len(path) > _MAX_RELATIVE:
                path = b"." + secrets.token_hex(12).encode()
                os.rename(name, path, src_dir_fd=directory, dst_dir_fd=top)
            found.append(path)
    finally:
        os.close(directory)
    return found
