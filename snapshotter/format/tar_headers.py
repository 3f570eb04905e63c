"""Tar headers written by us: landmarks, the TOC, and entries whose own header cannot be kept."""

import tarfile

from snapshotter.errors import FormatError

from .tar_entries import EntryType, TarEntry
from .tar_reading import BLOCK

END_OF_TAR = bytes(2 * BLOCK)

_NS = 1_000_000_000
TYPEFLAGS = {
    EntryType.REG: tarfile.REGTYPE,
    EntryType.HARDLINK: tarfile.LNKTYPE,
    EntryType.SYMLINK: tarfile.SYMTYPE,
    EntryType.CHAR: tarfile.CHRTYPE,
    EntryType.BLOCK: tarfile.BLKTYPE,
    EntryType.DIR: tarfile.DIRTYPE,
    EntryType.FIFO: tarfile.FIFOTYPE,
}


def encode_header(entry: TarEntry) -> bytes:
    """Return the header blocks of `entry`: ustar, preceded by a PAX header where ustar cannot say it.

    Raises:
        FormatError: a value that no tar header can hold.
    Source: POSIX.1-2017, pax, "ustar Interchange Format" and "pax Header Block".
    """
    header = tarfile.TarInfo(entry.name or ".")
    header.type = TYPEFLAGS[entry.type]
    header.mode, header.uid, header.gid = entry.mode, entry.uid, entry.gid
    header.uname, header.gname = entry.user_name, entry.group_name
    header.size = entry.size
    header.linkname = entry.link_name
    header.devmajor, header.devminor = entry.device
    records: dict[str, str] = {}
    seconds, nanoseconds = divmod(entry.mtime_ns, _NS)
    header.mtime = seconds
    if nanoseconds:
        records["mtime"] = f"{seconds}.{nanoseconds:09}".rstrip("0")
    for name, value in sorted(entry.xattrs.items()):
        records[f"SCHILY.xattr.{name}"] = value.decode("utf-8", "surrogateescape")
    header.pax_headers = records
    try:
        return header.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
    except (ValueError, OverflowError) as fault:
        raise FormatError(f"{entry.name!r} cannot be written into a tar: {fault}") from fault


def padding(size: int) -> bytes:
    """Return the zeros that fill the last block of a payload of `size` bytes."""
    return bytes(-size % BLOCK)
