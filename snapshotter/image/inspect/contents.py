"""What a layer's table of contents lists, and what of several layers a container sees. Pure."""

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from snapshotter.format.attributes import Clock
from snapshotter.format.tar_entries import NO_PREFETCH_LANDMARK, PREFETCH_LANDMARK, RESERVED, WHITEOUT, clean_name
from snapshotter.format.toc import Entry

_OPAQUE = ".wh..wh..opq"


class Row(NamedTuple):
    """An entry. `offset` says where in the blob the content begins, None where there is none."""

    name: str
    type: str
    size: int
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    link_name: str
    device: tuple[int, int]
    offset: int | None
    chunks: int


@dataclass(frozen=True, slots=True)
class Listing:
    """The entries of a layer, without the marks that a converter put among them. `landmark` is such a mark's name, None if there is none.

    `prefetch_size` bytes of the blob, None without a mark, are fetched in one go; `prefetch_files` begin in them. `chunks` are pieces that
    can be fetched and verified one by one, `content_size` is the size of all files unpacked.
    """

    rows: Sequence[Row]
    entries: int
    chunks: int
    content_size: int
    landmark: str | None
    prefetch_size: int | None
    prefetch_files: int


def listing(entries: Iterable[Entry]) -> Listing:
    """Read the entries of a table of contents that was found sound.

    Raises:
        FormatError: a time that is none.
    """
    clock = Clock()
    rows: list[Row] = []
    landmark: str | None = None
    prefetch_size: int | None = None
    marked = False
    for entry in entries:
        name = clean_name(entry.name)
        if entry.type == "chunk":
            if not marked:
                rows[-1] = rows[-1]._replace(chunks=rows[-1].chunks + 1)
            continue
        if marked := name in RESERVED:
            # With both, prefetching wins: it is what the daemon does.
            if name == PREFETCH_LANDMARK:
                landmark, prefetch_size = name, entry.offset
            elif name == NO_PREFETCH_LANDMARK and landmark is None:
                landmark, prefetch_size = name, 0
            continue
        full = entry.type == "reg" and entry.size > 0
        rows.append(
            Row(
                name,
                entry.type,
                entry.size if full else 0,
                entry.mode & 0o7777,
                entry.uid,
                entry.gid,
                clock.mtime_ns(entry.modtime),
                entry.link_name,
                (entry.dev_major, entry.dev_minor),
                entry.offset if full else None,
                1 if full else 0,
            )
        )
    return Listing(
        rows,
        entries=len(rows),
        chunks=sum(row.chunks for row in rows),
        content_size=sum(row.size for row in rows),
        landmark=landmark,
        prefetch_size=prefetch_size,
        prefetch_files=sum(is_first(row, prefetch_size) for row in rows),
    )


def is_first(row: Row, prefetch_size: int | None) -> bool:
    """Whether a file is in front of the mark behind the first `prefetch_size` bytes, None without a mark."""
    return row.offset is not None and row.offset < (prefetch_size or 0)


class SizedFile(NamedTuple):
    """A file that a container sees, and the layer that it is from, counted from 1."""

    path: str
    size: int
    layer: int


class SizedDirectory(NamedTuple):
    """A directory that a container sees, and the bytes of everything below it."""

    path: str
    size: int


# A directory by its names; a file as its size and layer.
_Directory = dict[str, "_Directory | tuple[int, int]"]


class SeenTree:
    """The files that a container sees of layers that are put one upon the other, with their sizes."""

    def __init__(self) -> None:
        self._root: _Directory = {}

    def add(self, number: int, rows: Sequence[Row]) -> None:
        """Put layer `number` on top. Source: OCI Image Specification 1.1, layer.md, "Whiteouts": they hide lower layers only."""
        for row in rows:
            parent, _, last = row.name.rpartition("/")
            if not last.startswith(WHITEOUT):
                continue
            directory = self._find(parent)
            if directory is None:
                continue
            if last == _OPAQUE:
                directory.clear()
            else:
                directory.pop(last.removeprefix(WHITEOUT), None)
        for row in rows:
            parent, _, last = row.name.rpartition("/")
            if not last or last.startswith(WHITEOUT):
                continue
            directory = self._made(parent)
            if row.type != "dir":
                directory[last] = (row.size, number)
            elif not isinstance(directory.get(last), dict):
                directory[last] = {}

    def biggest(self, count: int) -> tuple[int, list[SizedFile], list[SizedDirectory]]:
        """Bytes of all files, and the `count` biggest files and directories, biggest first."""
        # (number of the directory above, name, directory), each after the one above it. A path is made for those that are shown
        # only: hostile directories can be so many and so deep that all paths would take the machine's memory.
        order: list[tuple[int, str, _Directory]] = [(0, "", self._root)]
        for number, (_, _, directory) in enumerate(order):
            order += [(number, name, child) for name, child in directory.items() if isinstance(child, dict)]
        below = [sum(child[0] for child in one.values() if isinstance(child, tuple)) for _, _, one in order]
        for number in range(len(order) - 1, 0, -1):
            below[order[number][0]] += below[number]

        def path(number: int, name: str) -> str:
            names = [name]
            while number:
                number, above, _ = order[number]
                names.append(above)
            return "/".join(reversed(names))

        files = heapq.nlargest(
            count,
            (
                (child[0], number, name, child[1])
                for number, (_, _, directory) in enumerate(order)
                for name, child in directory.items()
                if isinstance(child, tuple) and child[0]
            ),
        )
        # The root is as large as everything, which is said otherwise.
        directories = heapq.nlargest(
            count, ((below[number], number) for number in range(1, len(order)) if below[number])
        )
        return (
            below[0],
            sorted((SizedFile(path(at, name), size, layer) for size, at, name, layer in files), key=_biggest_first),
            sorted((SizedDirectory(path(*order[at][:2]), size) for size, at in directories), key=_biggest_first),
        )

    def _find(self, path: str) -> _Directory | None:
        directory = self._root
        for name in filter(None, path.split("/")):
            child = directory.get(name)
            if not isinstance(child, dict):
                return None
            directory = child
        return directory

    def _made(self, path: str) -> _Directory:
        directory = self._root
        for name in filter(None, path.split("/")):
            child = directory.get(name)
            if not isinstance(child, dict):
                child = directory[name] = {}
            directory = child
        return directory


def _biggest_first(one: SizedFile | SizedDirectory) -> tuple[int, str]:
    return -one.size, one.path
