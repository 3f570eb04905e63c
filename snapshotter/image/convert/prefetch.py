"""The list of files that a container reads first, and which layer has to put which of them in front."""

import glob
from collections.abc import Iterator, Sequence
from dataclasses import replace

from snapshotter.image.convert.globs import is_glob, parse_glob
from snapshotter.image.convert.tree import ImageTree


def parse_prefetch_list(data: bytes) -> list[str]:
    """Return the lines of a list: a path or a pattern on each, in order of first use; those that begin with "#" are comments."""
    lines = data.decode("utf-8", "surrogateescape").split("\n")
    return [line.rstrip("\r") for line in lines if line.strip() and not line.startswith("#")]


def literal(path: str) -> str:
    """`path` as a line that means this path alone, also in an image that does not have it."""
    return glob.escape(path)


def assign(lines: Sequence[str], tree: ImageTree, layer_count: int) -> tuple[list[list[str]], list[str]]:
    """Return for each layer (lowest first) the names it puts in front, and the lines for which no layer has anything.

    A path belongs to the topmost layer that has it. Symbolic links are followed, each belonging to its own layer:
    whoever lists /bin/sh needs the link /bin, the link sh and the shell.

    What the image has under exactly the name that a line says is meant, whatever characters are in it. Else a line with one of
    `* ? [` is a pattern (`globs.py`): it stands for everything but directories that the image shows under a matching name, in order
    of these names, each as if it had been listed. A directory is nothing to fetch; `dir/**` is everything below it. A pattern's
    front part without these characters may go through symbolic links, like /bin/py*.
    """
    wanted: list[dict[str, None]] = [{} for _ in range(layer_count)]
    missing: list[str] = []
    names: list[str] | None = None
    for line in lines:
        passed, found = tree.follow(line)
        if not found and is_glob(line):
            names = sorted(tree.names()) if names is None else names
            passed = list(_matches(line, tree, names))
            found = bool(passed)
        for number, name in passed:
            wanted[number].setdefault(name)
        if not found:
            missing.append(line)
    return [list(names) for names in wanted], missing


def _matches(line: str, tree: ImageTree, names: Sequence[str]) -> Iterator[tuple[int, str]]:
    """What opening each of the files that match passes."""
    pattern = parse_glob(line)
    links, found = tree.follow(pattern.directory)
    if found:
        pattern = replace(pattern, directory=links[-1][1])
    matching = [name for name in names if pattern.matches(name)]
    if matching:
        yield from links[:-1]
    for name in matching:
        yield from tree.follow(name)[0]
