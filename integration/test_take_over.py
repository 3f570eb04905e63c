"""The daemon ends in every way, at every moment, under containers that read: they notice a pause and nothing else."""

import random
import signal
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from integration.conftest import ALONE, StartNode
from integration.harness.cri import Container
from integration.harness.daemon import Table
from integration.harness.node import Node
from integration.harness.process import wait_for
from integration.harness.registry import Registry
from integration.images.readers import (
    faults_of,
    gaps_of,
    push_readers_image,
    start_probe,
    start_reader,
    stop_readers,
)

READERS = 2
LONGEST_LIFE_S = 1.0
IMAGE = "readers:take-over"


@pytest.fixture(scope="module")
def readers_image(registry: Registry) -> str:
    with registry.client() as client:
        push_readers_image(client, IMAGE, seed=11)
    return IMAGE


def begin_reading(node: Node, image: str) -> list[Container]:
    """Readers and, last, a probe; all have begun."""
    pulled = node.pull(image)
    containers = [start_reader(node, pulled, seed) for seed in range(READERS)]
    containers.append(start_probe(node, pulled))
    for container in containers:
        wait_for(container.has_printed, "the beginning of a reader", 60)
    return containers


def kill_often(node: Node, times: int, chance: random.Random) -> list[float]:
    """Kill the daemon at random moments, also while it starts, and start it at once; returns when, by the monotonic clock."""
    killed = []
    for _ in range(times):
        time.sleep(chance.uniform(0, LONGEST_LIFE_S))
        killed.append(time.monotonic())
        node.daemon.stop(signal.SIGKILL)
        node.daemon.begin()
    node.daemon.process.wait_until(lambda: node.daemon.address.is_socket())
    node.wait_until_served()
    return killed


def pauses(killed: list[float], lines: list[str]) -> list[float]:
    """What a probe waited after the last kill that fell into a read of it, for each such read, in seconds."""
    found = []
    for gap in gaps_of(lines):
        end_s = gap.began_s + gap.took_s
        hits = [moment for moment in killed if gap.began_s - 0.05 <= moment <= end_s]
        if hits:
            found.append(end_s - hits[-1])
    return found


def kills_go_unnoticed(node: Node, image: str, times: int, seed: int) -> None:
    containers = begin_reading(node, image)
    killed = kill_often(node, times, random.Random(seed))
    printed = stop_readers(node, containers)
    assert [faults_of(lines) for lines in printed] == [[]] * len(containers)
    found = pauses(killed, printed[-1])
    print(
        f"{node.daemon.json('status')['plane']}: {len(killed)} kills, {len(found)} reads met one; pause median "
        f"{statistics.median(found):.3f} s, longest {max(found):.3f} s; {[lines[-1] for lines in printed]}"
    )


SLOW_TO_GIVE_UP: Table = {**ALONE, "take_over": {"abort_after_s": 900}}


@pytest.mark.parametrize("times", [8, pytest.param(100, marks=pytest.mark.long)])
def test_containers_of_both_planes_read_on_whenever_the_daemon_is_killed(
    start_node: StartNode, readers_image: str, erofs: str, times: int
) -> None:
    nodes = [start_node(SLOW_TO_GIVE_UP, plane=plane) for plane in (erofs, "fuse")]
    with ThreadPoolExecutor(2) as threads:
        for done in [
            threads.submit(kills_go_unnoticed, node, readers_image, times, seed) for seed, node in enumerate(nodes)
        ]:
            done.result()
