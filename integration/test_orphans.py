"""Whenever the daemon is killed: after its next start nothing lies in its directories that belongs to nothing."""

import random
import re
import signal
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

import grpc
import pytest

from integration.conftest import StartNode
from integration.harness.cri import Container
from integration.harness.daemon import Table
from integration.harness.node import Node
from integration.harness.process import wait_for
from integration.harness.registry import Registry
from integration.images.dialects import push_built
from integration.images.trial import FILES_IN_FOLDER, FOLDERS, PROBE, programs
from tests.doubles.layers import dir, file, layer

QUOTA = 3 << 20
BUSY: Table = {
    "fetch": {"background": True, "background_delay_s": 0},
    "cache": {"min_free": 0, "quota": QUOTA},
}
"""Files come by themselves, and leave as fast: there is no room for half of them."""
LONGEST_S = 0.7
TIDY_S = 60.0
IN_ROOT = re.compile(
    r"lock|(state|cache)\.db(-wal|-shm)?|snapshots|tocs|index|erofs|manifests|objects|late|partial|unproven"
)
OBJECT = re.compile(r"[0-9a-f]{64}(-[0-9a-f]{32})?")
PARTIAL = re.compile(r"[0-9a-f]{64}\.(data|map)")


def push_image(registry: Registry, number: int) -> str:
    """orphans:<number>, of two layers that no other has."""
    dice = random.Random(number)
    files = [file(f"data/{name}", dice.randbytes(8000)) for name in range(100)]
    with registry.client() as client:
        push_built(
            client,
            f"orphans:{number}",
            [
                layer(*programs(), dir("data"), *files),
                layer(file("large", dice.randbytes(900_000)), chunk_size=1 << 17),
            ],
        )
    return f"orphans:{number}"


def rows(this: Node, query: str) -> set[str]:
    """The first column of a query on state.db, as text."""
    with closing(sqlite3.connect(f"file:{this.daemon.root}/state.db?mode=ro", uri=True)) as db:
        return {str(value) for (value, *_) in db.execute(query)}


def orphans(this: Node) -> list[str]:
    """What lies in root and run directory and belongs to nothing."""
    return [*orphans_of_cache(this.daemon.root), *orphans_of_layers(this), *orphans_of_snapshots(this)]


def orphans_of_cache(root: Path) -> Iterator[str]:
    yield from (str(path) for path in root.iterdir() if not IN_ROOT.fullmatch(path.name))
    for path in (path for path in (root / "objects").rglob("*") if path.is_file()):
        own = path.with_name(path.name[:64])
        if not OBJECT.fullmatch(path.name) or not own.exists() or not own.samefile(path):
            yield str(path)
    for path in (path for path in (root / "partial").rglob("*") if path.is_file()):
        if not PARTIAL.fullmatch(path.name) or len(list(path.parent.glob(f"{path.stem}.*"))) != len((".data", ".map")):
            yield str(path)


def orphans_of_layers(this: Node) -> Iterator[str]:
    root = this.daemon.root
    tocs = {toc.removeprefix("sha256:") for toc in rows(this, "SELECT toc_digest FROM layers")}
    manifests = {name.removeprefix("sha256:") for name in rows(this, "SELECT manifest_digest FROM layer_sources")}
    for folder, named, least in (
        ("tocs", tocs, 1),
        ("index", tocs, 1),
        ("erofs", tocs, 0),
        ("manifests", manifests, 1),
    ):
        names = [path.name for path in (root / folder).iterdir()]
        yield from (f"{folder}/{name}" for name in names if re.split(r"[.-]", name)[0] not in named)
        yield from (f"{folder}/{name}" for name in names if name.endswith((".new", ".tmp")))
        yield from (
            f"no {folder} of {name}" for name in named if least and not any(one.startswith(name) for one in names)
        )
    unreferenced = this.daemon.json("cache", "usage")["unreferenced"]
    if unreferenced:
        yield f"{unreferenced} bytes of files that no layer names"


def orphans_of_snapshots(this: Node) -> Iterator[str]:
    ordinary = rows(
        this, "SELECT id FROM snapshots WHERE layer_number IS NULL AND NOT (kind = 1 AND parent_id IS NOT NULL)"
    )
    live = rows(this, "SELECT id FROM snapshots")
    yield from (
        f"snapshots/{path.name}" for path in (this.daemon.root / "snapshots").iterdir() if path.name not in ordinary
    )
    links = (path.name for path in (this.daemon.run_dir / "l").iterdir())
    yield from (f"l/{name}" for name in links if name.startswith(".") or (name.isdecimal() and name not in live))
    layers = rows(this, "SELECT number FROM layers")
    if (mounts := this.daemon.run_dir / "e").exists():
        yield from (f"e/{path.name}" for path in mounts.iterdir() if path.name not in layers)
    served = {mount.path for mount in this.mounts() if mount.kind in {"erofs", "fuse.estargz"}}
    wanted = {str(this.daemon.run_dir / "fuse"), *(str(mounts / number) for number in layers)}
    yield from (f"mount {path}" for path in served - wanted)


def keep_busy(this: Node, box: Container, name: str, old: str) -> None:
    """Pull an image, remove another, and read of a third, as long as there is somebody who answers."""
    paths = [f"/{folder}/{n}" for folder in FOLDERS for n in (*range(FILES_IN_FOLDER), "large", "program")]
    with ThreadPoolExecutor(3) as threads:
        ends: list[Future[object]] = [
            threads.submit(lambda: this.pull(name)),
            threads.submit(lambda: this.remove_image(this.reference(old))),
            threads.submit(lambda: box.exec([PROBE, "each", "read", *random.sample(paths, len(paths))])),
        ]
        time.sleep(random.uniform(0, LONGEST_S))
        this.daemon.stop(signal.SIGKILL)
        this.daemon.start()
        for end in ends:
            with suppress(grpc.RpcError):
                end.result()


def kill_in_the_middle_of_everything(
    start_node: StartNode, registry: Registry, trial_image: str, plane: str, rounds: int
) -> None:
    names = [push_image(registry, number) for number in range(3)]
    this = start_node(BUSY, plane=plane)
    box = this.start(this.pull(trial_image), "/bin/busybox", "sleep", "1000000")
    for number in range(rounds):
        keep_busy(this, box, names[number % 3], names[(number + 1) % 3])
        this.wait_until_served()
    found: list[str] = []

    def tidy() -> bool:
        try:
            found[:] = orphans(this)
        except FileNotFoundError as gone:  # files come and go while they are looked at
            found[:] = [str(gone)]
        return not found

    try:
        wait_for(tidy, "tidy directories", TIDY_S)
    finally:
        assert found == []


def test_nothing_is_left_behind_by_a_killed_daemon(
    start_node: StartNode, registry: Registry, trial_image: str, plane: str
) -> None:
    kill_in_the_middle_of_everything(start_node, registry, trial_image, plane, 4)


@pytest.mark.long
def test_nothing_is_left_behind_by_a_daemon_killed_50_times(
    start_node: StartNode, registry: Registry, trial_image: str, plane: str
) -> None:
    kill_in_the_middle_of_everything(start_node, registry, trial_image, plane, 50)
