"""The layers that the test server serves: one with every kind of entry, and small ones above it."""

import os
import stat
import struct

from tests.mount.trees import MemoryIndex

TORTURE, UPPER, LATE, BROKEN = 1, 2, 3, 4

LONG_NAME = b"n" * 255
ODD_NAME = b"caf\xe9\xff"
LONG_TARGET = b"t/" * 2047 + b"x"
BIG = bytes(range(256)) * 4096 * 3
"""3 MiB: several requests even at the largest read-ahead."""
NEGATIVE_TIME = -1_500_000_000


def acl(*entries: tuple[int, int, int]) -> bytes:
    """The kernel's form of a POSIX ACL: (tag, permissions, id) each."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


BIND_SERVICE = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)
"""CAP_NET_BIND_SERVICE, permitted and effective. Source: linux/capability.h, vfs_cap_data revision 2."""

_NOBODY = 0xFFFFFFFF
ACL_1000_READS = acl((1, 6, _NOBODY), (2, 4, 1000), (4, 0, _NOBODY), (16, 4, _NOBODY), (32, 0, _NOBODY))


def torture() -> MemoryIndex:
    """Every kind of entry that a layer may hold."""
    tree = MemoryIndex()
    tree.add("dir", stat.S_IFDIR | 0o755)
    tree.add("dir/file", stat.S_IFREG | 0o644, data=b"hello\n", uid=70_000, gid=80_000)
    tree.add("dir/empty", stat.S_IFREG | 0o600)
    tree.add("dir/sub", stat.S_IFDIR | 0o700)
    tree.add("dir/sub/deep", stat.S_IFREG | 0o644, data=b"deep")
    tree.add("big", stat.S_IFREG | 0o644, data=BIG)
    linked = tree.add("linked", stat.S_IFREG | 0o644, data=b"same")
    tree.link("linked-too", linked)
    tree.add("link", stat.S_IFLNK | 0o777, target=b"dir/file")
    tree.add("long-link", stat.S_IFLNK | 0o777, target=LONG_TARGET)
    tree.add(LONG_NAME, stat.S_IFREG | 0o644, data=b"long")
    tree.add(ODD_NAME, stat.S_IFREG | 0o644, data=b"odd")
    tree.add("null", stat.S_IFCHR | 0o666, rdev=os.makedev(1, 3))
    tree.add("disk", stat.S_IFBLK | 0o660, rdev=os.makedev(259, 70_000))
    tree.add("pipe", stat.S_IFIFO | 0o644)
    tree.add("closed", stat.S_IFREG | 0o000, data=b"closed")
    with open("/bin/id", "rb") as program:
        tree.add("suid", stat.S_IFREG | 0o4755, data=program.read())
    with open("/bin/cat", "rb") as program:
        tree.add("capable", stat.S_IFREG | 0o755, data=program.read(), xattrs={b"security.capability": BIND_SERVICE})
    tree.add("sticky", stat.S_IFDIR | 0o1777)
    tree.add("old", stat.S_IFREG | 0o644, mtime_ns=NEGATIVE_TIME)
    tree.add("marked", stat.S_IFREG | 0o644, data=b"x", xattrs={b"user.a": b"\x00\xff", b"user.empty": b""})
    tree.add("guarded", stat.S_IFREG | 0o640, data=b"for 1000\n", xattrs={b"system.posix_acl_access": ACL_1000_READS})
    tree.add("many", stat.S_IFDIR | 0o755)
    for i in range(2000):
        tree.add(f"many/entry-{i:04}", stat.S_IFREG | 0o644)
    return tree


def upper() -> MemoryIndex:
    """A layer above `torture`: a whiteout, an opaque directory and a replaced file."""
    tree = MemoryIndex()
    tree.add("linked", stat.S_IFCHR, rdev=0)
    tree.add("dir", stat.S_IFDIR | 0o755)
    tree.add("dir/file", stat.S_IFREG | 0o644, data=b"newer\n")
    tree.add("dir/sub", stat.S_IFDIR | 0o755, xattrs={b"trusted.overlay.opaque": b"y"})
    tree.add("dir/sub/only", stat.S_IFREG | 0o644, data=b"only")
    return tree


def late() -> MemoryIndex:
    """A layer that is attached while the mount is in use."""
    tree = MemoryIndex()
    tree.add("late", stat.S_IFREG | 0o644, data=b"late\n")
    return tree


def broken() -> MemoryIndex:
    """Files that behave as their names say when read."""
    tree = MemoryIndex()
    for name in ("bug", "outage", "too-long"):
        tree.add(name, stat.S_IFREG | 0o644, data=b"never seen")
    for i in range(200):
        tree.add(f"stuck-{i:03}", stat.S_IFREG | 0o644, data=b"never seen")
    return tree
