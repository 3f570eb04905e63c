"""Our own FUSE mount: /dev/fuse, mount(2) and what the kernel lets us set beside them.

We open and mount ourselves instead of letting libfuse do it, so that the mount is ours to keep: libfuse then knows no
mount point and never unmounts, and a later process can serve the same connection.
"""

import errno
import logging
import os
import select
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from snapshotter.errors import PlaneError
from snapshotter.plane.fuse.protocol import MAX_MESSAGE, parse_init_request
from snapshotter.plane.mounts import MS_NOATIME, MS_NODEV, MS_NOSUID, MS_RDONLY, detach, mount, mounts_on
from snapshotter.store.real_directory import real_directory

FS_TYPE: Final = "fuse.estargz"
MOUNT_NAME: Final = "fuse"
"""The mount point in the run directory."""
READ_AHEAD_KIB: Final = 1024
"""One request of the largest size that the kernel sends (256 pages). Measured on a 50 MB file, cold page cache."""

_DEVICE: Final = "/dev/fuse"
_INIT_TIMEOUT_MS: Final = 5000

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Connection:
    """A mounted FUSE connection, before or after its INIT was answered."""

    fd: int
    """/dev/fuse, close-on-exec: a copy in a forgotten child would keep a dead connection alive."""
    init: bytes
    """The INIT message as the kernel sent it."""
    device: str
    """`major:minor` of the mount."""
    mount_point: Path


def open_connection(mount_point: Path) -> Connection:
    """Mount a fresh FUSE connection on `mount_point` and read its INIT. Stale mounts of ours there are detached first.

    Raises:
        PlaneError: no /dev/fuse, no permission, or the place is taken by another file system.
    """
    detach_ours(mount_point)
    try:
        real_directory(mount_point, 0o755, parents=True)
    except OSError as error:
        raise PlaneError(f"cannot mount on {mount_point}: {error.strerror}") from error
    try:
        fd = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise PlaneError(
            f"cannot open {_DEVICE}: {error.strerror}; load the kernel module fuse, run as root"
        ) from error
    try:
        options = f"fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions"
        mount("estargz", mount_point, FS_TYPE, MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOATIME, options)
        init = _read_init(fd)
        return Connection(fd, init, mounts_on(mount_point)[-1].device, mount_point)
    except BaseException:
        os.close(fd)
        raise


def is_alive(fd: int) -> bool:
    """Whether a FUSE connection still has a mount, or an overlay above one, that uses it."""
    poll = select.poll()
    poll.register(fd, 0)
    return not poll.poll(0)


def detach_ours(mount_point: Path) -> int:
    """Detach mounts of ours from `mount_point` until it is none; returns how many there were.

    A fresh mount over a dead one would stack, and what lies below would never be freed.

    Raises:
        PlaneError: another file system's mount is on that place.
    """
    count = 0
    while stacked := mounts_on(mount_point):
        if stacked[-1].fs_type != FS_TYPE:
            raise PlaneError(f"{mount_point} is a mount point of {stacked[-1].fs_type}; choose another run directory")
        detach(mount_point)
        count += 1
    return count


def raise_read_ahead(device: str, kib: int = READ_AHEAD_KIB, sysfs: Path = Path("/sys")) -> bool:
    """Let the kernel read ahead `kib` KiB on the mount `device`; False, with a warning, where sysfs does not allow it.

    The INIT reply cannot raise it: the kernel takes the smaller of its offer and the reply.
    """
    setting = sysfs / "class" / "bdi" / device / "read_ahead_kb"
    try:
        setting.write_text(f"{kib}\n")
    except OSError as error:
        log.warning("cannot set %s (%s): sequential reads of lazy layers will be slower", setting, error.strerror)
        return False
    return True


def answer_init(fd: int, reply: bytes) -> bool:
    """Give the kernel the reply to INIT; False if the connection had its answer before (from an earlier process).

    Raises:
        PlaneError: the kernel does not take it.
    """
    try:
        os.write(fd, reply)
    except OSError as error:
        if error.errno == errno.ENOENT:
            return False
        raise PlaneError(f"the kernel refused the reply to INIT: {error.strerror}") from error
    return True


def _read_init(fd: int) -> bytes:
    """The kernel sent INIT inside mount(2), so it waits for us already."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    if not poll.poll(_INIT_TIMEOUT_MS):
        raise PlaneError("the kernel sent no INIT on the new FUSE connection")
    init = os.read(fd, MAX_MESSAGE)
    parse_init_request(init)
    return init
