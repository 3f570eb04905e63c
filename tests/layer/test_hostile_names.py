"""Names and targets that lead somewhere else: such a layer is refused as a whole, and nothing of it stays."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from snapshotter.errors import NotLazy, Reason
from tests.doubles.layers import BuiltLayer, dir, file, hardlink, layer, symlink
from tests.doubles.memory_registry import MemoryRegistry
from tests.layer.world import run, world

DATA = b"content"


def renamed(**fields: Any) -> Callable[[dict[str, Any]], None]:
    """Changes fields of the TOC's last entry: a tar could not say all of them."""

    def edit(toc: dict[str, Any]) -> None:
        toc["entries"][-1].update(fields)

    return edit


TRICKS = {
    "parent": layer(file("a", DATA), edit=renamed(name="../a")),
    "parent in the middle": layer(dir("d"), file("d/a", DATA), edit=renamed(name="d/../../a")),
    "parent at the end": layer(dir("d"), edit=renamed(name="d/..")),
    "absolute": layer(file("a", DATA), edit=renamed(name="/etc/passwd")),
    "NUL": layer(file("a", DATA), edit=renamed(name="a\0b")),
    "no name": layer(file("a", DATA), edit=renamed(name="")),
    "root is a file": layer(file("a", DATA), edit=renamed(name="./")),
    "slash at the end of a file": layer(file("a", DATA), file("a/", b""), edit=renamed(name="a/b")),
    "below a link": layer(symlink("d", "/etc"), file("d/passwd", DATA)),
    "below a file": layer(file("d", DATA), file("d/a", DATA)),
    "below a whiteout": layer(file(".wh.d/a", DATA)),
    "hard link to a parent": layer(file("a", DATA), hardlink("h", "../../etc/passwd")),
    "hard link to an absolute path": layer(file("a", DATA), hardlink("h", "/etc/passwd")),
    "hard link with NUL": layer(file("a", DATA), hardlink("h", "a"), edit=renamed(linkName="a\0")),
    "hard link through a link": layer(symlink("d", "/etc"), hardlink("h", "d/passwd")),
    "symbolic link with NUL": layer(symlink("l", "a"), edit=renamed(linkName="a\0b")),
    "whiteout of a parent": layer(dir("d"), file("d/.wh...", b"")),
    "whiteout of a path": layer(file("a", DATA), edit=renamed(name=".wh.a/b")),
    "long name": layer(file("a", DATA), edit=renamed(name="x" * 256)),
    "long path": layer(file("a", DATA), edit=renamed(name="x/" * 2048 + "x")),
}


def everything(top: Path) -> set[str]:
    """Every name below a directory."""
    return {
        os.path.relpath(Path(parent, name), top) for parent, dirs, files in os.walk(top) for name in (*dirs, *files)
    }


@pytest.mark.parametrize("trick", list(TRICKS))
def test_layer_with_a_name_that_leads_away_is_refused_and_leaves_nothing(tmp_path: Path, trick: str) -> None:
    root = tmp_path / "one" / "two" / "root"

    async def main() -> None:
        async with world(root, MemoryRegistry()) as it:
            before = everything(tmp_path)
            with pytest.raises(NotLazy) as caught:
                await it.pull(TRICKS[trick])
            assert caught.value.reason is Reason.TOC_INVALID
            assert it.room.shelf.all() == ()
            assert {name for name in everything(tmp_path) - before if "manifests" not in name} == set()

    run(main)


def two_of(toc: dict[str, Any]) -> None:
    """Gives both files one name."""
    for row in toc["entries"]:
        row["name"] = "a"


def read_alone(tmp_path: Path, built: BuiltLayer) -> tuple[list[bytes], bytes]:
    """Names in the root, and the content of the one file."""
    found: list[tuple[list[bytes], bytes]] = []

    async def main() -> None:
        async with world(tmp_path, MemoryRegistry()) as it:
            (lazy,) = await it.pull(built)
            names = [name for _, name, _ in lazy.index.entries(0, 0)]
            found.append((names, await it.read(lazy, "a")))

    run(main)
    return found[0]


def test_of_two_files_of_one_name_the_later_one_counts_as_when_unpacked(tmp_path: Path) -> None:
    assert read_alone(tmp_path, layer(file("a", b"first"), file("b", b"second"), edit=two_of)) == ([b"a"], b"second")


def test_targets_of_symbolic_links_are_kept_and_never_followed(tmp_path: Path) -> None:
    targets = {
        b"up": b"../../../../../../etc/passwd",
        b"abs": b"/etc/passwd",
        b"self": b"self",
        b"proc": b"/proc/self/fd/0",
    }

    async def main() -> None:
        async with world(tmp_path, MemoryRegistry()) as it:
            (lazy,) = await it.pull(layer(*(symlink(name.decode(), to.decode()) for name, to in targets.items())))
            for name, target in targets.items():
                node = lazy.index.lookup(0, name)
                assert node is not None
                assert lazy.index.readlink(node) == target
                assert lazy.index.lookup(node, b"anything") is None

    run(main)
