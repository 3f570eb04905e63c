"""Descriptors that systemd holds for us while no daemon runs (FDSTORE): the second copy of what the keeper keeps.

The store gives back what it has at the next start, through LISTEN_FDS, in an order of its own and with names.
Source: sd_notify(3), sd_listen_fds(3), systemd.service(5), FileDescriptorStoreMax.
"""

import fcntl
import os
from collections.abc import MutableMapping
from typing import Final

FUSE_NAME: Final = "estargz-fuse"
RECORD_NAME: Final = "estargz-record"
NAMES: Final = (FUSE_NAME, RECORD_NAME)

_FIRST: Final = 3


def inherited(environment: MutableMapping[str, str] = os.environ) -> dict[str, int]:
    """The descriptors that this process was given, by name; of several with one name the last. All others are closed.

    The variables are removed, so that no child takes the descriptors for its own.
    """
    pid = environment.pop("LISTEN_PID", "")
    count = environment.pop("LISTEN_FDS", "")
    names = environment.pop("LISTEN_FDNAMES", "").split(":")
    if pid != str(os.getpid()) or not count.isdecimal():
        return {}
    found: dict[str, int] = {}
    for fd in range(_FIRST, _FIRST + int(count)):
        try:
            fcntl.fcntl(fd, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
        except OSError:
            continue
        name = names[fd - _FIRST] if fd - _FIRST < len(names) else ""
        if name not in NAMES:
            os.close(fd)
            continue
        if name in found:
            os.close(found[name])
        found[name] = fd
    return found


def record_file(record: bytes) -> int:
    """A descriptor of a memory file that holds `record`. Raises OSError."""
    fd = os.memfd_create(RECORD_NAME, os.MFD_CLOEXEC)
    os.write(fd, record)
    return fd


def rewrite_record(fd: int, record: bytes) -> None:
    """Have the file say something else, which the store then holds too: it never goes out of it. Raises OSError."""
    # In one write, and never shorter: white space at the end of JSON says nothing, half of a record would.
    os.pwrite(fd, record.ljust(os.fstat(fd).st_size), 0)


def read_record(fd: int) -> bytes:
    """What `record_file` was given. Raises OSError."""
    return os.pread(fd, os.fstat(fd).st_size, 0)
