"""Figures of reading: one large file, many names, many small files; each against the same tree unpacked."""

import os
import random
import subprocess
import tarfile
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from integration.bench.figure import BUILD, Figure, alternate, push_lazy, seconds, side_by_side
from integration.harness.registry import Registry
from integration.harness.scratch import drop_caches
from integration.images.oci import Image, packed
from integration.images.sample import distribution

LARGE_FILE = "large"
LARGE_SIZE = 50_000_000
PIECE = 1 << 20
SMALL_READ = 4096
SMALL_FILES = 500
SMALL_ROUNDS = 4
LEAST_SPEED = 0.8
MOST_LISTING = 7.0
MOST_OPENING = 20.0


def sequential(registry: Registry) -> Figure:
    """Read a 50 MB file that is on the node already, with a cold page cache."""
    push_lazy(registry, _image(), "reading")
    with side_by_side(registry, "reading") as (native, lazy, _):
        _read(lazy / LARGE_FILE)
        one, other = alternate(
            lambda: seconds(lambda: _read(native / LARGE_FILE)),
            lambda: seconds(lambda: _read(lazy / LARGE_FILE)),
            drop_caches,
        )
    speed = one / other
    detail = f"{LARGE_SIZE / other / 1e6:.0f} MB/s, native {LARGE_SIZE / one / 1e6:.0f} MB/s"
    what = "sequential read of a fetched 50 MB file, cold page cache"
    return Figure(what, f"≥ {LEAST_SPEED} × native speed", f"{speed:.2f} ×", speed >= LEAST_SPEED, detail)


def listing(registry: Registry) -> Figure:
    """List a distribution's tree with cold dentries."""
    push_lazy(registry, _image(), "reading")
    with side_by_side(registry, "reading") as (native, lazy, _):
        entries = _find(lazy)
        one, other = alternate(
            lambda: seconds(lambda: _find(native)), lambda: seconds(lambda: _find(lazy)), lambda: drop_caches(2)
        )
    ratio = other / one
    detail = f"{other:.2f} s, native {one:.2f} s"
    what = f"find -ls over {entries} entries, cold dentries, in an overlay"
    return Figure(what, f"≤ {MOST_LISTING:.0f} × native time", f"{ratio:.1f} ×", ratio <= MOST_LISTING, detail)


def opening(registry: Registry) -> Figure:
    """Open small files and read their first 4 KiB, everything warm."""
    push_lazy(registry, _image(), "reading")
    with side_by_side(registry, "reading") as (native, lazy, _):
        names = _small_files(native)
        for tree in (native, lazy):
            _open_all(tree, names)
        one, other = alternate(
            lambda: seconds(lambda: _open_all(native, names)), lambda: seconds(lambda: _open_all(lazy, names))
        )
    ratio, each = other / one, 1e6 / (len(names) * SMALL_ROUNDS)
    detail = f"{other * each:.0f} µs, native {one * each:.1f} µs"
    what = "open and read 4 KiB, warm"
    return Figure(what, f"≤ {MOST_OPENING:.0f} × native time", f"{ratio:.1f} ×", ratio <= MOST_OPENING, detail)


def _image() -> Image:
    """A distribution's tree, and above it a layer with one large file, so that every view is an overlay."""

    def large(tar: tarfile.TarFile) -> None:
        info = tarfile.TarInfo(LARGE_FILE)
        info.size = LARGE_SIZE
        tar.addfile(info, BytesIO(random.Random(50).randbytes(LARGE_SIZE)))

    write, recipe = distribution()
    return packed(BUILD / "reading", recipe, (write, large), {"Cmd": ["sh"]})


def _read(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        while os.read(descriptor, PIECE):
            pass
    finally:
        os.close(descriptor)


def _find(tree: Path) -> int:
    """List a tree; return how many entries it has."""
    return subprocess.run(["find", str(tree), "-ls"], stdout=subprocess.PIPE, check=True).stdout.count(b"\n")


def _small_files(tree: Path) -> list[str]:
    """Relative names of regular files of about a page, spread over the tree."""
    found = []
    for folder, _, names in os.walk(tree):
        for name in sorted(names):
            path = Path(folder, name)
            if not path.is_symlink() and path.is_file() and 0 < path.stat().st_size <= 4 * SMALL_READ:
                found.append(str(path.relative_to(tree)))
    return sorted(random.Random(4).sample(found, min(SMALL_FILES, len(found))))


def _open_all(tree: Path, names: Sequence[str]) -> None:
    for _ in range(SMALL_ROUNDS):
        for name in names:
            descriptor = os.open(f"{tree}/{name}", os.O_RDONLY)
            os.read(descriptor, SMALL_READ)
            os.close(descriptor)
