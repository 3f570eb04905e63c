"""mount(2), umount2(2) and the kernel's table of mounts, through libc.

Nothing here opens a path, so a mount point whose server is dead or is this very process does no harm.
"""

import ctypes
import errno
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from snapshotter.errors import PlaneError

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_NOATIME = 1024
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8
"""Source: linux/mount.h and mount(2), umount2(2)."""

MountCall = Callable[[str, Path, str, int, str], None]
"""What `call_mount` is; tests give another."""

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_LIBC.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)

_MOUNTINFO = Path("/proc/self/mountinfo")
_OCTAL = re.compile(rb"\\([0-3][0-7]{2})")


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of the kernel's table of mounts."""

    mount_point: bytes
    device: str
    """`major:minor`, as sysfs names it."""
    fs_type: str
    source: str
    root: bytes
    """The path inside the file system that is mounted."""
    options: bytes
    """The file system's own options, with spaces and the like still as octal escapes."""


def call_mount(source: str, target: Path, fs_type: str, flags: int, data: str) -> None:
    """mount(2) for those who decide by the kernel's errno.

    Raises:
        OSError: the kernel refused; it names no path.
    """
    if _LIBC.mount(os.fsencode(source), os.fsencode(target), fs_type.encode(), flags, os.fsencode(data)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def mount(source: str, target: Path, fs_type: str, flags: int, data: str) -> None:
    """Ask the kernel to mount.

    Raises:
        PlaneError: the kernel refused; the message carries its reason.
    """
    try:
        call_mount(source, target, fs_type, flags, data)
    except OSError as error:
        raise PlaneError(
            f"cannot mount {fs_type} on {target}: {error.strerror}; mounting needs CAP_SYS_ADMIN"
        ) from error


def detach(target: Path) -> None:
    """Take the topmost mount off `target`; users of it keep it until they let go (MNT_DETACH, never MNT_FORCE).

    MNT_FORCE would abort the connection that every container of the node reads through.

    Raises:
        PlaneError: there is no mount, or the kernel refused.
    """
    if (number := _umount(target)) != 0:
        raise PlaneError(f"cannot unmount {target}: {os.strerror(number)}")


def detach_all(target: Path) -> int:
    """Detach whatever is stacked on `target`; return how many mounts that were, 0 also where `target` does not exist.

    Raises:
        PlaneError: the kernel refused.
    """
    count = 0
    while (number := _umount(target)) == 0:
        count += 1
    if number not in (errno.EINVAL, errno.ENOENT):  # no mount (any more), no such path
        raise PlaneError(f"cannot unmount {target}: {os.strerror(number)}")
    return count


def _umount(target: Path) -> int:
    """Detach the topmost mount; return 0 or the errno."""
    failed = _LIBC.umount2(os.fsencode(target), MNT_DETACH | UMOUNT_NOFOLLOW) != 0
    return ctypes.get_errno() if failed else 0


def parse_mountinfo(table: bytes) -> Iterator[Mount]:
    """The mounts of a mountinfo table, in its order: of several on one place, the last is on top.

    Source: proc(5), /proc/pid/mountinfo: id, parent, major:minor, root, mount point, options, optional fields, "-",
    type, source, super options; space, tab, newline and backslash are written in octal.
    """
    for line in table.splitlines():
        head, separator, tail = line.partition(b" - ")
        fields, rest = head.split(b" "), tail.split(b" ")
        if not separator or len(fields) < 6 or len(rest) < 3:
            continue
        device, root, mount_point = fields[2:5]
        fs_type, source, options = rest[:3]
        yield Mount(
            unescape(mount_point),
            device.decode("ascii", "replace"),
            fs_type.decode("ascii", "replace"),
            os.fsdecode(unescape(source)),
            unescape(root),
            options,
        )


def mounts_on(target: Path, mountinfo: Path = _MOUNTINFO) -> list[Mount]:
    """The mounts stacked on `target`, the topmost last. `target` itself is never opened.

    The kernel's table has no symbolic links in it, so the directory above is resolved.
    """
    wanted = os.fsencode(os.path.join(os.path.realpath(target.parent), target.name))
    return [entry for entry in parse_mountinfo(mountinfo.read_bytes()) if entry.mount_point == wanted]


def mounts_below(directory: Path, mountinfo: Path = _MOUNTINFO) -> dict[bytes, list[Mount]]:
    """The mounts below `directory`, by their path in it; of several on one path the topmost is last.

    Nothing below `directory` is opened.
    """
    top = os.fsencode(os.path.join(os.path.realpath(directory.parent), directory.name, ""))
    stacks: dict[bytes, list[Mount]] = {}
    for entry in parse_mountinfo(mountinfo.read_bytes()):
        if entry.mount_point.startswith(top):
            stacks.setdefault(entry.mount_point[len(top) :], []).append(entry)
    return stacks


def unescape(field: bytes) -> bytes:
    """A field of a mountinfo table as it is; the kernel writes some characters as a backslash and three octal digits."""
    return _OCTAL.sub(lambda code: bytes([int(code[1], 8)]), field)
