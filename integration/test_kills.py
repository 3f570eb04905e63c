"""The daemon is killed at moments that nobody chose: what comes next cleans up and goes on."""

import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import grpc

from integration.conftest import ALONE, StartNode
from integration.harness.node import Node
from integration.harness.process import wait_for
from integration.harness.registry import Registry
from integration.images.dialects import push_built
from integration.images.trial import PROBE, content, expected, programs
from tests.doubles.layers import dir, file, layer

ROUNDS = 10
LONGEST_PULL_S = 0.4
LONGEST_START_S = 0.6


def push_many(registry: Registry) -> None:
    """kills:0 and so on, each of three layers that no other has."""
    with registry.client() as client:
        for number in range(ROUNDS):
            lower = layer(
                *programs(), dir("data"), *(file(f"data/{n}", b"%d of %d\n" % (n, number)) for n in range(200))
            )
            upper = (layer(dir("data"), file(f"data/{name}-{number}", name.encode())) for name in ("middle", "top"))
            push_built(client, f"kills:{number}", [lower, *upper])


def faults(this: Node) -> list[str]:
    """What a killed daemon left on disk and among the mounts that belongs to nothing, and layers that are not lazy."""
    root, rows = this.daemon.root, this.daemon.json("layers")
    mounts = Counter(mount.path for mount in this.mounts() if mount.kind in {"erofs", "fuse.estargz"})
    lazy = {row["number"]: row for row in rows if row["state"] in {"lazy", "complete"}}
    wanted = {str(this.daemon.run_dir / "e" / str(number)) for number in lazy} | {str(this.daemon.run_dir / "fuse")}
    found = [f"mount {path} × {count}" for path, count in mounts.items() if count != 1 or path not in wanted]
    found += [f"no mount {path}" for path in wanted - mounts.keys()]
    counts = {name: len(list((root / name).iterdir())) for name in ("erofs", "index", "tocs")}
    # The pod's own layer is an ordinary one.
    found += [
        f"{row['image']}: {row['state']}" for row in rows if row not in lazy.values() and "pause" not in row["image"]
    ]
    return found + [f"{count} files in {name}" for name, count in counts.items() if count != len(lazy)]


def wait_until_tidy(this: Node, use: Callable[[], object], when: str) -> None:
    """What a killed daemon left goes soon after the next start, and what a layer lacks comes when a container uses it."""
    found: list[str] = []

    def tidy() -> bool:
        found[:] = faults(this)
        if found:
            use()
        return not found

    try:
        wait_for(tidy, f"tidy directories {when}")
    finally:
        assert found == [], when


def pull_with_kills(this: Node, numbers: range) -> int:
    """Pull images with a kill in the middle of each, then again; returns how many pulls the kill ended."""
    failures = 0
    with ThreadPoolExecutor(1) as thread:
        for number in numbers:
            name, moment = f"kills:{number}", random.uniform(0, LONGEST_PULL_S)
            pull = thread.submit(this.pull, name)
            time.sleep(moment)
            this.restart_snapshotter(signal.SIGKILL)
            failure = pull.exception()
            assert failure is None or isinstance(failure, grpc.RpcError)
            failures += failure is not None
            use = partial(this.run, this.pull(name), "/bin/busybox", "cat", f"/data/top-{number}", "/data/7")
            assert use().stdout == f"top7 of {number}\n", f"killed after {moment} s"
            wait_until_tidy(this, use, f"killed after {moment} s: {failure}")
    return failures


def test_daemon_killed_in_the_middle_of_a_pull_pulls_after_its_next_start(
    start_node: StartNode, registry: Registry, erofs: str
) -> None:
    push_many(registry)
    # Most of the time containerd waits before it tries again: two nodes do so at once.
    nodes = [start_node(ALONE, plane=erofs) for _ in range(2)]
    for this in nodes:
        this.sandbox()
    with ThreadPoolExecutor(2) as threads:
        halves = range(ROUNDS // 2), range(ROUNDS // 2, ROUNDS)
        assert sum(threads.map(pull_with_kills, nodes, halves)) > 0


def test_daemon_killed_while_it_starts_and_mounts_starts_again(
    start_node: StartNode, registry: Registry, trial_image: str, erofs: str
) -> None:
    this = start_node(ALONE, plane=erofs)
    image = this.pull(trial_image)
    assert this.run(image, PROBE, "read", "/restart/1").stdout == expected(content("restart", 1))
    with this.outage():
        this.daemon.stop(signal.SIGKILL)
        for _ in range(ROUNDS):
            this.daemon.begin()
            time.sleep(random.uniform(0, LONGEST_START_S))
            this.daemon.stop(signal.SIGKILL)
        this.daemon.start()
        this.wait_until_served()
        use = partial(this.run, image, PROBE, "read", "/restart/1")
        wait_until_tidy(this, use, "killed while it started")
        assert use().stdout == expected(content("restart", 1))
    assert this.run(image, PROBE, "read", "/restart/2").stdout == expected(content("restart", 2))
