import tracemalloc
from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from snapshotter.format.tar_entries import EntryType, TarEntry
from snapshotter.format.toc import Entry
from snapshotter.image.convert.tree import ImageTree
from snapshotter.image.inspect.contents import Row, SeenTree, is_first, listing

NAMES = st.lists(st.sampled_from(["a", "b", ".wh.a", ".wh.b", ".wh..wh..opq"]), min_size=1, max_size=3).filter(
    lambda parts: not any(part.startswith(".wh.") for part in parts[:-1])
)


def row(name: str, size: int = 0, kind: str = "reg") -> Row:
    return Row(name, kind, size, 0o644, 0, 0, 0, "", (0, 0), 0 if size else None, 1)


def seen(*layers: Iterable[Row]) -> SeenTree:
    tree = SeenTree()
    for number, rows in enumerate(layers, 1):
        tree.add(number, list(rows))
    return tree


@st.composite
def layer_rows(draw: st.DrawFn) -> list[Row]:
    """A layer as a converter leaves it: each name once, directories before what is in them, nothing below a file."""
    rows: dict[str, Row] = {}
    for parts in draw(st.lists(NAMES, max_size=6)):
        names = ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]
        if any(name in rows and rows[name].type != "dir" for name in names) or names[-1] in rows:
            continue
        for name in names[:-1]:
            rows.setdefault(name, row(name, kind="dir"))
        mark = parts[-1].startswith(".wh.")
        rows[names[-1]] = row(names[-1], 0 if mark else draw(st.integers(1, 99)))
    return list(rows.values())


@given(st.lists(layer_rows(), max_size=4))
def test_files_that_are_seen_are_those_of_the_tree_that_conversions_use(layers: list[list[Row]]) -> None:
    tree = ImageTree()
    for rows in layers:
        tree.add([TarEntry(one.name, EntryType(one.type), one.mode, size=one.size) for one in rows])
    expected = {}
    for name in tree.names():
        place = tree.find(name)
        assert place is not None
        expected[name] = (place[1].size, place[0] + 1)
    size, files, directories = seen(*layers).biggest(1000)
    assert {one.path: (one.size, one.layer) for one in files} == expected
    assert size == sum(one.size for one in files)
    assert [one.size for one in directories] == sorted((one.size for one in directories), reverse=True)
    for one in directories:
        assert one.size == sum(file.size for file in files if file.path.startswith(f"{one.path}/"))


def test_many_deep_directories_take_no_memory_for_their_paths() -> None:
    """2000 names in each of so many paths: written out, the paths of all directories would be 300 MB."""
    rows = [row(f"{number}/" + "d/" * 2000 + "file", number + 1) for number in range(75)]
    tracemalloc.start()
    try:
        _, files, directories = seen(rows).biggest(2)
        assert tracemalloc.get_traced_memory()[1] < 100 << 20
    finally:
        tracemalloc.stop()
    assert [(one.path[:3], one.size) for one in files] == [("74/", 75), ("73/", 74)]
    assert {one.size for one in directories} == {75}


def test_landmarks_are_no_entries_and_the_one_that_has_files_in_front_counts() -> None:
    entries = [
        Entry(".no.prefetch.landmark", "reg", 1),
        Entry("front", "reg", 10, offset=5, chunk_size=6),
        Entry("front", "chunk", offset=9, chunk_offset=6),
        Entry("./.prefetch.landmark", "reg", 1, offset=20),
        Entry("dir/", "dir"),
        Entry("behind", "reg", 4, offset=20),
        Entry("empty", "reg"),
    ]
    found = listing(entries)
    assert [one.name for one in found.rows] == ["front", "dir", "behind", "empty"]
    assert (found.landmark, found.prefetch_size, found.chunks, found.content_size) == (".prefetch.landmark", 20, 3, 14)
    assert [one.name for one in found.rows if is_first(one, found.prefetch_size)] == ["front"]
    assert (found.entries, found.prefetch_files) == (4, 1)
    assert listing(entries[:3]).prefetch_size == 0
    assert listing(entries[4:]).prefetch_size is None
