"""A layer's tar, read into the entries that a container will see.

Entries that a later entry replaces are gone, as they are after unpacking.
"""

import re
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from operator import attrgetter
from types import MappingProxyType
from typing import BinaryIO

from snapshotter.errors import FormatError, NotLazy, Reason

from . import limits
from .attributes import check_device, check_target, check_xattrs
from .tar_reading import sparse_map, tar_headers
from .toc import Entry

TOC_NAME = "stargz.index.json"
PREFETCH_LANDMARK = ".prefetch.landmark"
NO_PREFETCH_LANDMARK = ".no.prefetch.landmark"
WHITEOUT = ".wh."

OPAQUE = ".wh..wh..opq"

RESERVED = frozenset({TOC_NAME, PREFETCH_LANDMARK, NO_PREFETCH_LANDMARK})
# Of an image that was built on a converted one and removed its landmarks. Every layer gets a new one, and containerd does not
# unpack a layer that has a file and, behind it, its whiteout.
_LEFT_OUT = RESERVED | {WHITEOUT + name for name in (PREFETCH_LANDMARK, NO_PREFETCH_LANDMARK)}
_XATTR = "SCHILY.xattr."

# Names that are compared because directories are replaced: some seconds' work.
_LOOKED_AT_MAX = 30_000_000

# Times outside of these become the epoch when containerd unpacks (os.Chtimes takes no others).
_MTIME_MAX_NS = (1 << 63) - 1
_PAX_TIME = re.compile(r"(-?)([0-9]+)(?:\.([0-9]*))?")
_PAX_NUMBER = re.compile(r"[0-9]+")


_NO_XATTRS: Mapping[str, bytes] = MappingProxyType({})
inode_attributes = attrgetter("mode", "uid", "gid", "mtime_ns", "xattrs")
"""What an entry sets of its file; a hard link sets it of the file that it is linked to."""


class EntryType(StrEnum):
    """The TOC's word for a kind of entry."""

    DIR = "dir"
    REG = "reg"
    SYMLINK = "symlink"
    HARDLINK = "hardlink"
    CHAR = "char"
    BLOCK = "block"
    FIFO = "fifo"


_TYPES = {
    tarfile.REGTYPE: EntryType.REG,
    tarfile.AREGTYPE: EntryType.REG,
    tarfile.CONTTYPE: EntryType.REG,
    tarfile.GNUTYPE_SPARSE: EntryType.REG,
    tarfile.LNKTYPE: EntryType.HARDLINK,
    tarfile.SYMTYPE: EntryType.SYMLINK,
    tarfile.CHRTYPE: EntryType.CHAR,
    tarfile.BLKTYPE: EntryType.BLOCK,
    tarfile.DIRTYPE: EntryType.DIR,
    tarfile.FIFOTYPE: EntryType.FIFO,
}


@dataclass(frozen=True, slots=True)
class Extent:
    """`size` bytes of a file at `file_offset`, which lie in the tar at `tar_offset`."""

    file_offset: int
    size: int
    tar_offset: int


@dataclass(frozen=True, slots=True)
class TarEntry:
    """One entry: where its header and its bytes lie in the tar, and what they mean.

    `name` is clean: no leading, trailing or double slash, no "." or ".."; "" is the layer's root. Bytes that are not
    UTF-8 are surrogate escapes in every text. `header_size` is 0 when the header must be written anew; `content`
    is set when the bytes do not come from the tar. Without `extents` they follow the header that is kept (200 bytes less
    for each of a million files); what lies between extents is zeros.
    """

    name: str
    type: EntryType
    mode: int
    uid: int = 0
    gid: int = 0
    user_name: str = ""
    group_name: str = ""
    mtime_ns: int = 0
    size: int = 0
    link_name: str = ""
    device: tuple[int, int] = (0, 0)
    xattrs: Mapping[str, bytes] = field(default_factory=lambda: _NO_XATTRS)
    header_offset: int = 0
    header_size: int = 0
    extents: tuple[Extent, ...] | None = None
    content: bytes | None = None

    @property
    def parent(self) -> str:
        """Name of the directory that holds the entry."""
        return self.name.rpartition("/")[0]


def clean_name(name: str) -> str:
    """Return `name` as a path from the layer's root; ".." stops there, as it does when containerd unpacks."""
    parts: list[str] = []
    for part in name.split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)


def ancestors(name: str) -> Iterator[str]:
    """Yield the directories above `name`, nearest first, without the root."""
    while name := name.rpartition("/")[0]:
        yield name


@dataclass(frozen=True, slots=True)
class ScannedTar:
    """A layer's entries in the order of its tar; `prefetched` are the names of those that an earlier conversion put in
    front of its landmark.
    """

    entries: list[TarEntry]
    prefetched: list[str]


def scan_tar(tar: BinaryIO, check: Callable[[], object] = int) -> ScannedTar:
    """Return the entries that remain when the tar in `tar` (seekable, at any position) is unpacked, in its order.

    TOC and landmarks of an earlier conversion are left out, but what the first landmark said is told. `check` is called for
    each header; what it raises ends the work.

    Raises:
        FormatError: damaged, cut off, or of a kind containerd does not unpack.
        NotLazy: it may unpack well, but a TOC cannot say what it unpacks to.
    """
    tree = _Tree()
    in_front: list[str] = []
    for header in tar_headers(tar):
        check()
        entry = _entry(header)
        if entry.name not in _LEFT_OUT:
            _check_mountable(entry)
            tree.add(entry)
        elif entry.name == PREFETCH_LANDMARK and not in_front:
            in_front = tree.names()
    entries = tree.finished()
    here = set(tree.names())
    return ScannedTar(entries, [name for name in in_front if name in here])


class _Tree:
    """Entries so far, as unpacking would leave them."""

    def __init__(self) -> None:
        self._entries: dict[str, TarEntry] = {}
        self._links: dict[str, list[str]] = {}
        """By the name of a file, the hard links to it."""
        self._holders: set[str] = set()
        """Directories, described or not, of the entries so far."""
        self._looked_at = 0
        self._text = 0

    def add(self, entry: TarEntry) -> None:
        name = entry.name
        if not name and entry.type is not EntryType.DIR:
            raise FormatError(f"the layer's root is a {entry.type} in its tar; it must be a directory")
        if entry.type is EntryType.HARDLINK:
            self._check_link(entry)
        self._check_whiteout(name)
        for directory in ancestors(name):
            if directory in self._holders:
                break
            self._holders.add(directory)
            self._text += len(directory)
        self._check_size(entry)
        old = self._entries.get(name)
        if old is not None and not (old.type is entry.type is EntryType.DIR):
            self._remove(old)
        # A directory that comes again keeps its place, before what it holds, with the new attributes.
        self._entries[name] = entry
        if entry.type is EntryType.HARDLINK:
            self._links.setdefault(entry.link_name, []).append(name)

    def names(self) -> list[str]:
        """All names so far, in order."""
        return list(self._entries)

    def finished(self) -> list[TarEntry]:
        """All entries, every parent of which is known to be a directory."""
        good: set[str] = {""}
        for name in self._entries:
            for directory in ancestors(name):
                if directory in good:
                    break
                if directory in RESERVED:
                    raise NotLazy(Reason.TOC_INVALID, f"{name!r} lies below a name that a lazy layer has for itself")
                holder = self._entries.get(directory)
                if holder is not None and holder.type is not EntryType.DIR:
                    raise NotLazy(
                        Reason.TOC_INVALID,
                        f"{name!r} lies below {directory!r}, which is a {holder.type} in the same layer",
                    )
                good.add(directory)
        return list(self._entries.values())

    def _check_link(self, entry: TarEntry) -> None:
        target = self._entries.get(entry.link_name)
        if target is None or entry.link_name == entry.name:
            raise NotLazy(
                Reason.TOC_INVALID,
                f"hard link {entry.name!r} points to {entry.link_name!r}, which no earlier entry of the layer is",
            )
        if target.type is EntryType.DIR:
            raise FormatError(f"hard link {entry.name!r} points to the directory {entry.link_name!r}")

    def _check_size(self, entry: TarEntry) -> None:
        """Refuse, while there is memory, what nobody could mount, or what is more text than any layer has."""
        self._text += len(entry.name) + len(entry.link_name)
        if entry.xattrs:
            self._text += sum(len(key) + len(value) for key, value in entry.xattrs.items())
        if self._text > limits.TAR_TEXT:
            raise NotLazy(Reason.TOC_INVALID, f"its names and attributes take more than {limits.TAR_TEXT >> 20} MiB")
        if len(self._entries) >= limits.TOC_ENTRIES:
            raise NotLazy(Reason.TOC_INVALID, f"it has more than {limits.TOC_ENTRIES} entries")

    def _check_whiteout(self, name: str) -> None:
        """Refuse a whiteout behind what it names: unpacking the lowest layer removes that, and fails for any other."""
        parent, _, last = name.rpartition("/")
        if last.startswith(WHITEOUT) and last != OPAQUE:
            hidden = last.removeprefix(WHITEOUT)
            hidden = f"{parent}/{hidden}" if parent else hidden
            if hidden in self._entries or hidden in self._holders:
                raise NotLazy(Reason.TOC_INVALID, f"{hidden!r} is followed by its own whiteout")

    def _remove(self, old: TarEntry) -> None:
        """Forget what is replaced, and below a replaced directory everything."""
        gone = [old.name]
        if old.type is EntryType.DIR and old.name in self._holders:
            self._looked_at += len(self._entries)
            if self._looked_at > _LOOKED_AT_MAX:
                raise NotLazy(Reason.TOC_INVALID, f"{old.name!r} is one of too many directories that are replaced")
            below = old.name + "/"
            gone += [name for name in self._entries if name.startswith(below)]
        removed = {name: self._entries.pop(name) for name in gone}
        for name, entry in removed.items():
            for link in self._links.pop(name, ()):
                if link in self._entries:
                    raise NotLazy(Reason.TOC_INVALID, f"{name!r} is replaced after {link!r} was hard-linked to it")
            target = self._entries.get(entry.link_name)
            # Unpacking a hard link gives its file the attributes of the link's header, and they stay with the file.
            if (
                entry.type is EntryType.HARDLINK
                and target is not None
                and inode_attributes(entry) != inode_attributes(target)
            ):
                raise NotLazy(
                    Reason.TOC_INVALID, f"hard link {name!r} is replaced after it changed attributes of {target.name!r}"
                )


def _entry(header: tarfile.TarInfo) -> TarEntry:
    kind = _TYPES.get(header.type)
    name = clean_name(header.name)
    if kind is None:
        raise FormatError(f"{name!r} has the tar type {header.type!r}, which containerd does not unpack")
    # tarfile takes the slash from a name in a PAX header.
    if header.type == tarfile.AREGTYPE and (header.pax_headers.get("path") or header.name).endswith("/"):
        kind = EntryType.DIR
    _check(name, header)
    link = clean_name(header.linkname) if kind is EntryType.HARDLINK else header.linkname
    sparse = header.issparse()
    kept = not sparse and header.type not in (tarfile.CONTTYPE, tarfile.GNUTYPE_SPARSE)
    return TarEntry(
        name=name,
        type=kind,
        mode=header.mode & 0o7777,
        uid=header.uid,
        gid=header.gid,
        user_name=sys.intern(header.uname),
        group_name=sys.intern(header.gname),
        mtime_ns=_mtime_ns(header),
        size=header.size if kind is EntryType.REG else 0,
        link_name=link if kind in (EntryType.SYMLINK, EntryType.HARDLINK) else "",
        device=(header.devmajor, header.devminor) if kind in (EntryType.CHAR, EntryType.BLOCK) else (0, 0),
        xattrs=_xattrs(header.pax_headers),
        header_offset=header.offset,
        header_size=header.offset_data - header.offset if kept else 0,
        extents=_extents(header, sparse=sparse) if kind is EntryType.REG and not kept else None,
    )


def _xattrs(records: Mapping[str, str]) -> Mapping[str, bytes]:
    found = {
        key.removeprefix(_XATTR): value.encode("utf-8", "surrogateescape")
        for key, value in records.items()
        if key.startswith(_XATTR)
    }
    return found or _NO_XATTRS


def _check(name: str, header: tarfile.TarInfo) -> None:
    """Refuse what cannot be on a Linux file system, and PAX records that tarfile reads as zero."""
    for text in (name, header.linkname):
        if "\0" in text:
            raise FormatError(f"{text[:60]!r}… in the layer's tar contains a NUL")
    path = name.encode("utf-8", "surrogateescape")
    if len(path) > limits.PATH or any(len(part) > limits.NAME for part in path.split(b"/")):
        raise FormatError(f"{name[:100]!r}… is longer than a path may be ({limits.PATH} bytes, {limits.NAME} a part)")
    for key in ("size", "uid", "gid"):
        value = header.pax_headers.get(key)
        if value is not None and _PAX_NUMBER.fullmatch(value) is None:
            raise FormatError(f"{name!r} has the PAX record {key}={value[:40]!r}, which is not a number")
    if not 0 <= header.size <= limits.FILE_SIZE:
        raise FormatError(f"{name!r} has a size of {header.size} bytes in its tar header")
    if not (0 <= header.uid <= limits.ID_MAX and 0 <= header.gid <= limits.ID_MAX):
        raise FormatError(f"{name!r} belongs to {header.uid}:{header.gid}, which are no Linux ids")


def _check_mountable(entry: TarEntry) -> None:
    """Refuse what a TOC can say and no reader of ours mounts: a layer that called itself lazy would be none."""
    is_device = entry.type in (EntryType.CHAR, EntryType.BLOCK)
    is_link = entry.type is EntryType.SYMLINK
    if entry.name.rpartition("/")[2] in (WHITEOUT, WHITEOUT + ".", WHITEOUT + ".."):
        raise NotLazy(Reason.TOC_INVALID, f"the whiteout {entry.name!r} names nothing")
    if not (is_device or is_link or entry.xattrs):
        return
    major, minor = entry.device
    row = Entry(name=entry.name, link_name=entry.link_name, dev_major=major, dev_minor=minor, xattrs=dict(entry.xattrs))
    try:
        if is_device:
            check_device(row)
        if is_link:
            check_target(row)
        check_xattrs(row)
    except FormatError as fault:
        raise NotLazy(Reason.TOC_INVALID, str(fault)) from fault


def _mtime_ns(header: tarfile.TarInfo) -> int:
    """Modification time as containerd sets it: nanoseconds, the epoch for what the kernel would not take."""
    text = header.pax_headers.get("mtime")
    if text is None:
        ns = int(header.mtime) * 1_000_000_000
    else:
        match = _PAX_TIME.fullmatch(text)
        if match is None:
            raise FormatError(f"{header.name!r} has the PAX record mtime={text[:40]!r}, which is not a time")
        ns = int(match[2]) * 1_000_000_000 + int((match[3] or "")[:9].ljust(9, "0"))
        if match[1]:
            ns = -ns
    return ns if 0 <= ns <= _MTIME_MAX_NS else 0


def _extents(header: tarfile.TarInfo, *, sparse: bool) -> tuple[Extent, ...]:
    if not sparse:
        return (Extent(0, header.size, header.offset_data),) if header.size else ()
    extents: list[Extent] = []
    end, tar_offset = 0, header.offset_data
    for file_offset, size in sparse_map(header):
        if size == 0:
            continue
        if size < 0 or file_offset < end or file_offset + size > header.size:
            raise FormatError(f"the map of sparse file {header.name!r} does not fit its {header.size} bytes")
        extents.append(Extent(file_offset, size, tar_offset))
        end, tar_offset = file_offset + size, tar_offset + size
    return tuple(extents)
