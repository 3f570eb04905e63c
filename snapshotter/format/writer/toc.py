"""The TOC of a blob while it is written: entries in, one JSON document out.

A line of JSON per entry, no indentation: readers hash the bytes as they are, and a TOC is fetched before anything else.

Source: estargz.md of the eStargz specification, "TOC"; encoding/json of Go for what its reader accepts; containers/storage
pkg/chunked/internal/minimal for what zstd:chunked adds.
"""

import base64
import json
from collections import deque
from datetime import UTC, datetime

import msgspec

from snapshotter.format.digest import Digest
from snapshotter.format.tar_entries import EntryType, TarEntry

from .options import Compression, WriterOptions

_NS = 1_000_000_000

_Row = dict[str, object]


class FileRow:
    """The rows of one regular file: the first describes it and its first chunk, one more for each further chunk.

    The digest of the whole is known before the blob offset of the last chunk is, as compression lags behind reading; and
    the other way round for a file of one chunk, whose digest is the chunk's.
    """

    __slots__ = ("_left", "_rows", "_toc", "done")

    def __init__(self, toc: "TocBuilder", fields: _Row, chunks: int) -> None:
        self._toc = toc
        self._rows = [fields]
        self._left = chunks
        self.done = False

    @property
    def rows(self) -> list[_Row]:
        """The rows as far as they are filled."""
        return self._rows

    def add_chunk(self, file_offset: int, size: int) -> int:
        """Announce the next chunk and return its ordinal."""
        if file_offset:
            name = self._rows[0]["name"]
            self._rows.append({"name": name, "type": "chunk", "chunkOffset": file_offset})
        # A reader takes a missing size as "up to the end of the file", so a short last chunk needs none; containers/storage
        # finds no chunk of another layer without it.
        if size == self._toc.chunk_size or (file_offset and self._toc.ends):
            self._rows[-1]["chunkSize"] = size
        return len(self._rows) - 1

    def set_digest(self, digest: Digest) -> None:
        """Record the digest of the whole file."""
        self._rows[0]["digest"] = digest

    def place_chunk(self, ordinal: int, member: tuple[int, int], inner_offset: int, digest: Digest) -> None:
        """Record the chunk's member as the part of the blob that it is, where the chunk lies in it, and its digest."""
        row, first = self._rows[ordinal], self._rows[0]
        row["offset"] = member[0]
        if inner_offset:
            row["innerOffset"] = inner_offset
        row["chunkDigest"] = digest
        if self._toc.ends:
            row["endOffset"] = first["endOffset"] = member[1]
        self._left -= 1
        if not self._left:
            # Always the last key: whether it was known before or after the first chunk had its place is a matter of
            # timing, and the bytes of the TOC must not be.
            first["digest"] = first.pop("digest", digest)
            self.done = True
            self._toc.settle()


class TocBuilder:
    """Collects rows in the order of the tar and keeps them as JSON, so that a million files fit in memory."""

    def __init__(self, options: WriterOptions) -> None:
        self.chunk_size = options.chunk_size
        # containers/storage wants to know where a file's last member ends.
        self.ends = options.compression is Compression.ZSTD
        self._document = bytearray(b'{"version":1,"entries":[\n')
        self._waiting: deque[FileRow | bytes] = deque()
        self._count = 0
        self._users: dict[int, str] = {}
        self._groups: dict[int, str] = {}

    def add(self, entry: TarEntry) -> FileRow | None:
        """Add an entry; for a regular file with content the caller must fill the row it gets."""
        self._count += 1
        fields = self._fields(entry)
        if entry.type is EntryType.REG and entry.size:
            row = FileRow(self, fields, -(-entry.size // self.chunk_size))
            self._waiting.append(row)
            return row
        self._waiting.append(_encoded(fields))
        return None

    def settle(self) -> None:
        """Write what waits for nothing any more, up to the first file with a chunk that has no place yet."""
        waiting, document = self._waiting, self._document
        while waiting:
            first = waiting[0]
            if isinstance(first, bytes):
                document += first
            elif first.done:
                document += b"".join(map(_encoded, first.rows))
            else:
                break
            waiting.popleft()

    def finish(self, last: bytes = b"") -> bytearray:
        """Return the document; its sha256 is the layer's TOC digest. `last` stands behind the entries."""
        self.settle()
        # Each line ends with a comma; an array's last element must not.
        if self._count:
            del self._document[-2:]
        self._document += b"\n]" + last + b"}\n"
        return self._document

    def __len__(self) -> int:
        return self._count

    def _fields(self, entry: TarEntry) -> _Row:
        name = entry.name + "/" if entry.type is EntryType.DIR else entry.name
        fields: _Row = {"name": name if entry.name else "./", "type": entry.type.value}
        if entry.size:
            fields["size"] = entry.size
        fields["modtime"] = _rfc3339(entry.mtime_ns)
        optional = (
            ("linkName", entry.link_name),
            ("mode", entry.mode),
            ("uid", entry.uid),
            ("gid", entry.gid),
            ("userName", _if_news(self._users, entry.uid, entry.user_name)),
            ("groupName", _if_news(self._groups, entry.gid, entry.group_name)),
            ("devMajor", entry.device[0]),
            ("devMinor", entry.device[1]),
        )
        for key, value in optional:
            if value:
                fields[key] = value
        if entry.xattrs:
            fields["xattrs"] = {
                key: base64.b64encode(value).decode("ascii") for key, value in sorted(entry.xattrs.items())
            }
        return fields


def _encoded(row: _Row) -> bytes:
    """JSON; bytes of a name that are not UTF-8 stand in the string as they are, so that our readers get them back."""
    try:
        return msgspec.json.encode(row) + b",\n"
    except UnicodeEncodeError:
        line = json.dumps(row, ensure_ascii=False, separators=(",", ":")) + ",\n"
        return line.encode("utf-8", "surrogateescape")


def _if_news(known: dict[int, str], number: int, name: str) -> str:
    """`name`, if the last row with this id had another: a reader remembers it from there."""
    if not name or known.get(number) == name:
        return ""
    known[number] = name
    return name


def _rfc3339(mtime_ns: int) -> str:
    seconds, nanoseconds = divmod(mtime_ns, _NS)
    text = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    fraction = f".{nanoseconds:09}".rstrip("0") if nanoseconds else ""
    return f"{text}{fraction}Z"
