"""Checks of what one entry says of itself: names, modes, owners, times, devices, extended attributes.

What a check lets through is what containerd's unpacking would have made of the same tar header.

Source: containerd archive/tar.go (createTarFile), archive/time.go (boundTime); Linux limits.h, chown(2), xattr(7).
"""

import re
from calendar import timegm
from collections.abc import Mapping
from datetime import datetime

from snapshotter.errors import FormatError

from .layout import NO_DIGEST
from .limits import DEVICE_MAJOR, DEVICE_MINOR, ID_MAX, NAME, PATH, XATTR_NAME, XATTR_VALUE, XATTRS
from .toc import Entry

NS = 1_000_000_000

_MODE_MAX = 0xFFFFFFFF
_PERMISSIONS = 0o7777
_MTIME_MAX = (1 << 63) - 1
_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,18}))?(Z|[+-]\d\d:\d\d)", re.ASCII)
_TIMES_KEPT = 1 << 16

_XATTR_KEPT = (b"user.", b"security.", b"system.posix_acl_access", b"system.posix_acl_default")


def show(name: bytes) -> str:
    """Return a name from a TOC for a message: quoted, and not longer than a line."""
    text = repr(name.decode("utf-8", "backslashreplace"))
    return text if len(text) <= 120 else text[:117] + "…'"


def encode(text: str, what: str) -> bytes:
    """Return the bytes of a name or target; `what` is for the message.

    Raises:
        FormatError: holds NUL, or half a surrogate pair.
    """
    try:
        raw = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as fault:
        raise FormatError(f"the TOC has a {what} that is no text: {text[:100]!r}") from fault
    if b"\0" in raw:
        raise FormatError(f"the TOC has a {what} with a NUL byte: {show(raw)}")
    return raw


def split_path(raw: bytes) -> list[bytes]:
    """Return the components of an entry's name, "." and empty ones dropped; none for the root.

    Raises:
        FormatError: empty, absolute, with "..", or too long.
    """
    if not raw:
        raise FormatError("the TOC has an entry without a name")
    if raw[:1] == b"/" and raw != b"/":
        raise FormatError(f"the TOC has the absolute name {show(raw)}")
    if len(raw) > PATH:
        raise FormatError(f"the name {show(raw)} has {len(raw)} bytes, the limit is {PATH}")
    parts = [part for part in raw.split(b"/") if part not in (b"", b".")]
    for part in parts:
        if part == b"..":
            raise FormatError(f"the name {show(raw)} leads out of the layer")
        if len(part) > NAME:
            raise FormatError(f"the name {show(raw)} has a part of {len(part)} bytes, the limit is {NAME}")
    return parts


def check_owner(entry: Entry) -> tuple[int, int, int]:
    """Return permission bits, uid and gid.

    Bits above 07777 are dropped: some tar writers put the file type there, and unpacking ignores it.

    Raises:
        FormatError: negative or too large.
    """
    mode, uid, gid = entry.mode, entry.uid, entry.gid
    if not 0 <= mode <= _MODE_MAX:
        raise FormatError(f"{entry.name[:100]!r} has mode {mode}")
    if not (0 <= uid <= ID_MAX and 0 <= gid <= ID_MAX):
        raise FormatError(f"{entry.name[:100]!r} belongs to {uid}:{gid}; ids go from 0 to {ID_MAX}")
    return mode & _PERMISSIONS, uid, gid


class Clock:
    """Parser of modification times; a TOC repeats few of them many times."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[str | None, int] = {None: 0, "": 0}

    def mtime_ns(self, text: str | None) -> int:
        """Return an RFC 3339 time in nanoseconds since 1970.

        What lies before 1970 or behind the year 2262 becomes 0, as containerd's unpacking does it; so does no time.

        Raises:
            FormatError: no such time.
        """
        known = self._known.get(text)
        if known is None:
            known = _parse_time(text or "")
            if len(self._known) < _TIMES_KEPT:
                self._known[text] = known
        return known


def _parse_time(text: str) -> int:
    match = _TIME.fullmatch(text)
    if match is None:
        raise FormatError(f"the TOC has the time {text[:100]!r}, which is not RFC 3339")
    try:
        seconds = timegm(datetime.fromisoformat(match[1] + match[3]).utctimetuple())
    except (ValueError, OverflowError) as fault:
        raise FormatError(f"the TOC has the time {text[:100]!r}: {fault}") from fault
    time = seconds * NS + int((match[2] or "0")[:9].ljust(9, "0"))
    return time if 0 <= time <= _MTIME_MAX else 0


def check_device(entry: Entry) -> int:
    """Return the device number of a char or block entry as stat(2) shows it.

    Raises:
        FormatError: out of Linux's range.
    """
    major, minor = entry.dev_major, entry.dev_minor
    if not (0 <= major <= DEVICE_MAJOR and 0 <= minor <= DEVICE_MINOR):
        raise FormatError(f"{entry.name[:100]!r} is device {major}:{minor}, beyond {DEVICE_MAJOR}:{DEVICE_MINOR}")
    return (minor & 0xFF) | major << 8 | (minor & ~0xFF) << 12


def check_target(entry: Entry) -> bytes:
    """Return the target of a symbolic link.

    Raises:
        FormatError: empty or too long.
    """
    target = encode(entry.link_name, "link target")
    if not 1 <= len(target) <= PATH:
        raise FormatError(
            f"the symbolic link {entry.name[:100]!r} has a target of {len(target)} bytes, not 1 to {PATH}"
        )
    return target


def check_xattrs(entry: Entry) -> dict[bytes, bytes]:
    """Return the extended attributes that unpacking sets.

    `trusted.*` is dropped, as containerd drops it: passed through, it would steer overlayfs. Namespaces that the
    kernel does not support on ordinary file systems (`com.apple.*`, `system.nfs4_acl`) are dropped too: setting them
    fails with EOPNOTSUPP, which unpacking ignores.

    Raises:
        FormatError: a name without namespace, or something over the kernel's limits.
    """
    found: dict[bytes, bytes] = {}
    given: Mapping[str, bytes | None] = entry.xattrs or {}
    total = 0
    for text, value in given.items():
        name = encode(text, "extended attribute")
        if name[:1] in (b"", b".") or b"." not in name[:-1] or len(name) > XATTR_NAME:
            raise FormatError(f"{entry.name[:100]!r} has an extended attribute with the name {show(name)}")
        content = value or b""
        total += len(name) + len(content)
        if len(content) > XATTR_VALUE or total > XATTRS:
            raise FormatError(f"{entry.name[:100]!r} has extended attributes of more than {XATTR_VALUE} bytes")
        if name.startswith(_XATTR_KEPT[:2]) or name in _XATTR_KEPT:
            found[name] = content
    return found


def check_digest(text: str, owner: str) -> bytes:
    """Return a sha256 digest as 32 bytes; `owner` is the entry's name for the message.

    Raises:
        FormatError: not a sha256 digest, or the one that stands for none.
    """
    try:
        raw = bytes.fromhex(text[7:])
    except ValueError:
        raw = b""
    if len(raw) != 32 or len(text) != 71 or text[:7] != "sha256:" or not text.islower() or raw == NO_DIGEST:
        raise FormatError(f"{owner[:100]!r} has the digest {text[:100]!r}, which is not sha256")
    return raw
