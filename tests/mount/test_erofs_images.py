"""Images of the EROFS writer, mounted: the kernel shows what the index says, of everything."""

import ctypes
import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapshotter.errors import PlaneError
from snapshotter.format.erofs import LargePath
from snapshotter.format.erofs_layout import BLOCK, CHECKSUM_AT
from snapshotter.format.index import FileIdentity, Index, Kind
from snapshotter.format.limits import FILE_SIZE, GIB
from snapshotter.plane.mounts import MS_RDONLY, detach, mount, mounts_on
from tests.doubles.layers import Entry, block, char, dir, fifo, file, hardlink, layer, opaque, symlink, whiteout
from tests.format.test_erofs import AFTER_ROOT, CASES, PLACE, accepted, each_case, index_of
from tests.mount.conftest import run

METACOPY, REDIRECT, OPAQUE = (b"trusted.overlay." + name for name in (b"metacopy", b"redirect", b"opaque"))
WHOLE = 1 << 20
"""Longer files are read at a few places only."""

Mounter = Callable[[bytes], AbstractContextManager[Path]]


def mount_file(source: Path, target: Path) -> None:
    """Mount an image by mount(2).

    A kernel before 6.12 takes no file, and none takes one on a tmpfs; mount(8) puts a loop device before it, which is
    gone with the mount.
    """
    try:
        mount(str(source), target, "erofs", MS_RDONLY, "")
    except PlaneError as refused:
        if os.strerror(errno.ENOTBLK) not in str(refused):
            raise
        run("mount", "-t", "erofs", "-o", "ro,loop", source, target)


@pytest.fixture(scope="module")
def mounted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounter]:
    """Mounts an image for the time of a `with`."""
    folder = tmp_path_factory.mktemp("erofs")
    source, top = folder / "image", folder / "top"
    top.mkdir()

    @contextmanager
    def mounting(image: bytes) -> Iterator[Path]:
        source.write_bytes(image)
        mount_file(source, top)
        try:
            yield top
        finally:
            detach(top)
            source.unlink()

    yield mounting
    while mounts_on(top):
        detach(top)


# --- the comparison


class Expected:
    """What an image must show: the index it was made from, and where contents were said to be."""

    def __init__(self, index: Index, place: bytes = PLACE, large: LargePath | None = None) -> None:
        self.index = index
        self.place = place
        self.large = large

    def xattrs(self, node: int) -> dict[bytes, bytes]:
        found = dict(self.index.xattrs(node))
        digest = self.index.digest(node)
        if digest:
            found |= {METACOPY: b"", REDIRECT: self.path(digest)}
        return found

    def path(self, digest: bytes) -> bytes:
        first = self.index.find(digest)
        assert first is not None
        if self.large is not None and self.index.chunk_count(first) > 1:
            return self.large(self.index.identity(first))
        return b"%b/%b/%b" % (self.place, digest[:1].hex().encode(), digest.hex().encode())

    def compare(self, top: Path) -> None:
        """Fail the test unless everything below `top` is as it must be."""
        fd = os.open(top, os.O_PATH)
        try:
            inodes: dict[int, int] = {}
            listings: list[tuple[list[tuple[bytes, int, int]], list[tuple[bytes, int]]]] = []
            # Through the descriptor, so that the path of the mount takes nothing of PATH_MAX.
            pending = [(0, b"/proc/self/fd/%d/." % fd)]
            while pending:
                node, path = pending.pop()
                number = self.compare_node(node, path)
                assert inodes.setdefault(node, number) == number
                if self.index.kind(node) is Kind.DIR:
                    below = [(name, child) for _, name, child in self.index.entries(node, 0)]
                    pending += ((child, path + b"/" + name) for name, child in below)
                    below += [(b".", node), (b"..", self.index.parent(node))]
                    listings.append((listing(path), below))
            assert len(inodes) == len(set(inodes.values())) == self.index.node_count
            for shown, below in listings:
                said = [(name, inodes[child], self.index.attributes(child).mode >> 12) for name, child in below]
                assert sorted(shown) == sorted(said)
        finally:
            os.close(fd)

    def compare_node(self, node: int, path: bytes) -> int:
        """Compare what one name shows; return the inode number."""
        said, shown = self.index.attributes(node), os.lstat(path)
        assert (shown.st_mode, shown.st_uid, shown.st_gid) == (said.mode, said.uid, said.gid), path
        assert (shown.st_mtime_ns, shown.st_nlink, shown.st_rdev) == (said.mtime_ns, said.nlink, said.rdev), path
        # A directory's size is that of its listing; the index has none.
        assert shown.st_size == said.size or (said.kind is Kind.DIR and shown.st_size > 0), path
        if said.kind is Kind.SYMLINK:
            assert os.readlink(path) == self.index.readlink(node)
        elif said.kind is Kind.REG:
            assert_zeros(path, said.size)
        expected = self.xattrs(node)
        assert sorted(listed(path)) == sorted(expected), path
        for name, value in expected.items():
            # Of links and devices the kernel shows no user attribute, whatever the file system has (xattr(7)).
            if said.kind in (Kind.REG, Kind.DIR) or not name.startswith(b"user."):
                assert os.getxattr(path, name, follow_symlinks=False) == value, (path, name)
        return shown.st_ino


class Dirent(ctypes.Structure):
    """Source: readdir(3), glibc for 64 bits."""

    _fields_ = (
        ("ino", ctypes.c_uint64), ("off", ctypes.c_int64), ("length", ctypes.c_uint16), ("kind", ctypes.c_uint8),
        ("name", ctypes.c_char * 256),
    )  # fmt: skip


LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.opendir.restype = ctypes.c_void_p
LIBC.readdir.restype = ctypes.POINTER(Dirent)


def listing(path: bytes) -> list[tuple[bytes, int, int]]:
    """(name, inode number, file type) as the directory itself has them: os.scandir looks most of it up."""
    stream = ctypes.c_void_p(LIBC.opendir(path))
    assert stream.value is not None, path
    found = []
    while entry := LIBC.readdir(stream):
        found.append((entry.contents.name, entry.contents.ino, entry.contents.kind))
    LIBC.closedir(stream)
    return found


def listed(path: bytes | Path) -> list[bytes]:
    return [os.fsencode(name) for name in os.listxattr(path, follow_symlinks=False)]


def assert_zeros(path: bytes, size: int) -> None:
    places = [(0, size)] if size <= WHOLE else [(0, 8192), (size // 2, 8192), (size - 8192, 8192)]
    with open(path, "rb", buffering=0) as body:
        for at, length in places:
            assert os.pread(body.fileno(), length, at) == bytes(length)
        assert os.pread(body.fileno(), 1, size) == b""


# --- layers of every kind


@each_case
def test_kernel_shows_what_the_index_says(case: str, mounted: Mounter) -> None:
    index = CASES[case]()
    with mounted(accepted(index)) as top:
        Expected(index).compare(top)


@pytest.mark.parametrize("length", [0, 1, 2, 3, 4, 500])
def test_content_is_looked_for_at_any_place(length: int, mounted: Mounter) -> None:
    """A path of every length modulo four: attributes are padded to that."""
    index, place = CASES["every-kind"](), b"/" * (length > 0) + b"p" * (length - 1)
    with mounted(accepted(index, place)) as top:
        Expected(index, place).compare(top)


def large(identity: FileIdentity) -> bytes:
    return b"/in-parts/" + hashlib.sha256(repr(identity).encode()).hexdigest()[:41].encode()


def test_files_of_several_chunks_are_looked_for_elsewhere(mounted: Mounter) -> None:
    names = {"many": 9 * 4096, "twin": 9 * 4096, "two": 4097, "one": 4096, "less": 1}
    index = index_of(*(file(name, xattrs={"user.a": b"1"}) for name in names), sizes=names, piece=4096)
    with mounted(accepted(index, PLACE, large)) as top:
        Expected(index, PLACE, large).compare(top)
        paths = {name: os.getxattr(top / name, REDIRECT) for name in names}
    assert {name for name in names if paths[name].startswith(b"/in-parts/")} == {"many", "twin", "two"}
    assert paths["many"] == paths["twin"] != paths["two"]


def test_equal_contents_are_looked_for_at_one_place_however_their_tocs_cut_them(mounted: Mounter) -> None:
    def join(toc: dict[str, Any]) -> None:
        toc["entries"] = [row for row in toc["entries"] if row.get("name") not in {"b", "c"} or "size" in row]
        for row in toc["entries"]:
            if row["name"] in {"b", "c"}:
                row.pop("chunkSize")
                row["chunkDigest"] = row["digest"]

    built = layer(
        *(file(name, data * 3000) for name, data in zip("abcd", (b"1", b"1", b"2", b"2"), strict=True)),
        chunk_size=1000,
        edit=join,
    )
    index = built.index()
    with mounted(accepted(index, PLACE, large)) as top:
        Expected(index, PLACE, large).compare(top)
        paths = [os.getxattr(top / name, REDIRECT) for name in "abcd"]
    assert paths[0] == paths[1] != paths[2] == paths[3]


@pytest.mark.parametrize("size", range(BLOCK - AFTER_ROOT - 1, BLOCK - AFTER_ROOT + 3))
def test_link_whose_text_ends_with_its_block_is_shown(size: int, mounted: Mounter) -> None:
    index = index_of(symlink("l", "t" * size))
    with mounted(accepted(index)) as top:
        Expected(index).compare(top)


# --- what the comparison must not get wrong


def test_content_has_metacopy_and_redirect_and_nothing_else_has(mounted: Mounter) -> None:
    name = hashlib.sha256(b"content").hexdigest()
    index = index_of(
        file("full", b"content"), hardlink("again", "full"), file("empty"), symlink("link", "full"), dir("dir"),
        fifo("pipe"), char("char", 1, 3), whiteout("gone"),
    )  # fmt: skip
    with mounted(accepted(index, b"/3")) as top:
        for full in (top / "full", top / "again"):
            assert sorted(listed(full)) == [METACOPY, REDIRECT]
            assert os.getxattr(full, METACOPY) == b""
            assert os.getxattr(full, REDIRECT) == f"/3/{name[:2]}/{name}".encode()
            assert full.read_bytes() == bytes(len("content"))
        assert not any(listed(top / other) for other in ("empty", "link", "dir", "pipe", "char", "gone", "."))


def test_hard_links_are_one_inode_with_its_count(mounted: Mounter) -> None:
    index = index_of(file("a", b"a"), hardlink("b/c", "a"), hardlink("d", "b/c"), file("other", b"a"))
    with mounted(accepted(index)) as top:
        shown = [os.stat(top / name) for name in ("a", "b/c", "d")]
        assert {entry.st_nlink for entry in shown} == {3}
        assert len({entry.st_ino for entry in shown}) == 1
        assert os.stat(top / "other").st_ino != shown[0].st_ino


def test_whiteouts_are_character_devices_without_number(mounted: Mounter) -> None:
    with mounted(accepted(index_of(whiteout("gone"), dir("kept"), opaque("kept"), dir("plain")))) as top:
        shown = os.lstat(top / "gone")
        assert (stat.S_IFMT(shown.st_mode), shown.st_rdev) == (stat.S_IFCHR, 0)
        assert os.getxattr(top / "kept", OPAQUE) == b"y"
        assert listed(top / "plain") == []


def test_trusted_attributes_of_a_toc_are_not_shown(mounted: Mounter) -> None:
    with mounted(accepted(CASES["trusted"]())) as top:
        shown = {name: sorted(listed(top / name)) for name in os.listdir(top)}
        assert shown == {
            "file": [METACOPY, REDIRECT], "empty": [b"user.kept"], "directory": [], "link": [], "pipe": [], "char": [],
            "really-opaque": [OPAQUE, b"user.kept"], "userspace": [b"user.overlay.opaque"],
        }  # fmt: skip
        assert os.getxattr(top / "really-opaque", OPAQUE) == b"y"
        assert os.getxattr(top / "file", REDIRECT).startswith(PLACE + b"/ed/ed7002b4")


def test_names_that_are_not_there_are_not_found(mounted: Mounter) -> None:
    with mounted(accepted(CASES["directories"]())) as top:
        there = set(os.listdir(top / "many"))
        wanted = {word for name in list(there)[::7] for word in (name[:-1], f"{name}0", f"{name} ", name.upper())}
        for name in {"!", "-", "name", "name-", "zzz", "n" * 255, "\udcff", *wanted} - there:
            assert not os.path.lexists(top / "many" / name), name


def test_end_of_a_file_of_four_tebibytes_is_zeros(mounted: Mounter) -> None:
    with mounted(accepted(index_of(file("f"), sizes={"f": FILE_SIZE}))) as top, open(top / "f", "rb") as body:
        assert body.seek(-10, os.SEEK_END) == FILE_SIZE - 10
        assert body.read() == bytes(10)
        assert os.fstat(body.fileno()).st_size == 4 << 40


def test_kernel_refuses_a_damaged_superblock(mounted: Mounter) -> None:
    image = bytearray(accepted(CASES["every-kind"]()))
    image[CHECKSUM_AT] ^= 1
    with pytest.raises((PlaneError, AssertionError)), mounted(bytes(image)):
        pass


# --- random layers

ids = st.sampled_from([0, 1, 1000, 65_535, 65_536, (1 << 32) - 2])
values = st.binary(max_size=20) | st.sampled_from([0, 900, 1024, 1025, 4096, 65_535]).map(lambda size: b"v" * size)
attribute_names = st.one_of(
    st.sampled_from(["user.a", "user.b", "security.a", "trusted.a", "trusted.overlay.redirect", "user.overlay.opaque"]),
    st.integers(1, 250).map(lambda length: "user." + "n" * length),
)
attributes = st.fixed_dictionaries(
    {"uid": ids, "gid": ids},
    optional={"mode": st.integers(0, 0o7777), "xattrs": st.dictionaries(attribute_names, values, max_size=5)},
)
raw_names = st.one_of(
    st.sampled_from([b"a", b"b", b"!", b"-a", b"..a", b"\xff\xfe", b"n" * 251]),
    st.binary(min_size=1, max_size=251).map(lambda raw: raw.replace(b"/", b"_").replace(b"\0", b"0")),
).filter(lambda raw: raw not in {b".", b".."} and not raw.startswith(b".wh."))
names = raw_names.map(lambda raw: raw.decode("utf-8", "surrogateescape"))
texts = st.integers(1, 4095).map(lambda size: "t" * size) | st.sampled_from(["a", "../\udcff"])
majors, minors = st.integers(0, 4095), st.integers(0, (1 << 20) - 1)
entries = st.one_of(
    st.builds(lambda name, more: dir(name, **more), names, attributes),
    st.builds(lambda name, more: file(name, **more), names, attributes),
    st.builds(lambda name, text, more: symlink(name, text, **more), names, texts, attributes),
    st.builds(lambda name, more: hardlink(name, "", **more), names, attributes),
    st.builds(lambda name, major, minor, more: char(name, major, minor, **more), names, majors, minors, attributes),
    st.builds(lambda name, major, minor, more: block(name, major, minor, **more), names, majors, minors, attributes),
    st.builds(lambda name, more: fifo(name, **more), names, attributes),
    st.builds(whiteout, names),
    st.builds(opaque, st.just("")),
)
places = st.tuples(st.integers(0, 99), entries, st.integers(0, 20_000) | st.integers(0, 3 * GIB))


def tree_of(chosen: list[tuple[int, Entry, int]]) -> Index:
    """A layer of entries that the first number puts into one of the directories before, the second one gives a size."""
    folders, others, sizes = [""], list[str](), dict[str, int]()
    placed: dict[str, Entry] = {}
    for number, entry, size in chosen:
        name = folders[number % len(folders)] + entry.name
        if name.rstrip("/") in placed or len(name) > 1000 or (entry.type == "hardlink" and not others):
            continue
        target = others[number % len(others)] if entry.type == "hardlink" else entry.target
        placed[name.rstrip("/")] = replace(entry, name=name, target=target)
        if entry.type == "dir":
            folders.append(name)
        elif not entry.name.startswith(".wh."):
            others.append(name)
            sizes |= {name: size} if entry.type == "reg" else {}
    return index_of(*placed.values(), sizes=sizes)


@given(st.lists(places, max_size=40), st.sampled_from([b"", b"/1", b"/12", b"/123"]))
def test_kernel_shows_any_layer(mounted: Mounter, chosen: list[tuple[int, Entry, int]], place: bytes) -> None:
    index = tree_of(chosen)
    with mounted(accepted(index, place)) as top:
        Expected(index, place).compare(top)


lengths = st.lists(st.integers(1, 255), max_size=60)


@given(st.lists(lengths, max_size=5), st.lists(texts, max_size=20), st.integers(0, 2000))
def test_kernel_shows_listings_and_links_wherever_blocks_end(
    mounted: Mounter, listings: list[list[int]], targets: list[str], shift: int
) -> None:
    label: dict[str, Any] = {"xattrs": {"security.a": b"v" * shift}}
    made = [symlink(f"l{number}", target, **label) for number, target in enumerate(targets)]
    for number, listing in enumerate(listings):
        made.append(dir(f"d{number}", **label))
        made += [fifo(f"d{number}/{f'{at:02}'.ljust(length, 'x')}") for at, length in enumerate(listing)]
    index = index_of(*made)
    with mounted(accepted(index)) as top:
        Expected(index).compare(top)
