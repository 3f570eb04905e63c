"""The tree that entries make: what unpacking by containerd would have made of them."""

import stat
from typing import Any

import pytest

from snapshotter.errors import FormatError
from snapshotter.format import tree
from snapshotter.format.index import Index, Kind
from tests.doubles.layers import (
    MTIME,
    Entry,
    block,
    char,
    dir,
    fifo,
    file,
    hardlink,
    layer,
    opaque,
    symlink,
    whiteout,
)

OPAQUE = {b"trusted.overlay.opaque": b"y"}


def names(index: Index, directory: int = 0, prefix: str = "") -> list[str]:
    """All paths below a directory, sorted as the index sorts them."""
    found = []
    for _, name, node in index.entries(directory, 0):
        path = prefix + name.decode("utf-8", "surrogateescape")
        found += [path, *names(index, node, path + "/")]
    return found


def tree_of(*entries: Entry, edit: Any = None) -> list[str]:
    return names(layer(*entries, edit=edit).index())


def refused(*entries: Entry, edit: Any = None) -> str:
    with pytest.raises(FormatError) as caught:
        layer(*entries, edit=edit).index()
    return str(caught.value)


def renamed(row: int, name: Any, field: str = "name") -> Any:
    def edit(toc: dict[str, Any]) -> None:
        toc["entries"][row][field] = name

    return edit


def test_every_type_has_its_attributes() -> None:
    entries = (
        dir("d", mode=0o1777, uid=1, gid=2),
        file("f", b"12345", mode=0o4755, uid=100_000, gid=4_294_967_294, mtime=MTIME + 0.25),
        symlink("l", "../target é", mode=0o777, uid=7),
        char("c", 1, 3, mode=0o666),
        block("b", 259, 70_000, mode=0),
        fifo("p", mode=0o600),
    )
    built = layer(*entries)
    index = built.index()
    seen = {path: index.attributes(built.node(path, index)) for path in "dflcbp"}
    assert [(seen[path].kind, oct(seen[path].mode)) for path in "dflcbp"] == [
        (Kind.DIR, oct(stat.S_IFDIR | 0o1777)),
        (Kind.REG, oct(stat.S_IFREG | 0o4755)),
        (Kind.SYMLINK, oct(stat.S_IFLNK | 0o777)),
        (Kind.CHAR, oct(stat.S_IFCHR | 0o666)),
        (Kind.BLOCK, oct(stat.S_IFBLK)),
        (Kind.FIFO, oct(stat.S_IFIFO | 0o600)),
    ]
    assert (seen["f"].uid, seen["f"].gid, seen["f"].size) == (100_000, 4_294_967_294, 5)
    assert seen["f"].mtime_ns == MTIME * 10**9 + 250_000_000
    assert index.readlink(built.node("l", index)) == "../target é".encode()
    assert seen["l"].size == len("../target é".encode())
    assert (seen["c"].rdev, seen["b"].rdev) == (0x103, (70_000 & 0xFF) | 259 << 8 | (70_000 & ~0xFF) << 12)
    assert index.readlink(0) == index.digest(0) == b""


def test_mode_of_symbolic_links_is_always_0777() -> None:
    built = layer(symlink("l", "t", mode=0o600))
    assert built.index().attributes(1).mode == stat.S_IFLNK | 0o777


def test_missing_parents_and_the_root_are_0755_of_root() -> None:
    index = layer(file("a/b/c", b"x", uid=5, mode=0o600)).index()
    for node in (0, 1, 2):
        assert index.attributes(node)[:4] == (Kind.DIR, stat.S_IFDIR | 0o755, 0, 0)
    assert [index.parent(node) for node in range(4)] == [0, 0, 1, 2]


def test_root_entry_changes_nothing_as_unpacking_ignores_it() -> None:
    for name in ("./", "/"):
        index = layer(dir("./", mode=0o700, uid=9), edit=renamed(0, name)).index()
        assert index.attributes(0)[:4] == (Kind.DIR, stat.S_IFDIR | 0o755, 0, 0)
        assert index.node_count == 1


def test_root_that_is_no_directory_is_format_error() -> None:
    assert "root" in refused(file("x"), edit=renamed(0, "./"))


def test_leading_dot_slash_and_trailing_slash_are_legal() -> None:
    assert tree_of(dir("./a"), file("./a/b"), file("a//c/"), file("a/./d")) == ["a", "a/b", "a/c", "a/d"]


@pytest.mark.parametrize(
    "name", ["", "..", "../x", "a/../../x", "a/..", "/etc/passwd", "a\0b", "n" * 256, "d/" * 2048 + "x"]
)
def test_names_that_no_layer_may_have_are_format_errors(name: str) -> None:
    refused(file("x", b"1"), edit=renamed(0, name))


def test_names_of_255_bytes_and_paths_of_4095_are_legal() -> None:
    deep = "/".join(["é" * 127 + "x"] * 15 + ["y" * 255])
    assert len(deep.encode()) == 4095
    assert tree_of(file(deep))[-1] == deep


def test_names_that_are_not_utf8_keep_their_bytes_and_sort_by_them() -> None:
    index = layer(file("b"), file("\udcff"), file("é"), file("a\udc80")).index()
    assert [name for _, name, _ in index.entries(0, 0)] == [b"a\x80", b"b", "é".encode(), b"\xff"]


def test_unknown_type_is_format_error() -> None:
    for kind in ("socket", "", "DIR"):
        assert "unknown type" in refused(file("x"), edit=renamed(0, kind, "type"))


def test_chunk_before_any_file_is_format_error() -> None:
    refused(file("x", b"1"), edit=renamed(0, "chunk", "type"))
    refused(dir("d"), file("x", b"1"), edit=renamed(1, "chunk", "type"))


# --- duplicates


def test_later_file_replaces_an_earlier_one() -> None:
    built = layer(file("f", b"old", mode=0o600), file("f", b"newer", mode=0o640))
    index = built.index()
    assert (index.node_count, index.content_size) == (2, 5)
    assert index.attributes(1).size == 5


def test_later_directory_takes_new_attributes_and_keeps_its_children() -> None:
    built = layer(
        dir("d", mode=0o700, xattrs={"user.old": b"1", "user.both": b"1"}),
        file("d/f"),
        dir("d", mode=0o711, uid=3, xattrs={"user.both": b"2"}),
    )
    index = built.index()
    assert names(index) == ["d", "d/f"]
    assert index.attributes(1)[1:3] == (stat.S_IFDIR | 0o711, 3)
    assert index.xattrs(1) == {b"user.old": b"1", b"user.both": b"2"}


def test_directory_described_after_its_children_takes_its_attributes() -> None:
    index = layer(file("d/f"), dir("d", mode=0o700)).index()
    assert index.attributes(1).mode == stat.S_IFDIR | 0o700


def test_file_replaced_by_directory_and_back() -> None:
    assert tree_of(file("x", b"1"), dir("x"), file("x/y")) == ["x", "x/y"]
    assert tree_of(dir("x"), file("x/y"), file("x", b"1")) == ["x"]
    assert tree_of(dir("x"), file("x/y"), file("x", b"1"), dir("x"), file("x/z")) == ["x", "x/z"]


def test_directory_replaced_by_a_link_is_no_parent_any_more() -> None:
    assert "no directory" in refused(dir("x"), file("x/y"), symlink("x", "z"), file("x/z"))
    assert "no directory" in refused(file("f"), dir("x"), file("x/y"), hardlink("x", "f"), file("x/z"))


@pytest.mark.parametrize("holder", [file("x", b"1"), symlink("x", "y"), fifo("x"), hardlink("x", "later")])
def test_file_under_something_that_is_no_directory_is_format_error(holder: Entry) -> None:
    assert "no directory" in refused(holder, file("x/y"), file("later"))
    assert "no directory" in refused(holder, file("x/y/z"), file("later"))


# --- hard links


def test_hard_links_share_a_node_and_are_counted() -> None:
    built = layer(file("a/f", b"data"), hardlink("b", "a/f"), hardlink("c/d", "./b"))
    index = built.index()
    node = built.node("a/f", index)
    assert built.node("b", index) == built.node("c/d", index) == node
    assert index.attributes(node).nlink == 3
    assert (index.content_size, index.entry_count, index.inode_count) == (4, 5, 4)


def test_link_count_of_directories_is_two_and_subdirectories() -> None:
    index = layer(dir("a/b"), dir("a/c"), file("a/f"), dir("d")).index()
    assert [index.attributes(node).nlink for node in range(3)] == [4, 4, 2]


def test_hard_link_gives_its_attributes_as_unpacking_does() -> None:
    first = file("f", b"x", mode=0o755, xattrs={"security.capability": b"c", "user.a": b"1"})
    index = layer(first, hardlink("l", "f", mode=0o600, uid=5, mtime=9, xattrs={"user.b": b"2"})).index()
    assert index.attributes(1)[:4] == (Kind.REG, stat.S_IFREG | 0o600, 5, 0)
    assert index.attributes(1).mtime_ns == 9 * 10**9
    assert index.xattrs(1) == {b"user.a": b"1", b"user.b": b"2"}


def test_hard_links_to_symbolic_links_devices_and_pipes_are_legal() -> None:
    built = layer(symlink("s", "t"), char("c", 5, 1), fifo("p"), *(hardlink(f"l{name}", name) for name in "scp"))
    index = built.index()
    for name in "scp":
        assert built.node("l" + name, index) == built.node(name, index)
    assert index.attributes(built.node("ls", index)).mode == stat.S_IFLNK | 0o777


def test_hard_link_keeps_a_file_that_is_replaced_afterwards() -> None:
    built = layer(file("f", b"old"), hardlink("l", "f"), file("f", b"newer"))
    index = built.index()
    assert index.attributes(built.node("l", index)).size == 3
    assert index.attributes(built.node("l", index)).nlink == 1


def test_hard_links_to_later_entries_and_chains_of_them_are_resolved() -> None:
    built = layer(hardlink("a", "b"), hardlink("b", "c/d"), file("c/d", b"data"))
    index = built.index()
    assert built.node("a", index) == built.node("b", index) == built.node("c/d", index)
    assert index.attributes(built.node("a", index)).nlink == 3


def test_unresolved_hard_link_that_is_replaced_does_not_matter() -> None:
    assert tree_of(hardlink("a", "nowhere"), file("a")) == ["a"]


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([hardlink("a", "nowhere")], "not in the layer"),
        ([hardlink("a", "d/x"), dir("d")], "not in the layer"),
        ([hardlink("a", "f/x"), file("f")], "not in the layer"),
        ([hardlink("a", "a")], "circle"),
        ([hardlink("a", "b"), hardlink("b", "a")], "circle"),
        ([hardlink("a", "b"), hardlink("b", "c"), hardlink("c", "b")], "circle"),
        ([file("f"), hardlink("f", "f")], "circle"),
        ([dir("d"), hardlink("a", "d")], "directory"),
        ([hardlink("a", "d"), dir("d")], "directory"),
        ([hardlink("a", "./")], "directory"),
        ([hardlink("a", "")], "without a name"),
        ([hardlink("a", "../f"), file("f")], "out of the layer"),
    ],
)
def test_hard_links_that_lead_nowhere_are_format_errors(entries: list[Entry], words: str) -> None:
    assert words in refused(*entries)


def test_hard_link_chain_of_thousands_is_resolved_in_either_direction() -> None:
    links = [hardlink(f"l{number}", f"l{number + 1}") for number in range(5000)]
    for order in (links, links[::-1]):
        index = layer(*order, file("l5000", b"x")).index()
        assert index.attributes(1).nlink == 5001


# --- whiteouts


def test_whiteout_is_a_device_0_0_unless_the_name_exists_in_this_layer() -> None:
    built = layer(whiteout("gone"), whiteout("d/gone"), whiteout("d/here"), file("d/here"))
    index = built.index()
    assert names(index) == ["d", "d/gone", "d/here", "gone"]
    for path in ("gone", "d/gone"):
        assert index.attributes(built.node(path, index))[:2] == (Kind.CHAR, stat.S_IFCHR)
        assert index.attributes(built.node(path, index)).rdev == 0
    assert index.attributes(built.node("d/here", index)).kind is Kind.REG


def test_whiteout_before_and_after_its_name_is_hidden() -> None:
    for entries in ([whiteout("x"), dir("x")], [dir("x"), whiteout("x")]):
        index = layer(*entries).index()
        assert [index.attributes(node).kind for node in range(index.node_count)] == [Kind.DIR, Kind.DIR]


def test_opaque_mark_becomes_an_attribute_of_its_directory() -> None:
    built = layer(opaque("d"), dir("d", xattrs={"user.a": b"1"}), dir("e"), opaque(""))
    index = built.index()
    assert names(index) == ["d", "e"]
    assert index.xattrs(built.node("d", index)) == {b"user.a": b"1"} | OPAQUE
    assert index.xattrs(0) == OPAQUE
    assert index.xattrs(built.node("e", index)) == {}


def test_aufs_metadata_is_hidden_but_its_files_can_be_linked_to() -> None:
    built = layer(
        dir(".wh..wh.plnk"), file(".wh..wh.plnk/1.2", b"data"), file(".wh..wh.aufs"), hardlink("l", ".wh..wh.plnk/1.2")
    )
    index = built.index()
    assert names(index) == ["l"]
    assert index.attributes(1).nlink == 1
    assert index.attributes(1).size == 4


@pytest.mark.parametrize("name", [".wh.", ".wh..", ".wh...", "d/.wh...", ".wh.x/y", "d/.wh.x/y"])
def test_whiteouts_of_nothing_and_below_whiteouts_are_format_errors(name: str) -> None:
    assert "whiteout" in refused(file(name))


def test_trusted_attributes_of_the_toc_vanish() -> None:
    xattrs = {"trusted.overlay.redirect": b"/other", "trusted.overlay.opaque": b"y", "user.kept": b"1"}
    assert layer(dir("d", xattrs=xattrs)).index().xattrs(1) == {b"user.kept": b"1"}


# --- landmarks


def test_landmarks_and_the_toc_are_hidden_at_the_root_only() -> None:
    hidden = [".prefetch.landmark", ".no.prefetch.landmark", "stargz.index.json"]
    entries = [file(name, b"x") for name in hidden] + [file(f"d/{name}", b"x") for name in hidden]
    assert tree_of(*entries) == ["d", *sorted(f"d/{name}" for name in hidden)]


def test_prefetch_ends_at_the_landmark() -> None:
    entries = file("a", b"1" * 100), file("b", b"2" * 100)
    index = layer(*entries, prefetch=["b"]).index()
    assert index.prefetch_end is not None
    assert list(index.members_between(0, index.prefetch_end)) == [0]
    assert index.member_chunks(0)[0].node == 2
    assert layer(*entries, prefetch=[]).index().prefetch_end == 0
    assert layer(*entries).index().prefetch_end is None


def test_landmark_against_prefetching_wins() -> None:
    for order in (slice(None), slice(None, None, -1)):
        marks = [file(".no.prefetch.landmark", b"x"), file(".prefetch.landmark", b"x")][order]
        assert layer(*marks).index().prefetch_end == 0


def test_landmark_outside_of_the_blob_is_format_error() -> None:
    refused(file(".prefetch.landmark", b"x"), edit=renamed(0, 1 << 40, "offset"))


def test_more_nodes_than_the_limit_are_format_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree, "TOC_ENTRIES", 5)
    assert len(tree_of(file("a/b/c/d"))) == 4
    assert "more than 5" in refused(file("a/b/c/d/e"))
