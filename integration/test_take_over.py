"""The daemon ends in every way, at every moment, under containers that read: they notice a pause and nothing else."""

import hashlib
import os
import random
import re
import signal
import statistics
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from integration.conftest import ALONE, StartNode
from integration.harness.cri import Container
from integration.harness.daemon import Table
from integration.harness.node import Node
from integration.harness.process import accepts, wait_for
from integration.harness.registry import Registry
from integration.images.readers import (
    VICTIM,
    VICTIM_DATA,
    faults_of,
    gaps_of,
    push_readers_image,
    start_probe,
    start_reader,
    stop_readers,
)

READERS = 2
LONGEST_LIFE_S = 0.6
LONGEST_START_S = 0.4
STARTING = 0.25
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
    """Kill the daemon at random moments and start it at once; returns when, by the monotonic clock.

    Every fourth time it is killed while it starts.
    """
    killed = []
    for _ in range(times):
        if chance.random() < STARTING:
            time.sleep(chance.uniform(0, LONGEST_START_S))
        else:
            node.daemon.process.wait_until(lambda: accepts(str(node.daemon.address)), 60)
            time.sleep(chance.uniform(0, LONGEST_LIFE_S))
        killed.append(time.monotonic())
        node.daemon.stop(signal.SIGKILL)
        node.daemon.begin()
    node.daemon.process.wait_until(lambda: accepts(str(node.daemon.address)), 60)
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
    print(f"{node.daemon.json('status')['plane']}: {len(killed)} kills; {[lines[-1] for lines in printed]}")
    if found := pauses(killed, printed[-1]):
        print(f"{len(found)} reads met one; pause median {statistics.median(found):.3f} s, longest {max(found):.3f} s")


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


NEWER = (sys.executable, "-m", "integration.other_daemons", "newer")


@pytest.fixture
def reading(start_node: StartNode, readers_image: str, plane: str) -> Iterator[tuple[Node, list[Container]]]:
    """A node whose containers read; in the end none has seen a fault."""
    node = start_node(ALONE, plane=plane)
    containers = begin_reading(node, readers_image)
    yield node, containers
    assert [faults_of(lines) for lines in stop_readers(node, containers)] == [[]] * len(containers)


def test_daemon_that_is_stopped_and_replaced_by_a_newer_version_goes_on_with_the_same_mount(
    reading: tuple[Node, list[Container]],
) -> None:
    node, (reader, *_) = reading
    before, mounts = node.daemon.json("status"), node.mounts()
    node.daemon.stop(signal.SIGTERM)
    # Nobody serves: an exec waits, and so does who asks for something that is nowhere yet.
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(reader.exec, ["/bin/busybox", "cat", "/data/3/3"])
        time.sleep(0.5)
        node.daemon.program = NEWER
        node.daemon.start()
        assert waiting.result(60).exit_code == 0
    node.wait_until_served()
    after = node.daemon.json("status")
    assert (after["version"], after["session"], after["take_overs"]) == ("99.0", before["session"], 1)
    assert after["keeper_pid"] == before["keeper_pid"]
    assert after["problems"] == []
    assert [mount.path for mount in node.mounts()] == [mount.path for mount in mounts]


def test_what_a_container_was_about_to_change_when_no_daemon_was_there_is_changed_by_the_next(
    reading: tuple[Node, list[Container]],
) -> None:
    """The kernel copies a directory up under the lock of all renames of that file system, and asks us meanwhile."""
    node, (reader, *_) = reading
    assert reader.exec(["/bin/busybox", "true"]).exit_code == 0
    node.daemon.stop(signal.SIGKILL)
    with ThreadPoolExecutor(1) as thread:
        making = thread.submit(
            reader.exec, ["/bin/busybox", "sh", "-c", "mkdir /data/2/new && mv /data/2/new /data/3/"]
        )
        time.sleep(1)
        node.daemon.start()
        assert making.result(60).exit_code == 0
    node.wait_until_served()
    assert reader.exec(["/bin/busybox", "rmdir", "/data/3/new"]).exit_code == 0


def test_next_daemon_takes_over_from_another_keeper_after_the_first_was_killed(
    reading: tuple[Node, list[Container]],
) -> None:
    node, _ = reading
    first = node.daemon.json("status")["keeper_pid"]
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: node.daemon.json("status")["keeper_pid"] not in (0, first), "another keeper")
    node.restart_snapshotter(signal.SIGKILL)
    assert node.daemon.json("status")["take_overs"] == 1


def test_who_waits_is_told_once_no_daemon_came_in_time_and_others_get_a_fresh_mount(
    start_node: StartNode, readers_image: str, plane: str
) -> None:
    node = start_node({**ALONE, "take_over": {"abort_after_s": 2}}, plane=plane)
    image = node.pull(readers_image)
    probe = start_probe(node, image)
    wait_for(probe.has_printed, "the beginning of a probe", 60)
    session = node.daemon.json("status")["session"]
    node.daemon.stop(signal.SIGKILL)
    wait_for(lambda: probe.has_printed("fault"), "the end of the wait", 60)
    node.daemon.start()
    node.wait_until_served()
    status = node.daemon.json("status")
    assert status["session"] != session
    assert [name.rpartition("/")[2] for name in status["containers_to_restart"]] == [probe.id]
    assert any(probe.id in problem for problem in status["problems"])
    assert "cannot be taken over" in node.daemon.log() or "lost" in node.daemon.log()
    probe.remove()
    assert node.daemon.json("status")["containers_to_restart"] == []
    assert node.run(image, "/bin/busybox", "wc", "-c", "/data/7/7").exit_code == 0


def test_readers_go_on_where_the_kernel_sends_nothing_again(
    start_node: StartNode, readers_image: str, plane: str
) -> None:
    """As before Linux 6.9: only who lists a directory at that moment may be told, by ESTALE, to begin again; and a program that is
    started while one daemon dies and again while the next does, since the kernel asks once more, not twice.
    """
    node = start_node({**ALONE, "take_over": {"resend": False}}, plane=plane)
    containers = begin_reading(node, readers_image)
    for _ in range(5):
        time.sleep(random.uniform(0.5, 0.9))
        node.restart_snapshotter(signal.SIGKILL)
    printed = stop_readers(node, containers)
    faults = [fault for lines in printed for fault in faults_of(lines)]
    assert [one for one in faults if not re.fullmatch(r"fault [0-9]+ (readdir|opendir|exec) \S+ ESTALE", one)] == []


def test_request_that_crashes_the_daemon_fails_alone(start_node: StartNode, readers_image: str, plane: str) -> None:
    node = start_node(ALONE, plane=plane)
    containers = begin_reading(node, readers_image)
    # The fuse plane is asked for names of the image, the other for contents.
    word = VICTIM[1:] if plane == "fuse" else hashlib.sha256(VICTIM_DATA).hexdigest()
    node.daemon.stop(signal.SIGTERM)
    node.daemon.program = (sys.executable, "-m", "integration.other_daemons", "crash-at", word)
    node.daemon.start()
    node.wait_until_served()
    starts = 0
    with ThreadPoolExecutor(1) as thread:
        asking = thread.submit(containers[0].exec, ["/bin/busybox", "cat", VICTIM])
        while not asking.done():
            if not node.daemon.process.running:
                starts += 1
                node.daemon.begin()
            time.sleep(0.01)
        answer = asking.result()
    assert answer.exit_code != 0
    assert "Input/output error" in answer.stderr
    assert 1 <= starts <= 3
    node.wait_until_served()
    assert [faults_of(lines) for lines in stop_readers(node, containers)] == [[]] * len(containers)


def test_daemon_that_stands_by_takes_over_as_soon_as_the_other_is_gone(
    reading: tuple[Node, list[Container]],
) -> None:
    node, _ = reading
    for _ in range(3):
        standby = node.daemon.begin_standby()
        node.daemon.succeed(standby, signal.SIGKILL)
        node.wait_until_served()
    assert node.daemon.json("status")["take_overs"] == 3
