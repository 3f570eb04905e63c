"""tar-split: a layer's tar without the contents of its files, from which containers/storage puts the tar together again.

After a partial pull it hashes that tar and compares it with the image's DiffID, so without this it pulls whole layers.
A line of JSON for each piece of the stream, compressed: a segment (type 2) holds bytes, a file (type 1) the name, size
and CRC-64 of a content. A segment holds the padding behind one file and the whole header of the next.

Source: github.com/vbatts/tar-split, tar/asm and tar/storage; containers/storage pkg/chunked, `ensureTOCMatchesTarSplit`.
"""

import base64
import struct

import msgspec
from fastcrc import crc64

from snapshotter.format.tar_entries import EntryType, TarEntry
from snapshotter.format.tar_headers import TYPEFLAGS
from snapshotter.format.tar_reading import BLOCK
from snapshotter.format.zstd import zstd

_FILE, _SEGMENT = 1, 2
_PIECE = 256 << 10

_NS = 1_000_000_000

# name 100, mode 8, uid 8, gid 8, size 12, mtime 12, checksum 8, type 1, link 100, magic and version 8,
# user and group 64, device numbers 16, prefix 155, and 12 bytes that are zeros but in the format of star: 512
_HEADER = struct.Struct("<100s8s8s8s12s12s8xc100s8s64x8s8s155s12s")
_USTAR = b"ustar\x0000"
_GNU = b"ustar  \0"


def is_plain_header(header: bytes, entry: TarEntry) -> bool:
    """Whether a header says what the TOC says of `entry`, to the letter, and nothing else.

    containers/storage refuses a layer whose headers and TOC differ in a name's spelling or in a time that the TOC does
    not have. Any doubt is a no: the header is then written anew, which says the same.
    """
    if len(header) != BLOCK:
        return False
    name, mode, uid, gid, size, mtime, kind, link, magic, major, minor, prefix, rest = _HEADER.unpack(header)
    if magic == _GNU:
        if any(prefix):
            return False
    elif magic != _USTAR:
        return False
    path = name.rstrip(b"\0")
    if prefix[0]:
        path = prefix.rstrip(b"\0") + b"/" + path
    try:
        numbers = tuple(int(field.rstrip(b"\0 ") or b"0", 8) for field in (mode, uid, gid, size, mtime, major, minor))
    except ValueError:
        return False
    expected = (entry.mode, entry.uid, entry.gid, entry.size, entry.mtime_ns // _NS, *entry.device)
    return (
        numbers == expected
        and path == header_name(entry)
        and link.rstrip(b"\0") == entry.link_name.encode("utf-8", "surrogateescape")
        and kind == TYPEFLAGS[entry.type]
        and not any(rest)
        and entry.mtime_ns % _NS == 0
    )


def header_name(entry: TarEntry) -> bytes:
    """The name of `entry` as a header that we write has it."""
    name = entry.name.encode("utf-8", "surrogateescape") or b"."
    return name + b"/" if entry.type is EntryType.DIR else name


class TarSplit:
    """Collects the pieces of one tar as they come, and keeps them compressed."""

    def __init__(self, level: int) -> None:
        self._compressor = zstd.ZstdCompressor(level=level)
        self._packed: list[bytes] = []
        self._lines: list[bytes] = []
        self._waiting = 0
        self._position = 0
        self._raw = b""
        self._name = b""
        self._size = self._crc = 0
        self.raw_size = 0

    def header(self, entry: TarEntry, raw: bytes) -> None:
        """An entry begins; `raw` are its header blocks."""
        self._segment(self._raw + raw)
        self._raw = b""
        self._name, self._size, self._crc = header_name(entry), entry.size, 0
        if not entry.size:
            self._file(b"")

    def content(self, piece: bytes) -> None:
        """The next bytes of the entry's content."""
        self._crc = crc64.go_iso(piece, self._crc)

    def end_of_content(self, padding: bytes) -> None:
        """The content is complete, and followed by `padding`."""
        self._file(self._crc.to_bytes(8, "big"))
        self._raw = padding

    def finish(self, end: bytes) -> bytes:
        """The archive ends with `end`; return everything, compressed."""
        self._segment(self._raw + end)
        self._pack()
        self._packed.append(self._compressor.flush())
        return b"".join(self._packed)

    def _segment(self, raw: bytes) -> None:
        self._line({"type": _SEGMENT, "payload": base64.b64encode(raw).decode("ascii"), "position": self._position})

    def _file(self, crc: bytes) -> None:
        line: dict[str, object] = {"type": _FILE}
        try:
            line["name"] = self._name.decode("utf-8")
        except UnicodeDecodeError:
            line["name_raw"] = base64.b64encode(self._name).decode("ascii")
        if self._size:
            line["size"] = self._size
        line["payload"] = base64.b64encode(crc).decode("ascii") if crc else None
        line["position"] = self._position
        self._line(line)

    def _line(self, fields: dict[str, object]) -> None:
        line = msgspec.json.encode(fields) + b"\n"
        self._lines.append(line)
        self._position += 1
        self._waiting += len(line)
        self.raw_size += len(line)
        if self._waiting >= _PIECE:
            self._pack()

    def _pack(self) -> None:
        self._packed.append(self._compressor.compress(b"".join(self._lines)))
        self._lines.clear()
        self._waiting = 0
