"""The TOC of a blob while it is written: entries in, one JSON document out.

A line of JSON per entry, no indentation: readers hash the bytes as they are, and a TOC is fetched before anything else.

Source: estargz.md of the eStargz specification, "TOC"; encoding/json of Go for what its reader accepts.
"""

import base64
import json
from datetime import UTC, datetime

from snapshotter.format.digest import Digest
from snapshotter.format.tar_entries import EntryType, TarEntry

_NS = 1_000_000_000


class FileRow:
    """The rows of one regular file: the first describes it and its first chunk, one more for each further chunk.

    The digest of the whole is known before the blob offset of the last chunk is, as compression lags behind reading.
    """

    __slots__ = ("_place", "_rows", "_toc", "_waiting")

    def __init__(self, toc: "TocBuilder", place: int, fields: dict[str, object]) -> None:
        self._toc = toc
        self._place = place
        self._rows = [fields]
        self._waiting = 0

    def add_chunk(self, file_offset: int, size: int, *, whole: bool) -> int:
        """Announce the next chunk and return its ordinal; `whole`: it is as long as chunks of this blob are."""
        if file_offset:
            name = self._rows[0]["name"]
            self._rows.append({"name": name, "type": "chunk", "chunkOffset": file_offset})
        # A reader takes a missing size as "up to the end of the file", so a short last chunk needs none.
        if whole:
            self._rows[-1]["chunkSize"] = size
        self._waiting += 1
        return len(self._rows) - 1

    def set_digest(self, digest: Digest) -> None:
        """Record the digest of the whole file."""
        self._rows[0]["digest"] = digest

    def place_chunk(self, ordinal: int, blob_offset: int, digest: Digest) -> None:
        """Record where the member of a chunk begins and what the chunk's plain bytes hash to."""
        row = self._rows[ordinal]
        row["offset"] = blob_offset
        row["chunkDigest"] = digest
        self._waiting -= 1
        if not self._waiting and "digest" in self._rows[0]:
            self._toc.settle(self._place, self._rows)


class TocBuilder:
    """Collects rows in the order of the tar and keeps them as JSON, so that a million files fit in memory."""

    def __init__(self) -> None:
        self._lines: list[bytes] = []
        self._users: dict[int, str] = {}
        self._groups: dict[int, str] = {}

    def add(self, entry: TarEntry) -> FileRow | None:
        """Add an entry; for a regular file with content the caller must fill the row it gets."""
        fields = self._fields(entry)
        place = len(self._lines)
        self._lines.append(b"")
        if entry.type is EntryType.REG and entry.size:
            return FileRow(self, place, fields)
        self.settle(place, [fields])
        return None

    def settle(self, place: int, rows: list[dict[str, object]]) -> None:
        """Keep the finished rows of the entry that was added as number `place`."""
        self._lines[place] = b",\n".join(_encoded(row) for row in rows)

    def finish(self) -> bytes:
        """Return the document; its sha256 is the layer's TOC digest."""
        return b'{"version":1,"entries":[\n' + b",\n".join(self._lines) + b"\n]}\n"

    def __len__(self) -> int:
        return len(self._lines)

    def _fields(self, entry: TarEntry) -> dict[str, object]:
        name = entry.name + "/" if entry.type is EntryType.DIR else entry.name
        fields: dict[str, object] = {"name": name if entry.name else "./", "type": entry.type.value}
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
        fields.update((key, value) for key, value in optional if value)
        if entry.xattrs:
            fields["xattrs"] = {
                key: base64.b64encode(value).decode("ascii") for key, value in sorted(entry.xattrs.items())
            }
        return fields


def _encoded(row: dict[str, object]) -> bytes:
    """JSON; bytes of a name that are not UTF-8 stand in the string as they are, so that our readers get them back."""
    return json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogateescape")


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
