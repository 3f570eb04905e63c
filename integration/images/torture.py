"""An image in which every entry is something that a snapshotter can get wrong."""

import io
import random
import struct
import tarfile
from pathlib import Path

from integration.images.oci import Image, packed

CHUNK = 4 << 20
# Seconds and nanoseconds that neither rounding nor a 32-bit time survives unnoticed.
MTIME = 1_700_000_001.25
LONG_NAME = b"n" * 255
NOT_UTF8 = b"caf\xe9-\xff\xfe"
LONG_TARGET = b"/".join([b"t" * 254] * 16) + b"/" + b"t" * 15
ACL_ACCESS = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", tag, permissions, who)
    for tag, permissions, who in (
        (0x01, 7, 0xFFFFFFFF), (0x02, 5, 70_000), (0x04, 5, 0xFFFFFFFF), (0x10, 5, 0xFFFFFFFF), (0x20, 0, 0xFFFFFFFF)
    )
)  # fmt: skip
# cap_net_bind_service, effective and permitted. Source: capabilities(7), linux/capability.h, vfs_cap_data revision 2.
CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)
BINARY = bytes(range(1, 256))


def torture_image(folder: Path, news: bytes = b"", *, readable: bool = False) -> Image:
    """Three layers; the upper ones remove, hide and replace what the lowest has.

    With `news` it is the next version of the image: no blob is the same, but only one file is new. A `readable` one has
    no name that is not UTF-8: tools that write JSON with Go's encoder lose the bytes of such a name.
    """

    def lowest(tar: tarfile.TarFile) -> None:
        layer = _Layer(tar, readable=readable)
        # containerd makes the root itself and ignores a layer's entry for it.
        layer.folder(b"./", 0o711)
        if news:
            layer.file(b"news", news)
        _lowest(layer)

    def middle(tar: tarfile.TarFile) -> None:
        _middle(_Layer(tar, readable=readable))

    recipe = f"{Path(__file__).read_text()} {news.hex()} {readable}"
    return packed(folder, recipe, (lowest, middle, _top), {"Cmd": ["/none"]})


class _Layer:
    """Short words for tar entries."""

    def __init__(self, tar: tarfile.TarFile, *, readable: bool = False) -> None:
        self._tar = tar
        self._readable = readable

    def add(
        self,
        name: bytes,
        kind: bytes,
        *,
        mode: int = 0o644,
        owner: tuple[int, int] = (0, 0),
        mtime: float = MTIME,
        data: bytes = b"",
        target: bytes = b"",
        device: tuple[int, int] = (0, 0),
        xattrs: dict[str, bytes] | None = None,
    ) -> None:
        if self._readable and NOT_UTF8 in name:
            return
        info = tarfile.TarInfo(_text(name))
        info.type, info.mode, info.mtime, info.size = kind, mode, mtime, len(data)
        info.uid, info.gid = owner
        info.linkname = _text(target)
        info.devmajor, info.devminor = device
        info.pax_headers = {f"SCHILY.xattr.{key}": _text(value) for key, value in (xattrs or {}).items()}
        self._tar.addfile(info, io.BytesIO(data))

    def folder(self, name: bytes, mode: int = 0o755, *, xattrs: dict[str, bytes] | None = None) -> None:
        self.add(name, tarfile.DIRTYPE, mode=mode, xattrs=xattrs)

    def file(self, name: bytes, data: bytes = b"content\n", mode: int = 0o644, **more: object) -> None:
        self.add(name, tarfile.REGTYPE, data=data, mode=mode, **more)  # type: ignore[arg-type]

    def link(self, name: bytes, target: bytes) -> None:
        self.add(name, tarfile.LNKTYPE, target=target)

    def whiteout(self, folder: bytes, name: bytes) -> None:
        self.file(folder + b"/.wh." + name, b"")

    def opaque(self, folder: bytes) -> None:
        self.file(folder + b"/.wh..wh..opq", b"")


def _lowest(layer: _Layer) -> None:
    _links_and_names(layer)
    _attributes(layer)
    _contents(layer)
    layer.folder(b"change")
    layer.file(b"change/file-then-folder", b"first a file\n")
    layer.folder(b"change/folder-then-file")
    layer.file(b"change/folder-then-file/inside", b"hidden later\n")
    layer.file(b"change/removed", b"gone\n")
    layer.file(b"change/kept", b"stays\n")
    layer.folder(b"change/removed-folder")
    layer.file(b"change/removed-folder/inside")
    layer.folder(b"change/opaque")
    layer.file(b"change/opaque/hidden")
    layer.folder(b"change/opaque/hidden-folder")
    layer.file(b"change/opaque/hidden-folder/inside")
    layer.folder(b"change/mode", 0o700)
    layer.file(b"change/linked-1", b"linked and replaced\n")
    layer.link(b"change/linked-2", b"change/linked-1")


def _links_and_names(layer: _Layer) -> None:
    layer.folder(b"links")
    layer.folder(b"links/a")
    layer.folder(b"links/b")
    layer.file(b"links/a/original", b"one inode, three names\n")
    layer.link(b"links/b/second", b"links/a/original")
    layer.link(b"third", b"links/a/original")
    layer.file(b"links/a/empty", b"")
    layer.link(b"links/b/empty", b"links/a/empty")
    for name, target in ((b"relative", b"a/original"), (b"dangling", b"/no/such/thing"), (b"longest", LONG_TARGET)):
        layer.add(b"links/" + name, tarfile.SYMTYPE, mode=0o777, target=target)
    layer.folder(b"names")
    for name in (
        LONG_NAME,
        NOT_UTF8,
        b"with space",
        b"new\nline",
        b"back\\slash",
        b"colon:comma,",
        b".hidden",
        b"-dash",
    ):
        layer.file(b"names/" + name, b"named " + name)
    layer.folder(b"names/" + b"d" * 255)
    layer.file(b"names/" + b"d" * 255 + b"/" + LONG_NAME)
    layer.folder(b"names/" + b"many")
    for number in range(600):
        layer.file(b"names/many/%04d" % number, b"%d" % number)


def _attributes(layer: _Layer) -> None:
    layer.folder(b"modes")
    for mode in (0o000, 0o111, 0o4755, 0o2755, 0o6711, 0o1644, 0o7777):
        layer.file(b"modes/%04o" % mode, b"mode", mode)
    layer.folder(b"modes/sticky", 0o1777)
    layer.folder(b"modes/closed", 0o000)
    layer.folder(b"modes/setgid", 0o2775)
    layer.folder(b"owners")
    for owner in (65_535, 65_536, 70_000, 2_000_000_000):
        layer.file(b"owners/%d" % owner, owner=(owner, owner + 1))
    layer.folder(b"kinds")
    layer.add(b"kinds/fifo", tarfile.FIFOTYPE, mode=0o600)
    layer.add(b"kinds/null", tarfile.CHRTYPE, mode=0o666, device=(1, 3))
    layer.add(b"kinds/block", tarfile.BLKTYPE, mode=0o660, device=(7, 300), owner=(0, 6))
    layer.folder(b"times")
    for name, when in ((b"epoch", 0.0), (b"late", 4_200_000_000.0), (b"fraction", 1_600_000_000.75)):
        layer.file(b"times/" + name, mtime=when)
    layer.folder(b"attributes", xattrs={"user.on-folder": b"yes"})
    # Empty, since unpacking would let its contents inherit from it.
    layer.folder(b"attributes/default-acl", xattrs={"system.posix_acl_default": ACL_ACCESS})
    layer.file(b"attributes/user", xattrs={"user.text": b"text", "user.binary": BINARY, "user.empty": b""})
    layer.file(b"attributes/acl", mode=0o750, xattrs={"system.posix_acl_access": ACL_ACCESS})
    layer.file(b"attributes/capability", mode=0o755, xattrs={"security.capability": CAPABILITY})
    layer.file(
        b"attributes/trusted", xattrs={"trusted.vanishes": b"x", "trusted.overlay.metacopy": b"", "user.stays": b"y"}
    )


def _contents(layer: _Layer) -> None:
    layer.folder(b"contents")
    source = random.Random(20_01)
    layer.file(b"contents/empty", b"")
    layer.file(b"contents/one", b"1")
    layer.file(b"contents/exactly-a-chunk", source.randbytes(CHUNK))
    layer.file(b"contents/chunk-and-one", source.randbytes(CHUNK + 1))
    layer.file(b"contents/chunks", source.randbytes(2 * CHUNK + 12_345))
    layer.file(b"contents/zeros", bytes(CHUNK + 4096))
    layer.file(b"contents/hole", source.randbytes(10) + bytes(3 * CHUNK) + source.randbytes(10))
    layer.file(b"contents/twice-1", b"the same bytes\n" * 1000)
    layer.file(b"contents/twice-2", b"the same bytes\n" * 1000, 0o600)


def _middle(layer: _Layer) -> None:
    layer.folder(b"change")
    layer.whiteout(b"change", b"removed")
    layer.whiteout(b"change", b"removed-folder")
    layer.folder(b"change/file-then-folder")
    layer.file(b"change/file-then-folder/inside", b"now a folder\n")
    layer.file(b"change/folder-then-file", b"now a file\n")
    layer.folder(b"change/opaque")
    layer.opaque(b"change/opaque")
    layer.file(b"change/opaque/shown", b"alone\n")
    layer.folder(b"change/mode", 0o2711)
    layer.file(b"change/linked-1", b"replaced, no longer linked\n")
    layer.folder(b"names")
    layer.whiteout(b"names", NOT_UTF8)


def _top(tar: tarfile.TarFile) -> None:
    layer = _Layer(tar)
    layer.folder(b"change")
    layer.file(b"change/file-then-folder", b"a file again\n")
    layer.folder(b"change/folder-then-file")
    layer.file(b"change/folder-then-file/new", b"a folder again\n")
    layer.folder(b"change/removed-folder")
    layer.file(b"change/removed-folder/new", b"made again\n")
    layer.folder(b"change/opaque")
    layer.file(b"change/opaque/hidden", b"back, and new\n")


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")
