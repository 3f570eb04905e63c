import io

import pytest

from snapshotter.errors import NotLazy
from snapshotter.format.tar_entries import scan_tar
from snapshotter.image.convert.prefetch import assign, parse_prefetch_list
from snapshotter.image.convert.tree import ImageTree
from tests.format.tars import Made, entry, folder, symlink, tar


def tree(*layers: list[Made]) -> ImageTree:
    made = ImageTree()
    for layer in layers:
        made.add(scan_tar(io.BytesIO(tar(*layer))).entries)
    return made


def layer_of(found: ImageTree, name: str) -> int | None:
    place = found.find(name)
    return None if place is None else place[0]


def test_path_belongs_to_the_topmost_layer_that_has_it() -> None:
    image = tree([entry("a"), entry("b")], [entry("b")], [entry("c")])
    assert [layer_of(image, name) for name in "abcd"] == [0, 1, 2, None]


def test_whiteouts_opaque_directories_and_replaced_directories_hide_what_is_below() -> None:
    below = [folder("d"), entry("d/x"), folder("o"), entry("o/x"), folder("r"), entry("r/x"), entry("w")]
    image = tree(below, [entry(".wh.d"), entry("o/.wh..wh..opq"), entry("o/new"), entry("r", b"1"), entry(".wh.w")])
    assert [layer_of(image, name) for name in ("d", "d/x", "o", "o/x", "o/new", "r/x", "w")] == [
        None,
        None,
        1,
        None,
        1,
        None,
        None,
    ]


def test_links_are_followed_through_all_layers_and_each_is_listed() -> None:
    image = tree([folder("usr"), folder("usr/bin"), entry("usr/bin/dash")], [symlink("bin", "usr/bin")])
    image.add(scan_tar(io.BytesIO(tar(symlink("sh", "../bin/./dash")))).entries)
    assert image.follow("/sh") == ([(2, "sh"), (1, "bin"), (0, "usr/bin/dash")], True)
    assert image.follow("bin/nothing") == ([(1, "bin")], False)


def test_circle_of_links_ends() -> None:
    image = tree([symlink("a", "b"), symlink("b", "a")])
    assert image.follow("a")[1] is False


def test_directory_that_is_a_link_below_makes_the_layer_ordinary() -> None:
    image = tree([folder("usr"), symlink("lib", "usr")])
    with pytest.raises(NotLazy, match="symlink"):
        image.add(scan_tar(io.BytesIO(tar(entry("lib/x")))).entries)
    assert layer_of(image, "lib/x") is None


def test_left_out_directory_is_as_below_also_where_an_opaque_directory_hides_that() -> None:
    image = ImageTree()
    layers = [[folder("d"), folder("d/e", mode=0o700)], [folder("d"), entry("d/.wh..wh..opq")], [entry("d/e/new")]]
    added = [image.add(scan_tar(io.BytesIO(tar(*layer))).entries) for layer in layers]
    assert [(one.name, one.mode) for one in added[2]] == [("d", 0o755), ("d/e", 0o700), ("d/e/new", 0o644)]


def test_left_out_directory_over_a_layer_that_cannot_be_known_makes_the_layer_ordinary() -> None:
    image = tree([folder("d")])
    image.add(None)
    with pytest.raises(NotLazy, match="stays as it is"):
        image.add(scan_tar(io.BytesIO(tar(entry("d/x")))).entries)


def test_prefetch_list_has_comments_blank_lines_and_bytes_that_are_not_utf_8() -> None:
    assert parse_prefetch_list(b"# no\n/a b\r\n\n  \nc\xff\n/a b") == ["/a b", "c\udcff", "/a b"]


def test_paths_are_assigned_once_and_those_nobody_has_are_reported() -> None:
    image = tree([entry("a"), entry("b")], [entry("b")])
    assert assign(["/b", "a", "./b", "nope"], image, 2) == ([["a"], ["b"]], ["nope"])
