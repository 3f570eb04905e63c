"""The recorder's own process: `python -I -S watch_program.py PID PARENT` tells which files the container PID opens and reads.

It says `ready` on standard output and watches until a byte comes on standard input; then it tells everything and ends. Every
message ends with a NUL byte. Only the standard library is imported, so that it watches a few hundredths of a second after it
was asked to, and it is a process of its own because the kernel opens each file for whoever reads the events: such an open waits for our
daemon, and what waits there can be killed only with its process.

Nothing is asked of the container and no mount namespace is entered: a mark on `/proc/PID/root` is a mark in the container's, and
`/proc/self/fd` shows where in it a file lies.

Source: fanotify(7), fanotify_init(2), fanotify_mark(2), proc_pid_mountinfo(5); Linux Documentation/filesystems/overlayfs.rst.
"""

import ctypes
import errno
import os
import re
import select
import signal
import stat
import struct
import sys
import time
from contextlib import suppress

# linux/fanotify.h
FAN_ACCESS = 0x1
FAN_OPEN = 0x20
FAN_Q_OVERFLOW = 0x4000
FAN_CLOEXEC, FAN_NONBLOCK, FAN_UNLIMITED_QUEUE, FAN_UNLIMITED_MARKS = 0x1, 0x2, 0x10, 0x20
FAN_REPORT_FD_ERROR = 0x2000  # Linux 6.13
FAN_MARK_ADD, FAN_MARK_MOUNT, FAN_MARK_FILESYSTEM = 0x1, 0x10, 0x100
FAN_MARK_IGNORED_MASK, FAN_MARK_IGNORED_SURV_MODIFY, FAN_MARK_FLUSH = 0x20, 0x40, 0x80
FAN_MARK_EVICTABLE = 0x200  # Linux 5.19
_EVENT = struct.Struct("=IBBHQii")  # length, version, reserved, length of this, mask, descriptor, process
# Of each event the kernel opens a file for us; a process may have 1024.
_EVENTS_A_READ = 256
_FIRST_OF_ALL = -20
_WATCHED = FAN_OPEN | FAN_ACCESS
# Beyond these what has happened counts as lost: a program that makes files as fast as it can must not fill the memory, nor keep whoever
# started this from what was noted. No start of a program comes near.
_NAMES_MAX = 64 << 20
_CATCH_UP_S = 60.0
_AT_FDCWD = -100
_PR_SET_PDEATHSIG = 1
_DELETED = b" (deleted)"
# What opening a regular file never comes to.
_NO_FILE = frozenset({errno.ENXIO, errno.ENODEV})

_libc = ctypes.CDLL(None, use_errno=True)


class Refused(RuntimeError):
    """It cannot be watched; the message says what is missing."""


class Mount:
    """A mount as mountinfo has it: which directory of its file system it shows, and where."""

    def __init__(self, line: bytes, root: bytes) -> None:
        """`root` is where the root of the process lies to which the line was shown."""
        before, _, after = line.partition(b" - ")
        fields = before.split(b" ")
        self.number, self.device = int(fields[0]), fields[2]
        self.shows = unescaped(fields[3])
        self.point = joined(root, unescaped(fields[4]))
        self.kind, _, rest = after.partition(b" ")
        self.options = rest.partition(b" ")[2]

    def inside(self, path: bytes) -> bytes | None:
        """Where in the file system a file lies that is found under `path`; None if that is not below this mount."""
        rest = below(path, self.point)
        return None if rest is None else joined(self.shows, rest)


def mounts_of(process: str) -> "dict[int, Mount]":
    """The mounts that a process sees, by number; none if it is gone."""
    try:
        root = os.readlink(os.fsencode(f"/proc/{process}/root"))
        with open(f"/proc/{process}/mountinfo", "rb") as file:
            mounts = [Mount(line, root) for line in file.read().splitlines()]
    except OSError:
        return {}
    return {mount.number: mount for mount in mounts}


def unescaped(field: bytes) -> bytes:
    """A field of mountinfo, where blanks and the like are written in octal."""
    return re.sub(rb"\\([0-7]{3})", lambda found: bytes([int(found.group(1), 8)]), field)


def joined(directory: bytes, rest: bytes) -> bytes:
    """`rest`, which may begin with a slash, below `directory`."""
    return directory.rstrip(b"/") + b"/" + rest.lstrip(b"/")


def below(path: bytes, directory: bytes) -> bytes | None:
    """`path` as seen from `directory`, without a slash at its front; None if it is not below."""
    top = directory.rstrip(b"/") + b"/"
    return path[len(top) :] if path.startswith(top) else None


class Watch:
    """The files of one container that were opened or read, in order of first access."""

    def __init__(self, process: int) -> None:
        """Watch from now on. Raises Refused."""
        self.found: dict[bytes, None] = {}
        self.lost = 0
        self._room = _NAMES_MAX
        self._process = process
        try:
            self._root = os.open(f"/proc/{process}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise Refused(f"cannot reach the files of process {process}: {error.strerror}") from error
        mounts = mounts_of(str(process))
        mount = mounts.get(_mount_number(self._root))
        top = os.readlink(b"/proc/self/fd/%d" % self._root)
        inside = mount.inside(top) if mount else None
        if mount is None or inside is None:
            raise Refused(f"the root of process {process} is on no mount that it sees")
        self._mounts = {mount.number: mount}
        self._device, self._inside = mount.device, inside
        self._overlay = Overlay(mount)
        self.fanotify = _group()
        self.whole = mount.kind == b"overlay" and self._mark_all(own=inside == b"/")
        if not self.whole:
            self._mark(FAN_MARK_ADD | FAN_MARK_MOUNT, self._root)

    def _mark_all(self, *, own: bool) -> bool:
        """Watch the file system, whoever reaches it by whichever mount; False if this cannot be or others use it too."""
        if not own:
            return False
        try:
            self._mark(FAN_MARK_ADD | FAN_MARK_FILESYSTEM, self._root)
        except Refused:  # Linux before 4.20
            return False
        return True

    def _mark(self, flags: int, descriptor: int) -> None:
        path = b"/proc/self/fd/%d" % descriptor
        if _libc.fanotify_mark(self.fanotify, ctypes.c_uint(flags), ctypes.c_uint64(_WATCHED), _AT_FDCWD, path):
            number = ctypes.get_errno()
            raise Refused(f"the kernel does not watch the container's files: {os.strerror(number)}")

    def take(self) -> bool:
        """Note some of what has happened; whether there was anything."""
        try:
            data = os.read(self.fanotify, _EVENT.size * _EVENTS_A_READ)
        except BlockingIOError:
            return False
        except OSError:
            self.lost += 1  # it could not be opened for us
            return True
        for mask, descriptor, process in _events(data):
            if mask & FAN_Q_OVERFLOW or descriptor < 0:
                self.lost += -descriptor not in _NO_FILE
                continue
            try:
                self._note(descriptor, process)
            except OSError:
                self.lost += 1  # its path is longer than a path can be, or who serves its layer is gone
            finally:
                os.close(descriptor)
        return True

    def end(self) -> None:
        """Watch no more, and note what has happened until now."""
        for kind in (FAN_MARK_FILESYSTEM, FAN_MARK_MOUNT):
            _libc.fanotify_mark(
                self.fanotify, ctypes.c_uint(FAN_MARK_FLUSH | kind), ctypes.c_uint64(0), _AT_FDCWD, None
            )
        give_up = time.monotonic() + _CATCH_UP_S
        while self.take():
            if time.monotonic() > give_up:
                self.lost += 1
                break

    def _note(self, descriptor: int, process: int) -> None:
        about = os.fstat(descriptor)
        regular = stat.S_ISREG(about.st_mode)
        # One event is enough, but a file with several names may be opened by each. A pipe is opened for us once at most, since a
        # writer could take us for its reader.
        self._ignore(descriptor, FAN_ACCESS if regular and about.st_nlink > 1 else _WATCHED)
        if not regular:
            return
        path = os.readlink(b"/proc/self/fd/%d" % descriptor)
        inside = self._place(descriptor, process, path)
        if inside is None:
            return
        if inside.endswith(_DELETED) and not self._is_there(inside, about):
            # Read, then removed, by the time that we look.
            inside = inside[: -len(_DELETED)]
        name = self._overlay.name_in_image(inside)
        if name in self.found:
            return
        if len(name) > self._room:
            self.lost += 1
            return
        self._room -= len(name)
        self.found[name] = None

    def _ignore(self, descriptor: int, mask: int) -> None:
        for more in (FAN_MARK_EVICTABLE, 0):
            flags = FAN_MARK_ADD | FAN_MARK_IGNORED_MASK | FAN_MARK_IGNORED_SURV_MODIFY | more
            if not _libc.fanotify_mark(self.fanotify, ctypes.c_uint(flags), ctypes.c_uint64(mask), descriptor, None):
                return

    def _place(self, descriptor: int, process: int, path: bytes) -> bytes | None:
        """Where below the container's root a file lies; None if it is not of it.

        The same file may have been reached by a bind mount, in a namespace of its own, or by the runtime from outside.
        """
        number = _mount_number(descriptor)
        mount = self._mounts.get(number)
        if mount is None or mount.inside(path) is None:
            for whose in (str(self._process), "self", str(process)):
                mount = mounts_of(whose).get(number)
                if mount is not None and mount.device == self._device and mount.inside(path) is not None:
                    self._mounts[number] = mount
                    break
            else:
                # The namespace is gone, and with it where its mounts were: most likely it was a copy of the container's.
                return path.lstrip(b"/")
        inside = mount.inside(path)
        return None if inside is None else below(inside, self._inside)

    def _is_there(self, inside: bytes, about: os.stat_result) -> bool:
        try:
            found = os.stat(inside, dir_fd=self._root, follow_symlinks=False)
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == (about.st_dev, about.st_ino)


class Overlay:
    """The directories of an overlay, as far as they tell what a file was called before the container renamed it."""

    def __init__(self, mount: Mount) -> None:
        """`mount` is one; of another file system nothing is known."""
        self._upper: bytes | None = None
        self._lower: list[bytes] = []
        for option in re.split(rb"(?<!\\\\),", mount.options) if mount.kind == b"overlay" else ():
            key, _, value = option.partition(b"=")
            if key == b"upperdir":
                self._upper = unescaped(value)
            elif key in {b"lowerdir", b"lowerdir+"}:
                self._lower += filter(None, unescaped(value).split(b":"))

    def name_in_image(self, name: bytes) -> bytes:
        """What the image calls a file that the container calls `name`: a directory above it may be renamed, too.

        A lower file or directory that was renamed is known by an attribute in the upper directory: its old name, where the overlay
        has metacopy and redirect_dir, as one of our snapshotter does; else it is a copy, with the handle of what it is a copy of.
        """
        if self._upper is None:
            return name
        found, here = b"", self._upper
        parts = name.split(b"/")
        for number, part in enumerate(parts):
            here = joined(here, part)
            try:
                redirect = os.getxattr(here, b"trusted.overlay.redirect", follow_symlinks=False)
            except OSError as error:
                if error.errno != errno.ENODATA:
                    return joined(found, b"/".join(parts[number:])).lstrip(b"/")
                redirect = part
            found = redirect if redirect.startswith(b"/") else joined(found, redirect)
        return self._origin(here) or found.lstrip(b"/")

    def _origin(self, copy: bytes) -> bytes | None:
        """What the file in the upper directory is a copy of. Source: Linux fs/overlayfs/overlayfs.h, struct ovl_fb."""
        try:
            origin = os.getxattr(copy, b"trusted.overlay.origin", follow_symlinks=False)
            top = os.open(os.path.dirname(copy), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            # version, magic, length, flags, type, 16 bytes of UUID: 21; and what the file system calls the file.
            handle = struct.pack("=Ii", max(0, len(origin) - 21), origin[4] if len(origin) > 21 else 0) + origin[21:]
            file = _libc.open_by_handle_at(top, handle, os.O_PATH | os.O_CLOEXEC)
        finally:
            os.close(top)
        if file < 0:
            return None
        try:
            path = os.readlink(b"/proc/self/fd/%d" % file)
        finally:
            os.close(file)
        for lower in self._lower:
            # containerd names lower directories as seen from a directory above them all, where they are many.
            before, between, rest = path.partition(b"/" + lower.strip(b"/") + b"/")
            if between and (not lower.startswith(b"/") or not before):
                return rest
        return None


def _mount_number(descriptor: int) -> int:
    with open(f"/proc/self/fdinfo/{descriptor}", "rb") as file:
        found = re.search(rb"^mnt_id:\s*(\d+)", file.read(), re.MULTILINE)
    return int(found.group(1)) if found else -1


def _events(data: bytes) -> "list[tuple[int, int, int]]":
    """Mask, descriptor and process of each event of one read."""
    events = []
    at = 0
    while at < len(data):
        length, _, _, _, mask, descriptor, process = _EVENT.unpack_from(data, at)
        events.append((mask, descriptor, process))
        at += length
    return events


def _group() -> int:
    # Never for writing, and never waiting for a pipe's other end.
    opened = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
    flags = FAN_CLOEXEC | FAN_NONBLOCK | FAN_UNLIMITED_QUEUE | FAN_UNLIMITED_MARKS
    for more in (FAN_REPORT_FD_ERROR, 0):
        group = _libc.fanotify_init(ctypes.c_uint(flags | more), ctypes.c_uint(opened))
        if group >= 0:
            return int(group)
        if ctypes.get_errno() != errno.EINVAL:
            break
    number = ctypes.get_errno()
    why = {
        errno.ENOSYS: "this kernel is built without CONFIG_FANOTIFY",
        errno.EPERM: "it takes CAP_SYS_ADMIN, outside of user namespaces: run as root, outside of a container",
        errno.EMFILE: "this user has as many watches as fs.fanotify.max_user_groups allows",
    }.get(number, os.strerror(number))
    raise Refused(f"the kernel does not watch files for us: {why}")


def tell(*parts: bytes) -> None:
    """Say something to whoever started this, each part ended by a NUL byte."""
    left = memoryview(b"".join(part + b"\0" for part in parts))
    while left:
        left = left[os.write(1, left) :]


def main(process: int, parent: int) -> None:
    """Watch until told to stop, or until whoever started this is gone."""
    _libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))
    if os.getppid() != parent:
        return
    # An event holds the mount by which its file was reached: whoever unmounts it meanwhile is told that it is busy.
    with suppress(OSError):
        os.nice(_FIRST_OF_ALL)
    try:
        watch = Watch(process)
    except Refused as error:
        tell(b"refused", os.fsencode(str(error)))
        return
    tell(b"ready", b"all" if watch.whole else b"mount")
    poll = select.poll()
    poll.register(watch.fanotify, select.POLLIN)
    poll.register(0, select.POLLIN)
    while not any(descriptor == 0 for descriptor, _ in poll.poll()):
        watch.take()
    if not os.read(0, 1):
        return  # nobody is there who would want to know
    watch.end()
    tell(*watch.found, b"", b"%d" % watch.lost)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
