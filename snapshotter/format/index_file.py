"""An index file as such: its header, and the map through which its tables are read."""

import mmap
import os
import zlib
from pathlib import Path
from typing import Self

from snapshotter.errors import FormatError

from . import layout
from .codec import Codec
from .digest import Digest, from_raw
from .layout import HEADER, HEADER_SIZE, INDEX_REVISION, WORD


class IndexFile:
    """What the header of an index says, and where in the map each table begins."""

    __slots__ = (
        "_buffer",
        "_chunk_count",
        "_chunks",
        "_digest_count",
        "_digests",
        "_dirents",
        "_members",
        "_names",
        "_nodes",
        "_order",
        "_text",
        "_xattrs",
        "_xdata",
        "blob_size",
        "codec",
        "content_size",
        "entry_count",
        "layer_digest",
        "member_count",
        "node_count",
        "payload_end",
        "prefetch_end",
        "toc_digest",
        "verified",
    )

    _nodes: int
    codec: Codec
    layer_digest: Digest
    toc_digest: Digest
    """sha256 of the TOC's JSON."""
    blob_size: int
    payload_end: int
    content_size: int
    """Bytes of all regular files, each inode once."""
    node_count: int
    entry_count: int
    """Names in the tree; the root has none."""
    member_count: int
    prefetch_end: int | None
    """Blob offset of the prefetch landmark; 0 for the landmark that forbids prefetching; None without either."""
    verified: bool
    """Whether every chunk has a digest."""

    def __init__(self, buffer: "bytes | mmap.mmap", name: str) -> None:
        """Read the header of an index held in `buffer`; `name` is for messages.

        Raises:
            FormatError: not an index of this revision, or torn.
        """
        if len(buffer) < HEADER_SIZE:
            raise FormatError(f"index {name} has {len(buffer)} bytes and no whole header; build it again")
        head = buffer[: HEADER.size]
        fields = HEADER.unpack(head)
        if fields[0] != layout.MAGIC or zlib.crc32(head) != WORD.unpack_from(buffer, HEADER.size)[0]:
            raise FormatError(f"{name} is not an index, or its header is damaged; build it again")
        if fields[1] != INDEX_REVISION:
            raise FormatError(f"index {name} is of revision {fields[1]}, not {INDEX_REVISION}; build it again")
        if fields[5] != len(buffer):
            raise FormatError(f"index {name} has {len(buffer)} bytes instead of {fields[5]}; build it again")
        self._buffer = buffer
        self.verified = bool(fields[2] & layout.FLAG_VERIFIED)
        self.codec = layout.CODECS[fields[3]]
        self.blob_size, self.payload_end, self.content_size = fields[6:9]
        self.layer_digest, self.toc_digest = from_raw(fields[9]), from_raw(fields[10])
        self.prefetch_end = None if fields[11] < 0 else fields[11]
        (
            (self._nodes, self.node_count),
            (self._dirents, self.entry_count),
            (self._names, _),
            (self._text, _),
            (self._chunks, self._chunk_count),
            (self._members, self.member_count),
            (self._order, _),
            (self._digests, self._digest_count),
            (self._xattrs, _),
            (self._xdata, _),
        ) = zip(fields[12::2], fields[13::2], strict=True)

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, check: bool = False) -> Self:
        """Map the index file at `path`.

        With `check` the whole body is read and compared with its CRC-32 (1 ms per MB): for use after an unclean boot.

        Raises:
            FormatError: not an index of this revision, or torn.
            OSError: the file cannot be read.
        """
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.fstat(fd).st_size
            buffer = mmap.mmap(fd, size, prot=mmap.PROT_READ) if size else b""
        finally:
            os.close(fd)
        try:
            index = cls(buffer, str(Path(path)))
            if check:
                index._check_body(str(Path(path)))
        except FormatError:
            if isinstance(buffer, mmap.mmap):
                buffer.close()
            raise
        return index

    def _check_body(self, name: str) -> None:
        expected = HEADER.unpack_from(self._buffer)[4]
        with memoryview(self._buffer) as view, view[HEADER_SIZE:] as body:
            if zlib.crc32(body) != expected:
                raise FormatError(f"the body of index {name} is damaged; build it again")

    def close(self) -> None:
        """Unmap the file; no method may be called afterwards."""
        if isinstance(self._buffer, mmap.mmap):
            self._buffer.close()
