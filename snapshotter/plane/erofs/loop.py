"""Loop devices that leave with their last user, for kernels and file systems without file-backed mounts.

By ioctl and not by mount(8): that takes ten times as long, and would go on after the daemon was killed.
"""

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

CONTROL: Final = "/dev/loop-control"

_LOOP_CTL_GET_FREE: Final = 0x4C82
_LOOP_CONFIGURE: Final = 0x4C0A
_LO_READ_ONLY: Final = 1
_LO_AUTOCLEAR: Final = 4
_CONFIG: Final = struct.Struct("=II5Q4I64x64x32x16x64x")
"""backing descriptor 4, block size 4 | device 8, inode 8, rdevice 8, offset 8, size limit 8 | number 4, encryption 4 and
its key's size 4, flags 4 | file name 64, cipher 64, key 32, init 16 | reserved 64 = 304. Source: linux/loop.h."""

_TRIES: Final = 64


@contextmanager
def loop_device(image: Path) -> Iterator[str]:
    """A read-only loop device over `image`; the kernel frees it with the last user: a mount made inside, or us.

    Raises:
        OSError: there is none, or none may be had.
    """
    backing = os.open(image, os.O_RDONLY | os.O_CLOEXEC)
    try:
        name, device = _configure(backing)
    finally:
        os.close(backing)
    try:
        yield name
    finally:
        os.close(device)


def _configure(backing: int) -> tuple[str, int]:
    """The name and the open descriptor of a loop device that was free."""
    config = _CONFIG.pack(backing, 0, 0, 0, 0, 0, 0, 0, 0, 0, _LO_READ_ONLY | _LO_AUTOCLEAR)
    control = os.open(CONTROL, os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(_TRIES):
            name, device = f"/dev/loop{fcntl.ioctl(control, _LOOP_CTL_GET_FREE)}", -1
            try:
                device = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
                fcntl.ioctl(device, _LOOP_CONFIGURE, config)
                return name, device
            except OSError as error:
                if device >= 0:
                    os.close(device)
                if error.errno not in (errno.EBUSY, errno.ENXIO):  # not another process that was quicker
                    raise OSError(error.errno, error.strerror, name) from error
    finally:
        os.close(control)
    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), CONTROL)
