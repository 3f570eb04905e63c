"""Figures of what reaches the daemon at all: FUSE requests by kind, and its processor time."""

import hashlib
import os
import random
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from integration.bench.figure import BUILD, EROFS, Figure, fetched_node, push_lazy
from integration.bench.turns import seconds
from integration.harness.daemon import Table
from integration.harness.node import Node, node
from integration.harness.registry import Registry
from integration.harness.scratch import drop_caches
from integration.images.sample import sample_image

# Only the file that is asked for is fetched, not its neighbours.
ALONE: Table = {"fetch": {"background": False, "prefetch": False, "demand_window": 0}, "cache": {"min_free": 0}}
SMALL_FILES = 201
SMALL_SIZE = 1 << 20
SHARD_DIGITS = 2
WALK_ROUNDS = 5
WALK = ("sh", "-c", "find / -xdev -ls >/dev/null; find / -xdev -type f -exec cat {} + >/dev/null")
TICKS_OF_CHANCE = 2
"""Housekeeping comes every two seconds: a period may hold one turn more than another one of the same length."""


def walking(registry: Registry) -> Figure:
    """Look at every name and attribute of an image of which no file has been fetched."""
    push_lazy(registry, sample_image(BUILD / "sample"), "sample")
    with node(registry, settings=ALONE, plane=EROFS) as lazy:
        lazy.pull("sample:lazy")
        with lazy.view("sample:lazy") as tree:
            before = lazy.fuse_requests()
            entries, calls = _walk(tree)
            asked = lazy.fuse_requests() - before
    detail = f"{calls} calls on {entries} entries; requests of any kind: {dict(asked) or 'none'}"
    what = "FUSE requests for stat, readdir, readlink, getxattr, listxattr on an image that is not fetched"
    return Figure(what, "0", str(sum(asked.values())), not asked, detail)


def fetching(registry: Registry) -> Figure:
    """Read small files that are not there, and read them again: in the same view, and in another one."""
    push_lazy(registry, sample_image(BUILD / "sample"), "sample")
    with node(registry, settings=ALONE, plane=EROFS) as lazy:
        lazy.pull("sample:lazy")
        with lazy.view("sample:lazy") as tree:
            warm_up, *names = _small_files(tree)
            (tree / warm_up).read_bytes()  # finds the directories above the two-digit ones
            before = lazy.fuse_requests()
            contents = {hashlib.sha256((tree / name).read_bytes()).hexdigest() for name in names}
            first = lazy.fuse_requests() - before
            before = lazy.fuse_requests()
            drop_caches()
            for name in names:
                (tree / name).read_bytes()
            again = lazy.fuse_requests() - before
        with lazy.view("sample:lazy") as tree:
            before = lazy.fuse_requests()
            for name in names:
                (tree / name).read_bytes()
            elsewhere = lazy.fuse_requests() - before
    shards = {digest[:SHARD_DIGITS] for digest in contents}
    most = len(contents) + len(shards)
    lookups = first.pop("lookup", 0)
    met = lookups <= most and not first and not again and not elsewhere
    return Figure(
        f"FUSE requests for {len(contents)} small files in {len(shards)} two-digit directories: "
        "before they are fetched, after, and in another container's overlay",
        f"≤ {most} LOOKUP, 0, 0",
        f"{lookups} LOOKUP, {sum(again.values())}, {sum(elsewhere.values())}",
        met,
        f"others: {dict(first) or 'none'}, after: {dict(again) or 'none'}, elsewhere: {dict(elsewhere) or 'none'}",
    )


def processor(registry: Registry) -> Figure:
    """Processor time of the daemon while a container walks and reads a fetched image, against equally long idleness."""
    push_lazy(registry, sample_image(BUILD / "sample"), "sample")
    with fetched_node(registry, "sample:lazy") as lazy:
        container = lazy.start(lazy.pull("sample:lazy"), "sleep", "600")
        before, busy, idle, length = lazy.fuse_requests(), 0, 0, 0.0
        for _ in range(WALK_ROUNDS):
            ticks, took = _ticks_of(lazy, partial(container.exec, WALK))
            busy, length = busy + ticks, length + took
            idle += _ticks_of(lazy, partial(time.sleep, took))[0]
        asked = lazy.fuse_requests() - before
    per_tick_ms = 1000 // os.sysconf("SC_CLK_TCK")
    return Figure(
        "daemon's processor time while a container walks and reads a fetched image, beyond that of idleness",
        "0 ms",
        f"{max(busy - idle, 0) * per_tick_ms} ms",
        busy - idle <= TICKS_OF_CHANCE,
        f"{busy * per_tick_ms} ms, idle {idle * per_tick_ms} ms, in {length:.1f} s each; FUSE requests: {dict(asked) or 'none'}",
    )


def _walk(tree: Path) -> tuple[int, int]:
    """Stat, list, follow and look at the attributes of everything; how many entries there are and how often was asked."""
    entries = calls = 0
    for folder, folders, files in os.walk(tree):
        calls += 1
        for name in (*folders, *files):
            path = os.path.join(folder, name)
            entries += 1
            calls += 3
            os.lstat(path)
            os.listxattr(path, follow_symlinks=False)
            with suppress(OSError):  # it has none
                os.getxattr(path, "security.capability", follow_symlinks=False)
            if os.path.islink(path):
                os.readlink(path)
                calls += 1
    return entries, calls


def _small_files(tree: Path) -> list[str]:
    """Relative names of small files with something in them, spread over the tree."""
    found = []
    for folder, _, names in os.walk(tree):
        paths = (Path(folder, name) for name in names)
        small = (path for path in paths if not path.is_symlink() and path.is_file() and _is_small(path))
        found += [str(path.relative_to(tree)) for path in small]
    return random.Random(6).sample(sorted(found), SMALL_FILES)


def _is_small(path: Path) -> bool:
    return 0 < path.stat().st_size <= SMALL_SIZE


def _ticks_of(lazy: Node, action: Callable[[], object]) -> tuple[int, float]:
    """The daemon's clock ticks while something is done with nothing in memory, and the seconds that takes."""
    drop_caches()  # also before idleness: the daemon's own pages have to come back then too
    ticks = _ticks(lazy)
    took = seconds(action)
    return _ticks(lazy) - ticks, took


def _ticks(lazy: Node) -> int:
    """Processor time of the daemon in clock ticks. Source: proc(5), /proc/pid/stat, utime and stime."""
    fields = Path(f"/proc/{lazy.daemon.process.pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])
