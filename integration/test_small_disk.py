"""A cache far smaller than what containers read, on a disk that is no larger: every byte is right all the same."""

import os
import random
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from integration.conftest import BUILD, StartNode
from integration.harness.cri import Container
from integration.harness.daemon import Table
from integration.harness.node import Node
from integration.harness.process import wait_for
from integration.harness.registry import Registry
from integration.images.bulk import MB, Bulk, bulk_image, content
from integration.images.trial import PROBE

SLEEP = ("/bin/busybox", "sleep", "1000000")
BATCH = 400
READERS = 2
OWN = 4 << 20
"""What the daemon writes besides the cache: databases and their logs."""


def limits(*, quota: int = 0, min_free: int = 0) -> Table:
    """Bounds of the cache; nothing comes but what is read, and its neighbours."""
    return {"fetch": {"background": False}, "cache": {"quota": quota, "min_free": min_free}}


def free(this: Node) -> int:
    """Bytes that the node's disk has left."""
    status = os.statvfs(this.daemon.root)
    return status.f_bavail * status.f_frsize


def truth(bulk: Bulk) -> dict[str, str]:
    """What the probe says of each file behind the word for how it read it."""
    return {path: f"ok {size} {zlib.crc32(content(path, size))}" for path, size in bulk.files.items()}


def batches(paths: Sequence[str]) -> Iterator[list[str]]:
    """The paths in an order that is none, as many at a time as one command line takes."""
    mixed = random.sample(list(paths), len(paths))
    yield from (mixed[start : start + BATCH] for start in range(0, len(mixed), BATCH))


def wrong_reads(box: Container, how: str, paths: Sequence[str], expected: dict[str, str]) -> list[str]:
    """Have a container read files; what differs from the truth."""
    wrong = []
    for batch in batches(paths):
        said = box.exec([PROBE, "each", how, *batch]).stdout.splitlines()
        wrong += [
            f"{path}: {line}" for path, line in zip(batch, said, strict=True) if line != f"{how} {expected[path]}"
        ]
    return wrong


def read_all(this: Node, registry: Registry, size: int) -> None:
    """Have containers read all of an image in several ways, each in its own order, and compare every file."""
    bulk = bulk_image(BUILD / f"bulk-{size // MB}", size)
    with registry.client() as client:
        bulk.push(client, f"bulk:{size // MB}")
    image = this.pull(f"bulk:{size // MB}")
    expected = truth(bulk)
    boxes = [this.start(image, *SLEEP) for _ in range(READERS)]
    for how in ("read", "map", "scatter"):
        with ThreadPoolExecutor(READERS) as threads:
            for wrong in threads.map(lambda box, how=how: wrong_reads(box, how, list(bulk.files), expected), boxes):
                assert wrong == []
    status = this.daemon.json("status")
    assert (status["integrity_failures"], status["read_errors"]) == (0, 0)


def test_containers_read_three_times_what_the_disk_holds(start_node: StartNode, registry: Registry, plane: str) -> None:
    disk = 16 << 20
    read_all(start_node(limits(min_free=disk // 10), plane=plane, disk=disk), registry, 48 * MB)


@pytest.mark.long
def test_containers_read_500_mb_through_a_disk_of_64(start_node: StartNode, registry: Registry, plane: str) -> None:
    disk = 64 << 20
    read_all(start_node(limits(min_free=disk // 10), plane=plane, disk=disk), registry, 500 * MB)


def test_containers_read_six_times_the_quota(start_node: StartNode, registry: Registry, plane: str) -> None:
    quota = 4 << 20
    this = start_node(limits(quota=quota), plane=plane)
    read_all(this, registry, 24 * MB)
    wait_for(lambda: this.daemon.json("status")["cache_used"] <= quota, "an eviction")
    assert "left it" in this.daemon.log()


def test_floor_of_free_space_is_kept_while_containers_read_more(start_node: StartNode, registry: Registry) -> None:
    disk = 64 << 20
    # The cache gets what is left, less than the image and more than the logs of databases at their largest.
    floor = disk // 8 * 5
    # On the fuse plane no container keeps a file that has left the cache.
    this = start_node(limits(min_free=floor), plane="fuse", disk=disk)
    read_all(this, registry, 24 * MB)
    assert free(this) > floor - OWN
    wait_for(lambda: free(this) >= floor, "an eviction")
    assert this.daemon.json("status")["cache_used"] > 0
