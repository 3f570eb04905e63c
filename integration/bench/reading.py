"""Figures of reading: one large file, many names, many small files; each against the same tree unpacked."""

import os
import random
import subprocess
import tarfile
from collections.abc import Sequence
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path

from integration.bench.figure import BUILD, EROFS, FUSE, Figure, fetched_node, push_lazy, side_by_side, unpacked
from integration.bench.turns import Comparison, alternate, in_turns, seconds
from integration.harness.registry import Registry
from integration.harness.scratch import drop_caches
from integration.images.oci import Image, packed
from integration.images.sample import distribution, sample_image

LARGE_FILE = "large"
LARGE_SIZE = 50_000_000
PIECE = 1 << 20
SMALL_READ = 4096
SMALL_FILES = 500
SMALL_ROUNDS = 4
OPENING_ROUNDS = 15
ONCE_ROUNDS = 9
SEQUENTIAL_ROUNDS = 25
MOST_SEQUENTIAL = 1.05
MOST_ONCE = 1.5
LEAST_SPEED = 0.8
MOST_LISTING = {EROFS: 1.5, FUSE: 7.0}
MOST_OPENING = {EROFS: 1.3, FUSE: 20.0}


def sequential(registry: Registry) -> Figure:
    """Read a 50 MB file that is on the node already, with a cold page cache, against two native copies of it."""
    push_lazy(registry, _image(), "reading")
    with ExitStack() as stay:
        trees = [stay.enter_context(unpacked(registry, "reading:lazy"))]
        lazy = stay.enter_context(fetched_node(registry, "reading:lazy"))
        trees.append(stay.enter_context(lazy.view("reading:lazy")))
        trees.append(stay.enter_context(unpacked(registry, "reading:lazy")))
        reads = [lambda tree=tree: seconds(lambda: _read(tree / LARGE_FILE)) for tree in trees]
        found = Comparison(*in_turns(reads, drop_caches, SEQUENTIAL_ROUNDS))
    native, other = (LARGE_SIZE / took / 1e6 for took in found.seconds)
    return Figure(
        "sequential read of a fetched 50 MB file, cold page cache",
        f"≤ {MOST_SEQUENTIAL} × beyond native's spread of {found.spread:.2f}",
        f"{found.ratio:.3f} ×",
        found.ratio <= MOST_SEQUENTIAL * found.spread,
        f"{other:.0f} MB/s, native {native:.0f} MB/s; {SEQUENTIAL_ROUNDS} rounds, native copies {found.copies:.3f} apart",
    )


def fuse_sequential(registry: Registry) -> Figure:
    """The same on the fuse plane, in its own terms."""
    push_lazy(registry, _image(), "reading")
    with side_by_side(registry, "reading:lazy", FUSE) as (native, lazy):
        one, other = alternate(
            lambda: seconds(lambda: _read(native / LARGE_FILE)),
            lambda: seconds(lambda: _read(lazy / LARGE_FILE)),
            drop_caches,
        )
    speed = one / other
    detail = f"{LARGE_SIZE / other / 1e6:.0f} MB/s, native {LARGE_SIZE / one / 1e6:.0f} MB/s"
    what = "fuse plane: sequential read of a fetched 50 MB file, cold page cache"
    return Figure(what, f"≥ {LEAST_SPEED} × native speed", f"{speed:.2f} ×", speed >= LEAST_SPEED, detail)


def listing(registry: Registry) -> Figure:
    """List a distribution's tree with cold dentries."""
    return _listing(registry, EROFS)


def fuse_listing(registry: Registry) -> Figure:
    """The same on the fuse plane."""
    return _listing(registry, FUSE)


def opening(registry: Registry) -> Figure:
    """Open small files and read their first 4 KiB, everything warm."""
    return _opening(registry, EROFS)


def fuse_opening(registry: Registry) -> Figure:
    """The same on the fuse plane."""
    return _opening(registry, FUSE)


def once(registry: Registry) -> Figure:
    """Read every file of an image once, nothing in memory: neither contents nor names."""
    push_lazy(registry, sample_image(BUILD / "sample"), "sample")
    with side_by_side(registry, "sample:lazy", EROFS) as (native, lazy):
        names = _files(lazy)  # the other has the landmarks of the format too
        one, other = alternate(
            lambda: seconds(lambda: _read_all(native, names)),
            lambda: seconds(lambda: _read_all(lazy, names)),
            drop_caches,
            ONCE_ROUNDS,
        )
        known, other_known = alternate(
            lambda: seconds(lambda: _read_all(native, names)),
            lambda: seconds(lambda: _read_all(lazy, names)),
            lambda: drop_caches(1),
            ONCE_ROUNDS,
        )
    ratio = other / one
    detail = f"{other:.2f} s, native {one:.2f} s; with names in memory {other_known / known:.2f} ×"
    what = f"every file of a fetched image once ({len(names)} files), cold page cache"
    return Figure(what, f"≤ {MOST_ONCE} × native time", f"{ratio:.2f} ×", ratio <= MOST_ONCE, detail)


def _listing(registry: Registry, plane: str) -> Figure:
    push_lazy(registry, _image(), "reading")
    with side_by_side(registry, "reading:lazy", plane) as (native, lazy):
        entries = _find(lazy)
        one, other = alternate(
            lambda: seconds(lambda: _find(native)), lambda: seconds(lambda: _find(lazy)), lambda: drop_caches(2)
        )
    ratio, most = other / one, MOST_LISTING[plane]
    detail = f"{other:.2f} s, native {one:.2f} s"
    what = f"{plane} plane: find -ls over {entries} entries, cold dentries, in an overlay"
    return Figure(what, f"≤ {most:g} × native time", f"{ratio:.2f} ×", ratio <= most, detail)


def _opening(registry: Registry, plane: str) -> Figure:
    push_lazy(registry, _image(), "reading")
    with side_by_side(registry, "reading:lazy", plane) as (native, lazy):
        names = _small_files(lazy)
        paths = {tree: [f"{tree}/{name}" for name in names] for tree in (native, lazy)}
        for tree in (native, lazy):
            _open_all(paths[tree])
        one, other = alternate(
            lambda: seconds(lambda: _open_all(paths[native])),
            lambda: seconds(lambda: _open_all(paths[lazy])),
            rounds=OPENING_ROUNDS,
        )
    ratio, each, most = other / one, 1e6 / (len(names) * SMALL_ROUNDS), MOST_OPENING[plane]
    detail = f"{other * each:.1f} µs, native {one * each:.1f} µs"
    what = f"{plane} plane: open and read 4 KiB, warm"
    return Figure(what, f"≤ {most:g} × native time", f"{ratio:.2f} ×", ratio <= most, detail)


def _image() -> Image:
    """A distribution's tree, and above it a layer with one large file, so that every view is an overlay."""

    def large(tar: tarfile.TarFile) -> None:
        info = tarfile.TarInfo(LARGE_FILE)
        info.size = LARGE_SIZE
        tar.addfile(info, BytesIO(random.Random(50).randbytes(LARGE_SIZE)))

    write, recipe = distribution()
    return packed(BUILD / "reading", recipe, (write, large), {"Cmd": ["sh"]})


def _read(path: str | Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        while os.read(descriptor, PIECE):
            pass
    finally:
        os.close(descriptor)


def _read_all(tree: Path, names: Sequence[str]) -> None:
    for name in names:
        _read(f"{tree}/{name}")


def _find(tree: Path) -> int:
    """List a tree; return how many entries it has."""
    return subprocess.run(["find", str(tree), "-ls"], stdout=subprocess.PIPE, check=True).stdout.count(b"\n")


def _files(tree: Path) -> list[str]:
    """Relative names of all regular files, sorted: the same order on every side."""
    found = []
    for folder, _, names in os.walk(tree):
        paths = (Path(folder, name) for name in names)
        found += [str(path.relative_to(tree)) for path in paths if not path.is_symlink() and path.is_file()]
    return sorted(found)


def _small_files(tree: Path) -> list[str]:
    """Relative names of regular files of about a page, spread over the tree."""
    found = [name for name in _files(tree) if 0 < (tree / name).stat().st_size <= 4 * SMALL_READ]
    return sorted(random.Random(4).sample(found, min(SMALL_FILES, len(found))))


def _open_all(paths: Sequence[str]) -> None:
    for _ in range(SMALL_ROUNDS):
        for path in paths:
            descriptor = os.open(path, os.O_RDONLY)
            os.read(descriptor, SMALL_READ)
            os.close(descriptor)
