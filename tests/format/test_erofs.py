"""The EROFS writer, by its bytes: what fsck.erofs accepts, what repeats, what is refused.

`tests/mount/test_erofs_images.py` shows the same CASES to the kernel.
"""

import hashlib
import os
import re
import subprocess
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapshotter.errors import FormatError
from snapshotter.format.codec import Codec
from snapshotter.format.digest import from_raw
from snapshotter.format.erofs import LargePath, check_image, write_image
from snapshotter.format.erofs_layout import BLOCK, CHECKSUM_AT, EROFS_REVISION, INODE
from snapshotter.format.erofs_xattrs import XattrBodies
from snapshotter.format.index import BuildOptions, Index
from snapshotter.format.index_build import build_index
from snapshotter.format.limits import CHUNK_SIZE, FILE_SIZE, GIB
from tests.doubles.layers import Entry, block, char, dir, fifo, file, hardlink, layer, opaque, symlink, whiteout
from tests.mount.torture import ACL_1000_READS, BIND_SERVICE

PLACE = b"/17"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
BEHIND_INODE = BLOCK - INODE.size
"""The most content that lies behind an inode without attributes."""


# --- images


def index_of(*entries: Entry, sizes: Mapping[str, int] | None = None, piece: int = CHUNK_SIZE) -> Index:
    """The index of some entries, each with a time of its own.

    Files named in `sizes` are that long and all zeros; those with more than `piece` bytes have several chunks.
    """
    return layer(*entries, edit=partial(_edit, sizes=sizes or {}, piece=piece)).index()


def _edit(toc: dict[str, Any], sizes: Mapping[str, int], piece: int) -> None:
    rows = []
    for number, row in enumerate(toc["entries"]):
        # Nanoseconds that no float holds, and seconds beyond 32 bits.
        when = EPOCH + timedelta(seconds=number * 977_777_777 % 9_000_000_000)
        row["modtime"] = f"{when:%Y-%m-%dT%H:%M:%S}.{number * 123_456_789 % 1_000_000_000:09}Z"
        rows.append(row)
        if size := sizes.get(row["name"], 0):
            row |= {"size": size, "chunkSize": min(size, piece), "chunkType": "zeros"}
        if size > piece:
            row["digest"] = f"sha256:{hashlib.sha256(b'%d' % size).hexdigest()}"
        for start in range(piece, size, piece):
            more = {"chunkOffset": start, "chunkSize": min(size - start, piece), "chunkType": "zeros"}
            rows.append({"name": row["name"], "type": "chunk", **more})
    toc["entries"] = rows


def accepted(index: Index, place: bytes = PLACE, large: LargePath | None = None) -> bytes:
    """The image of an index; fails the test if `check_image`, fsck.erofs or dump.erofs has something against it."""
    image = write_image(index, place, large)
    check_image(image)
    assert "No errors found" in judged("fsck.erofs", "-d3", image)
    told = dict(re.findall(r"^Filesystem ([^:]+): +(.*?) *$", judged("dump.erofs", "-s", image), re.MULTILINE))
    assert told["magic number"] == "0xE0F5E1E2"
    assert int(told["blocks"]) * BLOCK == len(image)
    assert int(told["inode count"]) == index.node_count
    assert told["features"].split() == ["sb_csum", "mtime", "chunked_file"]
    return image


def judged(tool: str, option: str, image: bytes) -> str:
    """What one of erofs-utils says of an image; fails the test if it does not accept it."""
    with open(os.memfd_create("image"), "w+b") as held:
        held.write(image)
        held.flush()
        # fsck.erofs recurses into directories and overflows the ordinary stack some 1900 levels deep.
        command = ["prlimit", "--stack=1000000000", tool, option, f"/dev/fd/{held.fileno()}"]
        done = subprocess.run(command, capture_output=True, text=True, pass_fds=[held.fileno()], check=False)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "<E>" not in said
    return said


# --- layers


def every_kind() -> Index:
    return index_of(
        dir("etc", mode=0o1777, uid=70_000, gid=80_000),
        file("etc/passwd", b"root", mode=0o4755, uid=4_294_967_294, gid=65_536),
        file("etc/copy", b"root", mode=0), file("etc/long", b"x" * 70_000), file("etc/empty", mode=0o600, uid=1),
        hardlink("first-of-all", "etc/passwd", mode=0o2711, uid=65_535), hardlink("etc/again", "etc/passwd"),
        symlink("bin", "usr/bin", uid=70_000), hardlink("usr/bin-too", "bin"),
        char("null", 1, 3, mode=0o666), char("far", 4095, 1_048_575),
        block("disk", 259, 70_000, mode=0o660, gid=6), block("none", 0, 0), hardlink("disk-too", "disk"),
        fifo("pipe", mode=0o620), fifo("no/entry/for/parents"),
    )  # fmt: skip


def names() -> Index:
    """Among them names that sort before "." and between "." and ".."."""
    odd = ["n" * 255, "é" * 127, "caf\udce9\udcff", "\udc80" * 255, "!x", "-", "\x01", " ", "\n", "+", ",~", ".-", ".a"]
    odd += ["...", "..a", "/".join(["d" * 255] * 14), "~", "\x7f", "a", "a.", "a-", "aa", "A", ".wh", "wh.", "a\\b"]
    # And a directory of many blocks in which any other order than that of the bytes misleads a search.
    odd += [f"many/{chr(33 + number % 94).replace('/', '_')}{number:x}\udcff{number}" for number in range(1000)]
    return index_of(*(file(name, b"%d" % number) for number, name in enumerate(odd)))


def marks() -> Index:
    labelled: Any = {"xattrs": {"user.a": b"1"}}
    return index_of(
        whiteout("gone"), whiteout("deep/gone"), whiteout("!"), whiteout("w" * 250), opaque(""), dir("covered"),
        opaque("covered"), file("covered/new", b"new"), dir("labelled", **labelled), opaque("labelled"),
        dir("not-covered", **labelled), opaque("only/by/its/mark"),
    )  # fmt: skip


def links() -> Index:
    """Texts that just fit behind their inode, that just do not, and that meet every end of a block on the way."""
    whole = [1, 2, 31, 32, 33, *range(BEHIND_INODE - 2, BEHIND_INODE + 3), BLOCK - 2, BLOCK - 1]
    found = [symlink(f"whole/{size}", "t" * size) for size in whole]
    labelled = {"security.a": b"x" * 100}
    more = 12 + 4 + len("a") + 100 + 3  # header, entry, name, value, padding
    found += [
        symlink(f"labelled/{size}", "l" * size, xattrs=labelled | {"security.b": b"%d" % size})
        for size in range(BEHIND_INODE - more - 12, BEHIND_INODE - more + 3)
    ]
    found += [symlink(f"row/{size}", "r" * size) for size in range(1, 300)]
    return index_of(*found, symlink("odd", "/caf\udcff/../\n"))


def names_of(size: int) -> list[str]:
    """Names that fill one block of a directory, "." and ".." included, with exactly `size` bytes."""
    left = size - 12 - 1 - 12 - 2
    found: list[str] = []
    while left:
        piece = left if left <= 12 + 255 else min(12 + 255, left - 13)
        found.append(f"{len(found):02}".ljust(piece - 12, "x")[: piece - 12])
        left -= piece
    return found


def directories() -> Index:
    """Listings of about a block, one that just fits behind the inode, and the same for a second block."""
    found = []
    for size in [*range(BEHIND_INODE - 2, BEHIND_INODE + 3), BLOCK - 1, BLOCK]:
        found += [file(f"d{size}/{name}") for name in names_of(size)]
    for count in [*range(13, 18), *range(29, 33)]:
        found += [file(f"n{count}/{number:02}{'x' * 253}") for number in range(count)]
    # The first block is padded behind fifteen names of 255 bytes; then fifteen more, and what is left of the second.
    for rest in [*range(14, 17), 78, 79, 80]:
        names = [f"{number:02}{'x' * 253}" for number in range(30)] + ["z" * rest]
        found += [file(f"s{rest}/{name}") for name in names]
    found += [fifo(f"many/name-{number}") for number in range(5000)]
    return index_of(*found)


def xattrs() -> Index:
    sizes = (0, 1, 2, 3, 4, 1023, 1024, 1025, 4000, 6000, 65_535)
    shared = {"user.shared": b"s" * 300, "security.selinux": b"label\0", "user.empty": b""}
    many = {f"user.{number}": b"%d" % number for number in range(200)}
    guarded = {"system.posix_acl_access": ACL_1000_READS}
    wide = {f"user.{number}": bytes([number]) * 1024 for number in range(240)}
    return index_of(
        *(file(f"own-{size}", b"x", xattrs={f"user.{size}": b"v" * size}) for size in sizes),
        *(file(f"empty-{size}", xattrs={f"user.e{size}": b"v" * size}) for size in sizes),
        file("first", b"1", xattrs=shared), file("second", b"2", xattrs=shared), file("third", xattrs=shared),
        file("some", b"3", xattrs={"user.shared": shared["user.shared"], "user.own": b"o"}),
        file("other-value", b"4", xattrs={"user.shared": b"another"}),
        file("many", b"5", xattrs=many), file("many-too", b"6", xattrs=many),
        file("many-alone", b"7", xattrs={f"user.alone-{number}": b"%d" % number for number in range(300)}),
        file("wide", b"8", xattrs=wide), dir("wide-directory", xattrs={f"{name}d": wide[name] for name in wide}),
        symlink("wide-link", "t" * 500, xattrs={f"security.{name}": value for name, value in wide.items()}),
        file("capable", b"9", mode=0o755, xattrs={"security.capability": BIND_SERVICE}),
        file("guarded", b"10", mode=0o640, xattrs=guarded),
        dir("guarded-directory", xattrs=guarded | {"system.posix_acl_default": ACL_1000_READS}),
        dir("directory", xattrs=shared), symlink("link", "first", xattrs={"security.a": b"link"}),
        char("char", 1, 3, xattrs={"security.a": b"char"}), fifo("pipe", xattrs={"security.a": b"pipe"}),
        file("names", b"11", xattrs={"user." + "n" * 250: b"1", "security." + "é" * 123: b"2"}),
    )  # fmt: skip


def sizes() -> Index:
    """Files of one hole each, around every chunk size."""
    found = {1, 5 * GIB, FILE_SIZE - 1, FILE_SIZE}
    found |= {(BLOCK << bits) + more for bits in (*range(22), 29) for more in (-1, 0, 1)}
    return index_of(*(file(f"{size}") for size in sorted(found)), sizes={f"{size}": size for size in found})


def trusted() -> Index:
    evil = {"redirect": b"/17/ab/evil", "metacopy": b"evil", "opaque": b"evil", "origin": b"evil"}
    given = {f"trusted.overlay.{name}": value for name, value in evil.items()} | {"trusted.a": b"evil"}
    kept = given | {"user.kept": b"kept"}
    return index_of(
        file("file", b"content", xattrs=given), file("empty", xattrs=kept), dir("directory", xattrs=given),
        symlink("link", "file", xattrs=given), fifo("pipe", xattrs=given), char("char", 1, 3, xattrs=given),
        dir("really-opaque", xattrs=kept), opaque("really-opaque"), dir("userspace", xattrs={"user.overlay.opaque": b"y"}),
    )  # fmt: skip


CASES: dict[str, Callable[[], Index]] = {
    "empty-layer": index_of,
    "every-kind": every_kind,
    "names": names,
    "marks": marks,
    "links": links,
    "directories": directories,
    "xattrs": xattrs,
    "sizes": sizes,
    "trusted": trusted,
    "deep": lambda: index_of(file("d/" * 1900 + "file", b"deep"), symlink("d/" * 1000 + "link", "../" * 1000)),
}

each_case = pytest.mark.parametrize("case", CASES)


# --- what the tools say, and what repeats


@each_case
def test_image_is_accepted_and_is_a_function_of_index_and_place(case: str) -> None:
    image = accepted(CASES[case]())
    assert write_image(CASES[case](), PLACE) == image


def test_other_place_makes_other_bytes() -> None:
    index = every_kind()
    assert len({accepted(index, place) for place in (b"", b"/1", b"/2", b"/17", b"/a" * 1000)}) == 5


def test_bytes_are_those_of_the_revision() -> None:
    """Images are kept by revision: whoever changes the bytes raises it, or old and new images have one name."""
    found = hashlib.sha256(write_image(every_kind(), PLACE) + write_image(xattrs(), PLACE)).hexdigest()
    assert (EROFS_REVISION, found[:16]) == (1, "f4727e62017efd75")


# --- space


AFTER_ROOT = 1280 + INODE.size
"""Where the text of a link lies that is alone in its layer: behind the superblock, the root's inode and 40 bytes of it."""


@pytest.mark.parametrize(
    ("size", "at"),
    [
        (1, AFTER_ROOT),
        (BLOCK - AFTER_ROOT, AFTER_ROOT),
        (BLOCK - AFTER_ROOT + 1, BLOCK + INODE.size),
        (BEHIND_INODE, BLOCK + INODE.size),
        (BEHIND_INODE + 1, 2 * BLOCK),
        (BLOCK - 1, 2 * BLOCK),
    ],
)
def test_text_lies_behind_its_inode_where_a_block_has_room_for_both(size: int, at: int) -> None:
    image = accepted(index_of(symlink("l", "t" * size)))
    assert image.index(b"t" * size) == at
    assert len(image) == BLOCK * (2 if at == AFTER_ROOT else 3)


@pytest.mark.parametrize(("size", "at"), [(BEHIND_INODE, INODE.size), (BEHIND_INODE + 1, 0), (BLOCK, 0)])
def test_listing_lies_behind_its_inode_where_a_block_has_room_for_both(size: int, at: int) -> None:
    names = names_of(size)
    image = accepted(index_of(*(hardlink(f"d/{name}", "a") for name in names), file("a")))
    text = ("..." + "".join(sorted(names))).encode()
    assert (image.index(text) - 12 * (2 + len(names))) % BLOCK == at
    assert len(image) == 3 * BLOCK


def test_attributes_of_two_files_lie_in_the_image_once() -> None:
    values = [hashlib.sha256(b"%d" % number).digest() * 9 for number in range(3)]
    given = {"user.a": values[0], "security.b": values[1]}
    files = [file(f"{number}", b"%d" % number, xattrs=given) for number in range(100)]
    image = accepted(index_of(*files, file("alone", xattrs={"user.a": values[2]})))
    assert [image.count(value) for value in values] == [1, 1, 1]
    assert image.count(b"overlay.metacopy") == 1
    assert image.count(b"overlay.redirect") == 100


def test_layer_of_many_entries_takes_200_bytes_an_entry_besides_names() -> None:
    row = (
        '{"name":"folder-%03d/file-%d","type":"reg","size":9,"offset":7,"innerOffset":%d,"chunkDigest":"sha256:%064x"}'
    )
    rows = ",".join(row % (number // 250, number, 9 * number, number + 1) for number in range(100_000))
    options = BuildOptions(Codec.GZIP, 1 << 30, 1 << 30, from_raw(bytes(32)), allow_unverified=False)
    index = Index(build_index(('{"version":1,"entries":[' + rows + "]}").encode(), options), "many")
    in_directories = sum(12 + len(name) for node in range(index.node_count) for _, name, _ in index.entries(node, 0))
    # As long as the place of a node's shared content; one byte more and every inode takes 32 more.
    assert (len(accepted(index, b"/_abcdefghijklm/node")) - in_directories) / index.entry_count <= 210


# --- what does not reach an image


def test_no_trusted_attribute_of_a_toc_reaches_the_image() -> None:
    image = accepted(trusted())
    assert b"evil" not in image
    assert b"kept" in image


def test_value_of_64_kib_is_format_error() -> None:
    accepted(index_of(file("a", xattrs={"user.a": b"v" * 65_535})))
    for entry in (file("a", xattrs={"user.a": b"v" * 65_536}), dir("a", xattrs={"security.a": b"v" * 65_536})):
        with pytest.raises(FormatError, match="65536 bytes"):
            write_image(index_of(entry), PLACE)


@pytest.mark.parametrize(("data", "most"), [(b"", 255), (b"x", 254)])
def test_more_shared_attributes_than_an_inode_counts_are_format_error(data: bytes, most: int) -> None:
    def pair(count: int) -> Index:
        given = {f"user.{number}": b"" for number in range(count)}
        return index_of(file("a", data, xattrs=given), file("b", data, xattrs=given))

    accepted(pair(most))
    with pytest.raises(FormatError, match="more than an EROFS inode takes"):
        write_image(pair(most + 1), PLACE)


def test_more_attributes_of_its_own_than_an_inode_counts_are_format_error() -> None:
    with pytest.raises(FormatError, match="more than an EROFS inode takes"):
        write_image(index_of(file("a", xattrs={f"user.{number}": b"v" * 1020 for number in range(257)})), PLACE)


@pytest.mark.parametrize("name", [b"system.nfs4_acl", b"com.apple.FinderInfo", b"user", b""])
def test_attribute_of_another_namespace_is_format_error(name: bytes) -> None:
    """No index holds one; the writer does not rely on it."""
    for uses in (1, 2):
        with pytest.raises(FormatError, match="no place for the extended attribute"):
            XattrBodies({0: {name: b"v"}}, {0: uses}).body(0)


# --- torn, damaged, foreign


def test_image_with_any_flipped_byte_is_format_error() -> None:
    image = write_image(every_kind(), PLACE)
    for position in range(len(image)):
        if not CHECKSUM_AT <= position < CHECKSUM_AT + 4:
            assert_refused(flipped(image, position, 1 << position % 8))


LARGER = write_image(xattrs(), PLACE)


@given(st.integers(0, len(LARGER) - 1), st.integers(1, 255))
def test_larger_image_with_a_changed_byte_is_format_error(position: int, change: int) -> None:
    if not CHECKSUM_AT <= position < CHECKSUM_AT + 4:
        assert_refused(flipped(LARGER, position, change))


@pytest.mark.parametrize("byte", range(4))
def test_damaged_checksum_of_the_superblock_is_left_to_the_kernel(byte: int) -> None:
    """It is taken last, over the hash, and so the hash cannot cover it."""
    image = flipped(write_image(every_kind(), PLACE), CHECKSUM_AT + byte, 0x40)
    check_image(image)
    with pytest.raises(AssertionError, match="chksum"):
        judged("fsck.erofs", "-d3", image)


def test_image_of_any_other_length_is_format_error() -> None:
    image = write_image(every_kind(), PLACE)
    for length in range(len(image)):
        assert_refused(image[:length])
    for more in (b"\0", bytes(BLOCK), image):
        assert_refused(image + more)


def test_other_files_are_format_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    subprocess.run(["mkfs.erofs", tmp_path / "image", tmp_path / "empty"], capture_output=True, check=True)
    built = layer(file("a", b"a"))
    for other in ((tmp_path / "image").read_bytes(), bytes(2 * BLOCK), built.blob, built.tar, built.index_bytes()):
        assert_refused(other)
        assert_refused(other + bytes(-len(other) % BLOCK))


@given(st.binary(max_size=64))
def test_any_bytes_are_format_error(data: bytes) -> None:
    assert_refused(data.ljust(BLOCK, b"\0"))
    assert_refused(LARGER[: BLOCK - len(data)] + data)


def flipped(image: bytes, position: int, change: int) -> bytes:
    torn = bytearray(image)
    torn[position] ^= change
    return bytes(torn)


def assert_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        check_image(data)
