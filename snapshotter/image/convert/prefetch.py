"""The list of files that a container reads first, and which layer has to put which of them in front."""

from collections.abc import Sequence

from snapshotter.image.convert.tree import ImageTree


def parse_prefetch_list(data: bytes) -> list[str]:
    """Return the paths of a list: one on a line, in order of first use; lines that begin with "#" are comments."""
    lines = data.decode("utf-8", "surrogateescape").split("\n")
    return [line.rstrip("\r") for line in lines if line.strip() and not line.startswith("#")]


def assign(paths: Sequence[str], tree: ImageTree, layer_count: int) -> tuple[list[list[str]], list[str]]:
    """Return for each layer (lowest first) the names it puts in front, and the paths that no layer has.

    A path belongs to the topmost layer that has it. Symbolic links are followed, each belonging to its own layer:
    whoever lists /bin/sh needs the link /bin, the link sh and the shell.
    """
    wanted: list[dict[str, None]] = [{} for _ in range(layer_count)]
    missing: list[str] = []
    for path in paths:
        passed, found = tree.follow(path)
        for number, name in passed:
            wanted[number].setdefault(name)
        if not found:
            missing.append(path)
    return [list(names) for names in wanted], missing
