from snapshotter.image.convert.prefetch import assign, literal
from tests.format.tars import entry, folder, symlink
from tests.image.test_tree import tree

BELOW = [folder("usr"), folder("usr/bin"), *(entry(f"usr/bin/py{n}") for n in (3, 1, 2)), entry("usr/bin/sh")]
IMAGE = tree(
    BELOW, [symlink("bin", "usr/bin"), entry("usr/bin/py1", b"new"), entry("usr/bin/.wh.py2"), entry("odd[1]")]
)


def test_pattern_names_what_the_container_sees_in_order_of_names_each_in_its_own_layer() -> None:
    assert assign(["/usr/bin/py*"], IMAGE, 2) == ([["usr/bin/py3"], ["usr/bin/py1"]], [])
    assert assign(["usr/**"], IMAGE, 2) == ([["usr/bin/py3", "usr/bin/sh"], ["usr/bin/py1"]], [])


def test_lines_keep_their_order_and_a_file_its_first_place() -> None:
    assert assign(["usr/bin/sh", "usr/bin/*"], IMAGE, 2)[0][0] == ["usr/bin/sh", "usr/bin/py3"]


def test_pattern_goes_through_links_of_its_plain_part_and_links_that_match_are_followed() -> None:
    assert assign(["/bin/s?"], IMAGE, 2) == ([["usr/bin/sh"], ["bin"]], [])
    image = tree([folder("lib"), entry("lib/libz.so.1.2"), symlink("lib/libz.so.1", "libz.so.1.2")])
    assert assign(["lib/*.so.1"], image, 1) == ([["lib/libz.so.1", "lib/libz.so.1.2"]], [])


def test_name_that_looks_like_a_pattern_is_itself_where_the_image_has_it() -> None:
    assert assign(["odd[1]"], IMAGE, 2) == ([[], ["odd[1]"]], [])
    image = tree([entry("odd1")])
    assert assign(["odd[1]"], image, 1) == ([["odd1"]], [])
    assert assign([literal("odd[1]")], image, 1) == ([[]], [literal("odd[1]")])
    assert assign([literal("odd[1]")], IMAGE, 2) == ([[], ["odd[1]"]], [])


def test_pattern_that_nothing_matches_is_reported_and_a_directory_is_nothing() -> None:
    assert assign(["nothing/*", "us?", "usr/bin/py2*"], IMAGE, 2) == ([[], []], ["nothing/*", "us?", "usr/bin/py2*"])
