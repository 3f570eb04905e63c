"""A small builder of lazily pullable layers in every dialect, for tests of all rooms.

    built = layer(dir("a/"), file("a/b", b"data", mode=0o600), symlink("l", "a/b"), prefetch=["a/b"])
    built.blob, built.toc_json, built.annotations, built.tar, built.index()

It shares no code with the production writer, so that the two check each other.
"""

import base64
import gzip
import hashlib
import json
import struct
import tarfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from snapshotter.format.codec import Codec
from snapshotter.format.digest import Digest
from snapshotter.format.footer import Flavor
from snapshotter.format.index import BuildOptions, Index
from snapshotter.format.index_build import build_index
from snapshotter.format.zstd import zstd

MTIME = 1_700_000_000
LANDMARK = b"\x0f"

_TYPES = {
    "dir": tarfile.DIRTYPE,
    "reg": tarfile.REGTYPE,
    "symlink": tarfile.SYMTYPE,
    "hardlink": tarfile.LNKTYPE,
    "char": tarfile.CHRTYPE,
    "block": tarfile.BLKTYPE,
    "fifo": tarfile.FIFOTYPE,
}


def sha256(data: bytes) -> Digest:
    """The digest of some bytes."""
    return Digest("sha256:" + hashlib.sha256(data).hexdigest())


@dataclass(frozen=True)
class Entry:
    """One tar entry. Bytes of a name that are not UTF-8 are surrogate escapes."""

    type: str
    name: str
    data: bytes = b""
    target: str = ""
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime: float = MTIME
    device: tuple[int, int] = (0, 0)
    xattrs: Mapping[str, bytes] = field(default_factory=dict)


def dir(name: str, *, mode: int = 0o755, **more: Any) -> Entry:  # noqa: A001 (the tests' word)
    """A directory; its name may end with a slash."""
    return Entry("dir", name.rstrip("/") + "/", mode=mode, **more)


def file(name: str, data: bytes = b"", **more: Any) -> Entry:
    """A regular file."""
    return Entry("reg", name, data=data, **more)


def symlink(name: str, target: str, **more: Any) -> Entry:
    """A symbolic link."""
    return Entry("symlink", name, target=target, **{"mode": 0o777, **more})


def hardlink(name: str, target: str, **more: Any) -> Entry:
    """A hard link. Unpacking gives its attributes to the target, so repeat them if they matter."""
    return Entry("hardlink", name, target=target, **more)


def whiteout(name: str) -> Entry:
    """The mark that hides `name` of lower layers."""
    head, _, base = name.rpartition("/")
    return Entry("reg", f"{head}/.wh.{base}" if head else f".wh.{base}")


def opaque(directory: str) -> Entry:
    """The mark that hides all that lower layers have in `directory`."""
    return Entry("reg", f"{directory.rstrip('/')}/.wh..wh..opq" if directory else ".wh..wh..opq")


def char(name: str, major: int, minor: int, **more: Any) -> Entry:
    """A character device."""
    return Entry("char", name, device=(major, minor), **more)


def block(name: str, major: int, minor: int, **more: Any) -> Entry:
    """A block device."""
    return Entry("block", name, device=(major, minor), **more)


def fifo(name: str, **more: Any) -> Entry:
    """A named pipe."""
    return Entry("fifo", name, **more)


@dataclass(frozen=True)
class BuiltLayer:
    """A layer as a registry would serve it, and what its maker knows of it."""

    flavor: Flavor
    codec: Codec
    blob: bytes
    digest: Digest
    toc_json: bytes
    toc_digest: Digest
    payload_end: int
    tar: bytes
    diff_id: Digest
    media_type: str
    annotations: dict[str, str]
    external_toc: bytes
    files: dict[str, bytes]

    @property
    def size(self) -> int:
        """Bytes of the blob."""
        return len(self.blob)

    def options(self, *, allow_unverified: bool = False) -> BuildOptions:
        """What `build_index` needs besides the TOC."""
        return BuildOptions(self.codec, len(self.blob), self.payload_end, self.digest, allow_unverified)

    def index_bytes(self, *, allow_unverified: bool = False) -> bytes:
        """The content of the layer's index file."""
        return build_index(self.toc_json, self.options(allow_unverified=allow_unverified))

    def index(self, *, allow_unverified: bool = False) -> Index:
        """The layer's index, in memory."""
        return Index(self.index_bytes(allow_unverified=allow_unverified), "of a test")

    def node(self, path: str, index: Index | None = None) -> int:
        """The node of `path`; KeyError if it is not there."""
        tree = index or self.index(allow_unverified=True)
        node: int | None = 0
        for part in path.strip("/").encode("utf-8", "surrogateescape").split(b"/"):
            node = None if node is None else tree.lookup(node, part)
        if node is None:
            raise KeyError(path)
        return node


class _Members:
    """Writes tar bytes as members; a new one begins where `position` cuts."""

    def __init__(self, codec: Codec, level: int, share: int) -> None:
        self._codec = codec
        self._level = level
        self._share = share
        self._plain = bytearray()
        self.blob = bytearray()
        self.tar = bytearray()

    def write(self, data: bytes) -> None:
        self._plain += data
        self.tar += data

    def cut(self) -> None:
        if self._plain:
            self.blob += compress(self._codec, bytes(self._plain), self._level)
            self._plain.clear()

    def position(self, *, alone: bool) -> tuple[int, int]:
        """Blob offset and inner offset of what is written next."""
        if alone or len(self._plain) >= self._share:
            self.cut()
        return len(self.blob), len(self._plain)


def compress(codec: Codec, data: bytes, level: int = 1) -> bytes:
    """One gzip member or zstd frame."""
    return gzip.compress(data, level, mtime=0) if codec is Codec.GZIP else zstd.compress(data, level)


def layer(
    *entries: Entry,
    flavor: Flavor = Flavor.ESTARGZ,
    chunk_size: int = 4 << 20,
    prefetch: Iterable[str] | None = None,
    share: int = 0,
    level: int = 1,
    storage: bool = False,
    digests: str = "",
    edit: Callable[[dict[str, Any]], None] | None = None,
) -> BuiltLayer:
    """Build a layer.

    `prefetch` moves the named entries to the front and puts the landmark behind them (an empty list: the landmark that
    forbids prefetching; None: neither). `share` is how many plain bytes a member must hold before the next file begins
    a new one. `storage` takes the 64-byte dialect of zstd:chunked, with zero chunks and end offsets. `digests` is
    "all", "file" (no chunk digests) or "none"; legacy stargz has "none". `edit` may change the TOC before it is sealed.
    """
    codec = Codec.ZSTD if flavor is Flavor.ZSTD_CHUNKED else Codec.GZIP
    keep = digests or ("none" if flavor is Flavor.STARGZ else "all")
    ordered = _ordered(list(entries), prefetch)
    members = _Members(codec, level, share)
    rows: list[dict[str, Any]] = []
    for entry in ordered:
        rows += _write(members, entry, chunk_size, keep, storage=storage)
    toc: dict[str, Any] = {"version": 1, "entries": rows}
    if edit is not None:
        edit(toc)
    toc_json = json.dumps(toc, indent="\t", ensure_ascii=False).encode("utf-8", "surrogateescape")
    annotations: dict[str, str] = {"containerd.io/snapshot/stargz/toc.digest": sha256(toc_json)}
    payload_end, external = _finish(members, flavor, toc_json, annotations, level, storage=storage)
    annotations["io.containers.estargz.uncompressed-size"] = str(len(members.tar))
    blob, tar = bytes(members.blob), bytes(members.tar)
    return BuiltLayer(
        flavor=flavor,
        codec=codec,
        blob=blob,
        digest=sha256(blob),
        toc_json=toc_json,
        toc_digest=sha256(toc_json),
        payload_end=payload_end,
        tar=tar,
        diff_id=sha256(tar),
        media_type=f"application/vnd.oci.image.layer.v1.tar+{codec}",
        annotations=annotations,
        external_toc=external,
        files={entry.name: entry.data for entry in ordered if entry.type == "reg"},
    )


def _ordered(entries: list[Entry], prefetch: Iterable[str] | None) -> list[Entry]:
    if prefetch is None:
        return entries
    first = list(prefetch)
    if not first:
        return [file(".no.prefetch.landmark", LANDMARK), *entries]
    head = [entry for name in first for entry in entries if entry.name == name]
    return [*head, file(".prefetch.landmark", LANDMARK), *(entry for entry in entries if entry.name not in first)]


def _write(members: _Members, entry: Entry, chunk_size: int, keep: str, *, storage: bool) -> list[dict[str, Any]]:
    members.write(_header(entry))
    row = _row(entry)
    if not entry.data:
        return [row]
    if keep != "none":
        row["digest"] = sha256(entry.data)
    rows = []
    for start in range(0, len(entry.data), chunk_size):
        piece = entry.data[start : start + chunk_size]
        part = row if not start else {"name": entry.name, "type": "chunk", "chunkOffset": start}
        part["offset"], inner = members.position(alone=".landmark" in entry.name)
        if inner:
            part["innerOffset"] = inner
        if len(piece) < len(entry.data):
            part["chunkSize"] = len(piece)
        if keep == "all":
            part["chunkDigest"] = sha256(piece)
        if storage and len(entry.data) > chunk_size and not any(piece):
            part["chunkType"] = "zeros"
        members.write(piece)
        rows.append(part)
    if storage:
        members.cut()
        row["endOffset"] = len(members.blob)
    members.write(bytes(-len(entry.data) % 512))
    return rows


def _header(entry: Entry) -> bytes:
    info = tarfile.TarInfo(entry.name.rstrip("/") or "./")
    info.type = _TYPES[entry.type]
    info.size, info.mode, info.uid, info.gid = len(entry.data), entry.mode, entry.uid, entry.gid
    info.mtime = entry.mtime
    info.linkname = entry.target
    info.devmajor, info.devminor = entry.device
    info.pax_headers = {
        f"SCHILY.xattr.{name}": value.decode("utf-8", "surrogateescape") for name, value in entry.xattrs.items()
    }
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _row(entry: Entry) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": entry.name,
        "type": entry.type,
        "modtime": datetime.fromtimestamp(entry.mtime, UTC).isoformat().replace("+00:00", "Z"),
    }
    optional = {
        "size": len(entry.data),
        "linkName": entry.target,
        "mode": entry.mode,
        "uid": entry.uid,
        "gid": entry.gid,
        "devMajor": entry.device[0],
        "devMinor": entry.device[1],
        "xattrs": {name: base64.b64encode(value).decode() for name, value in entry.xattrs.items()},
    }
    return row | {key: value for key, value in optional.items() if value}


def toc_tar(toc_json: bytes) -> bytes:
    """The tar entry that holds a TOC."""
    info = tarfile.TarInfo("stargz.index.json")
    info.size = len(toc_json)
    return info.tobuf(tarfile.USTAR_FORMAT) + toc_json + bytes(-len(toc_json) % 512)


def gzip_footer(extra: bytes) -> bytes:
    """An empty gzip member with an extra field."""
    return b"\x1f\x8b\x08\x04\0\0\0\0\0\xff" + struct.pack("<H", len(extra)) + extra + b"\x01\0\0\xff\xff" + bytes(8)


def skippable(body: bytes) -> bytes:
    """A zstd skippable frame."""
    return b"\x50\x2a\x4d\x18" + struct.pack("<I", len(body)) + body


def _finish(
    members: _Members, flavor: Flavor, toc_json: bytes, annotations: dict[str, str], level: int, *, storage: bool
) -> tuple[int, bytes]:
    """Write TOC and footer; return where the payload ends, and the external TOC's blob."""
    if flavor is Flavor.ZSTD_CHUNKED:
        members.write(bytes(1024))
        members.cut()
        return _finish_zstd(members, toc_json, annotations, level, storage=storage), b""
    if flavor is Flavor.EXTERNAL:
        members.write(bytes(1024))
        members.cut()
        end = len(members.blob)
        members.blob += gzip_footer(b"SG\x11\0STARGZEXTERNALTOC")
        return end, gzip.compress(toc_tar(toc_json) + bytes(1024), level, mtime=0)
    members.cut()
    end = len(members.blob)
    members.write(toc_tar(toc_json) + bytes(1024))
    members.cut()
    digits = b"%016x" % end
    members.blob += gzip_footer(b"SG\x16\0" + digits + b"STARGZ" if flavor is Flavor.ESTARGZ else digits + b"STARGZ")
    return end, b""


def _finish_zstd(members: _Members, toc_json: bytes, annotations: dict[str, str], level: int, *, storage: bool) -> int:
    end = len(members.blob)
    packed = zstd.compress(toc_json, level)
    position = (end + 8, len(packed), len(toc_json), 1)
    prefix = "io.github.containers.zstd-chunked" if storage else "io.containers.zstd-chunked"
    annotations[f"{prefix}.manifest-checksum"] = sha256(packed)
    annotations[f"{prefix}.manifest-position"] = ":".join(map(str, position))
    members.blob += skippable(packed)
    if storage:
        split = zstd.compress(b'{"type":2}\n', level)
        split_at = len(members.blob) + 8
        annotations[f"{prefix}.tarsplit-position"] = f"{split_at}:{len(split)}:11"
        members.blob += skippable(split)
        members.blob += skippable(struct.pack("<7Q", *position, split_at, len(split), 11) + b"GNUlInUx")
    else:
        members.blob += skippable(struct.pack("<4Q", *position) + b"GnUlInUx")
    return end
