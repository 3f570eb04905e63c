"""Threads that leave this process's namespaces for one of their own, do one thing there, and end.

What they mount is gone when they are, whatever becomes of this process: the kernel drops a namespace that nobody is in.
"""

import ctypes
import fcntl
import os
import socket
import struct
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from stat import S_ISREG
from typing import TypeVar

from snapshotter.api.mount_pb2 import Mount
from snapshotter.errors import StoreError

T = TypeVar("T")

_CLONE_NEWNS = 0x00020000
_CLONE_NEWNET = 0x40000000
_MS_REC, _MS_PRIVATE = 0x4000, 0x40000
_FLAGS = {
    "ro": 0x1,
    "nosuid": 0x2,
    "nodev": 0x4,
    "noexec": 0x8,
    "noatime": 0x400,
    "bind": 0x1000,
    "rbind": 0x1000 | _MS_REC,
    "rw": 0,
}
"""Source: linux/sched.h, linux/mount.h; the options that snapshotters answer with."""

_SIOCSIFFLAGS, _IFF_UP = 0x8914, 0x1
"""Source: linux/sockios.h, linux/if.h."""

_LONG = 2048
"""Characters of an option from which on it is shortened; a page has at least twice as many."""

FILE_MAX = 4 << 20
"""Bytes of a file that is read from an image's root: more is no list of users."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)


def read_root(mounts: Sequence[Mount], place: Path, names: Sequence[str]) -> list[bytes | None]:
    """The content of regular files below a root that is mounted in a namespace of its own at the directory `place`.

    None for what is not there, or is no regular file. Links are followed inside the root.

    Raises:
        StoreError: it could not be mounted or read.
    """

    def read() -> list[bytes | None]:
        # A thread that has its own mounts has its own root and working directory as well.
        _checked(_libc.unshare(_CLONE_NEWNS))
        _checked(_libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None))
        for mount in mounts:
            _mount(mount, place)
        os.chroot(place)
        os.chdir("/")
        return [_content(f"/{name}") for name in names]

    try:
        return _in_thread(read)
    except OSError as fault:
        raise StoreError(f"the image's root could not be looked into: {fault.strerror or fault}") from fault


def new_network() -> int:
    """A descriptor of a new network namespace, whose loopback is up; it lives as long as somebody is in it or holds that.

    Raises:
        StoreError: the kernel makes none.
    """

    def make() -> int:
        _checked(_libc.unshare(_CLONE_NEWNET))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", _IFF_UP))
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    try:
        return _in_thread(make)
    except OSError as fault:
        raise StoreError(f"no network namespace could be made: {fault.strerror or fault}") from fault


def _in_thread(work: Callable[[], T]) -> T:
    """What `work` returns, or raises, in a thread that does nothing else and is not used again."""
    answers: list[T] = []
    faults: list[OSError] = []

    def run() -> None:
        try:
            answers.append(work())
        except OSError as fault:
            faults.append(fault)

    # Not waited for at this process's end: it may hang in a file of a lazy root.
    thread = threading.Thread(target=run, name="apart", daemon=True)
    thread.start()
    thread.join()
    if faults:
        raise faults[0]
    return answers[0]


def _mount(mount: Mount, place: Path) -> None:
    flags, data = 0, []
    for option in mount.options:
        if option in _FLAGS:
            flags |= _FLAGS[option]
        else:
            data.append(_shortened(option))
    _checked(
        _libc.mount(
            os.fsencode(mount.source), os.fsencode(place), mount.type.encode(), flags, os.fsencode(",".join(data))
        )
    )


def _shortened(option: str) -> str:
    """An overlay's list of layers as seen from where they lie, since a mount's options must fit into one page; goes there."""
    key, _, value = option.partition("=")
    layers = value.split(":")
    if key != "lowerdir" or len(option) < _LONG or not all(layer.startswith("/") for layer in layers):
        return option
    top = os.path.commonpath(layers)
    os.chdir(top)
    return f"{key}={':'.join(os.path.relpath(layer, top) for layer in layers)}"


def _content(path: str) -> bytes | None:
    try:
        # Looked at first: to open a FIFO or a device does something.
        if not S_ISREG(os.stat(path).st_mode):
            return None
        with open(path, "rb") as file:
            return file.read(FILE_MAX)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _checked(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
