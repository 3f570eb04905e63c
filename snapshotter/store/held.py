"""Deleted files whose bytes are still on the disk, because the kernel holds them for a container or somebody has them open.

An overlay that has found a file keeps it, without a descriptor that /proc would show, until the kernel forgets it: a file
that was evicted then frees nothing yet. Its file handle tells: it opens the file for as long as that exists, name or not.
"""

import ctypes
import errno
import os
import threading
from collections import OrderedDict

_libc = ctypes.CDLL(None, use_errno=True)
_HANDLE_BYTES = 128
_AT_EMPTY_PATH = 0x1000

KEPT_MOST = 100_000
"""Files that are looked after; bytes of more than these are in no account."""


class _Handle(ctypes.Structure):
    """Source: open_by_handle_at(2), struct file_handle."""

    _fields_ = (
        ("handle_bytes", ctypes.c_uint),
        ("handle_type", ctypes.c_int),
        ("f_handle", ctypes.c_ubyte * _HANDLE_BYTES),
    )


class HeldFiles:
    """Safe from any thread. Without CAP_DAC_READ_SEARCH, or on a file system without handles, it knows of none."""

    def __init__(self, directory: int) -> None:
        """`directory` is one of the file system that the files are on."""
        self._directory = directory
        self._lock = threading.Lock()  # guards the two below
        self._files: OrderedDict[bytes, int] = OrderedDict()
        self._bytes = 0

    @property
    def bytes(self) -> int:
        """Bytes on disk of deleted files that exist still, as of the last `sweep`."""
        return self._bytes

    def deleted(self, fd: int, size: int) -> bool:
        """Note a file of `size` bytes on disk whose name was removed, and close `fd`, a descriptor of it; whether it is held."""
        handle = _handle_of(fd)
        os.close(fd)
        if handle is None or not _exists(self._directory, handle):
            return False
        with self._lock:
            if handle not in self._files and len(self._files) < KEPT_MOST:
                self._files[handle] = size
                self._bytes += size
        return True

    def sweep(self, at_most: int = KEPT_MOST) -> None:
        """Forget files that have gone, looking at `at_most` of them, those first that were not looked at for longest."""
        for _ in range(min(at_most, len(self._files))):
            with self._lock:
                if not self._files:
                    return
                handle, size = self._files.popitem(last=False)
                if _exists(self._directory, handle):
                    self._files[handle] = size
                else:
                    self._bytes -= size


def _handle_of(fd: int) -> bytes | None:
    made, mount = _Handle(_HANDLE_BYTES, 0), ctypes.c_int()
    if _libc.name_to_handle_at(fd, b"", ctypes.byref(made), ctypes.byref(mount), _AT_EMPTY_PATH) != 0:
        return None
    return bytes(made)


def _exists(directory: int, handle: bytes) -> bool:
    """Whether a file is there that nobody may find by name. Opened as a path only, so that nothing is done to it."""
    made = _Handle.from_buffer_copy(handle)
    fd = _libc.open_by_handle_at(directory, ctypes.byref(made), os.O_PATH | os.O_CLOEXEC)
    if fd < 0:
        # EMFILE says nothing of the file.
        return ctypes.get_errno() in (errno.EMFILE, errno.ENFILE)
    try:
        # One with a name is in the accounts already.
        return True
    finally:
        os.close(fd)
