"""An archive with an image: a tar whose files are read where they lie, by whatever name.

Nothing is unpacked, so that names and links of the archive lead nowhere but into the archive. One that is compressed is
made plain in a file without a name, which is gone with the process.
"""

import os
import posixpath
import tarfile
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import trio

from snapshotter.errors import FormatError, NotFound, NotLazy
from snapshotter.format.plain_tar import copy_plain
from snapshotter.format.tar_entries import clean_name
from snapshotter.format.tar_reading import tar_headers
from snapshotter.image.places.disk import PIECE, disk_errors, open_file

MEMBERS_MAX = 100_000
"""Files of an archive with images; each takes some memory."""

_LINKS_MAX = 8
_COMPRESSED = {b"\x1f\x8b": "", b"\x28\xb5\x2f\xfd": "", b"BZh": "bzip2", b"\xfd7zXZ": "xz"}
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)


@dataclass(frozen=True, slots=True)
class Member:
    """A file of the archive: `size` bytes at `offset`."""

    name: str
    offset: int
    size: int


class ArchiveFile:
    """The files of an open archive. Usable from any thread; blocks."""

    def __init__(self, path: Path, tar: BinaryIO) -> None:
        """`tar` is the plain tar of the archive at `path`.

        Raises:
            FormatError: it is none.
        """
        self.path = path
        self._fd = tar.fileno()
        self._members: dict[str, Member | str] = {}
        try:
            for header in tar_headers(tar):
                trio.from_thread.check_cancelled()
                self._enter(header)
        except (FormatError, NotLazy) as fault:
            raise FormatError(f"{path} is no archive of an image, or is damaged or cut off: {fault}") from None

    def find(self, name: str) -> Member | None:
        """The file called `name`, also by way of links inside the archive; None if there is none."""
        name = clean_name(name)
        for _ in range(_LINKS_MAX):
            found = self._members.get(name)
            if not isinstance(found, str):
                return found
            name = found
        return None

    def document(self, name: str, limit: int) -> bytes:
        """A small file.

        Raises:
            NotFound: there is none of this name.
            FormatError: it is not small.
        """
        member = self.find(name)
        if member is None:
            raise NotFound(f"{self.path} has no {name}")
        if member.size > limit:
            raise FormatError(f"{name} in {self.path} has {member.size} bytes; the limit is {limit}")
        return self.part(member, 0, member.size)

    def part(self, member: Member, start: int, size: int) -> bytes:
        """Exactly `size` bytes of a file. Raises FormatError: there are fewer."""
        if start + size > member.size:
            raise FormatError(f"{member.name} in {self.path} ends before byte {start + size}")
        with disk_errors(self.path):
            data = os.pread(self._fd, size, member.offset + start)
        if len(data) != size:
            raise FormatError(f"{self.path} became shorter while it was read")
        return data

    def pieces(self, member: Member) -> Iterator[bytes]:
        """The whole of a file, piece by piece."""
        for start in range(0, member.size, PIECE):
            yield self.part(member, start, min(PIECE, member.size - start))

    def _enter(self, header: tarfile.TarInfo) -> None:
        name = clean_name(header.name)
        if header.type in _FILES and not header.issparse():
            self._members[name] = Member(name, header.offset_data, header.size)
        elif header.type == tarfile.SYMTYPE:
            self._members[name] = clean_name(posixpath.join(posixpath.dirname(name), header.linkname))
        elif header.type == tarfile.LNKTYPE and (target := self.find(header.linkname)) is not None:
            self._members[name] = (
                target  # what it is now: tar may give a file twice, the second time as a link to itself
            )
        else:
            self._members.pop(name, None)  # a directory, or what no tool puts into such an archive
        if len(self._members) > MEMBERS_MAX:
            raise FormatError(f"more than {MEMBERS_MAX} files")


@asynccontextmanager
async def open_archive(path: Path, scratch: Path | None) -> AsyncIterator[ArchiveFile]:
    """The archive at `path`; a compressed one is made plain in the directory `scratch`.

    Raises:
        NotFound: there is no such file.
        FormatError: it is no archive.
        StoreFull: it does not fit into `scratch`.
    """
    with open_file(path) as file:
        if not await trio.to_thread.run_sync(_is_compressed, path, file):
            yield await trio.to_thread.run_sync(ArchiveFile, path, file)
            return
        scratch = scratch or Path(tempfile.gettempdir())
        with disk_errors(scratch):
            plain = tempfile.TemporaryFile(dir=scratch)  # noqa: SIM115 (closed by the block below)
        with plain:
            await trio.to_thread.run_sync(_inflate, path, file, plain, scratch)
            yield await trio.to_thread.run_sync(ArchiveFile, path, plain)


def _is_compressed(path: Path, file: BinaryIO) -> bool:
    with disk_errors(path):
        start = file.read(6)
    for magic, unknown in _COMPRESSED.items():
        if start.startswith(magic):
            if unknown:
                raise FormatError(f"{path} is compressed by {unknown}; decompress it first, or use gzip or zstd")
            return True
    return False


def _inflate(path: Path, file: BinaryIO, plain: BinaryIO, scratch: Path) -> None:
    try:
        with disk_errors(scratch):
            copy_plain(file, plain, lambda _size: trio.from_thread.check_cancelled())
            plain.flush()
    except FormatError as fault:
        raise FormatError(f"{path} is damaged or cut off: {fault}") from None
