"""A cache far smaller than what containers read, on a disk that is no larger: every byte is right all the same."""

import random
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from integration.conftest import BUILD, StartNode
from integration.harness.cri import Container
from integration.harness.daemon import Table
from integration.harness.registry import Registry
from integration.images.bulk import MB, Bulk, bulk_image, content
from integration.images.trial import PROBE

SLEEP = ("/bin/busybox", "sleep", "1000000")
BATCH = 400
READERS = 2
SEED = 5


def settings(disk: int) -> Table:
    """Files leave when a tenth of the disk is left."""
    return {"fetch": {"background": False}, "cache": {"min_free": disk // 10}}


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


def read_far_more_than_fits(start_node: StartNode, registry: Registry, plane: str, size: int, disk: int) -> None:
    bulk = bulk_image(BUILD / f"bulk-{size // MB}", size)
    with registry.client() as client:
        bulk.push(client, f"bulk:{size // MB}")
    this = start_node(settings(disk), plane=plane, disk=disk)
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
    read_far_more_than_fits(start_node, registry, plane, 48 * MB, 16 << 20)


@pytest.mark.long
def test_containers_read_500_mb_through_a_disk_of_64(start_node: StartNode, registry: Registry, plane: str) -> None:
    read_far_more_than_fits(start_node, registry, plane, 500 * MB, 64 << 20)
