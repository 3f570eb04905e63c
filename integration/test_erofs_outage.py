"""What a container of the erofs plane meets while the registry is away: EIO for what is not on the node, and nothing else."""

import errno
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from integration.conftest import ALONE, StartNode
from integration.harness.cri import Container
from integration.harness.daemon import Table
from integration.harness.node import Node, node
from integration.harness.process import wait_for
from integration.harness.registry import Registry
from integration.images.trial import CHUNK, FILES_IN_FOLDER, PROBE, content, expected, large
from snapshotter.plane.erofs.gate import PATIENCE_S

SLEEP = ("/bin/busybox", "sleep", "1000")
LONGEST_DEATH_S = 6.0
"""From a kill to the end of a process that waits for content: less than five of them take if each is waited for anew."""


def settings(on_outage: str) -> Table:
    """No read brings more than its file, and one that fails has not tried for long."""
    return {**ALONE, "fetch": {**ALONE["fetch"], "on_outage": on_outage}, "registry": {"retries": 0}}


@pytest.fixture(scope="module")
def refusing(registry: Registry, trial_image: str, erofs: str) -> Iterator[Node]:
    """A node on which reads fail at once."""
    yield from ready(registry, trial_image, erofs, "error")


@pytest.fixture(scope="module")
def patient(registry: Registry, trial_image: str, erofs: str) -> Iterator[Node]:
    """A node on which reads wait for ever."""
    yield from ready(registry, trial_image, erofs, "wait")


def ready(registry: Registry, image: str, plane: str, on_outage: str) -> Iterator[Node]:
    """A node that has pulled the image."""
    with node(registry, settings=settings(on_outage), plane=plane) as made:
        made.sandbox()
        made.pull(image)
        yield made


def started(this: Node) -> Container:
    """A running container whose tools are on the node."""
    box = this.start(this.reference("trial:lazy"), *SLEEP)
    assert box.exec(["/bin/busybox", "sh", "-c", "/bin/probe uid"]).stdout == "0 0\n"
    return box


def read(box: Container, path: str) -> str:
    """What the probe says of a file."""
    return box.exec([PROBE, "read", path]).stdout


def refused_at_once(box: Container, path: str) -> bool:
    """Whether a file cannot be opened; one whose answer took longer may be, and not be read."""
    began = time.monotonic()
    said = read(box, path)
    return said == "open EIO\n" or (said == "read EIO\n" and time.monotonic() > began + PATIENCE_S)


def sh(box: Container, script: str) -> str:
    """Everything that a shell in the container prints."""
    output = box.exec(["/bin/busybox", "sh", "-c", script])
    return output.stdout + output.stderr


def comes_back(box: Container, path: str, data: bytes) -> None:
    """The same container reads a file that it could not read before."""
    wait_for(lambda: read(box, path) == expected(data), f"the return of {path}")


def test_what_is_not_on_the_node_is_an_io_error_until_the_registry_is_back(refusing: Node) -> None:
    box = started(refusing)
    assert read(box, "/outage/0") == expected(content("outage", 0))
    with refusing.outage():
        assert refused_at_once(box, "/outage/1")
        assert read(box, "/outage/large") == "read EIO\n"
        assert sh(box, "/outage/program uid").rstrip().endswith("/output error")
        assert read(box, "/outage/0") == expected(content("outage", 0))
        assert read(box, "/outage/absent") == "open ENOENT\n"
        assert sh(box, "echo 12 > /outage/new; cat /outage/new; rm /outage/2") == "12\n"
    comes_back(box, "/outage/1", content("outage", 1))
    comes_back(box, "/outage/3", content("outage", 3))
    comes_back(box, "/outage/large", large("outage"))
    assert box.exec(["/outage/program", "uid"]).stdout == "0 0\n"


def test_read_that_waited_in_vain_is_an_io_error_until_the_registry_is_back(
    start_node: StartNode, trial_image: str, erofs: str
) -> None:
    this = start_node(settings("wait:2s"), plane=erofs)
    this.pull(trial_image)
    box = started(this)
    with this.outage(), ThreadPoolExecutor() as threads:
        began = time.monotonic()
        appended = threads.submit(sh, box, "echo more >> /outage/2")
        # Nobody waits in a lookup for so long: the open succeeds, and the read waits on.
        assert read(box, "/outage/1") == "read EIO\n"
        assert time.monotonic() - began > 1.9
        assert appended.result().endswith("nput/output error\n")
    comes_back(box, "/outage/1", content("outage", 1))
    wait_for(lambda: sh(box, "echo more >> /outage/2") == "", "the return of /outage/2")
    assert read(box, "/outage/2") == expected(content("outage", 2) + b"more\n")


def test_every_file_that_is_not_there_fails_with_the_same_error_however_it_is_used(refusing: Node) -> None:
    box = started(refusing)
    uses = {10: "cat {}", 11: "echo x >> {}", 12: "cp {} /tmp/copy", 13: "truncate -s 1 {}", 14: "sha1sum {}"}
    # The kernel looks for content before it copies attributes up.
    changes = {16: "chmod 600 {}", 17: "mv {} /tmp/17", 18: "ln {} /tmp/linked"}
    places = {number: f"/outage/{number}" for number in uses | changes}
    with refusing.outage():
        for number, use in (uses | changes).items():
            began, said = time.monotonic(), sh(box, use.format(places[number]))
            if number in changes and not said and time.monotonic() > began + PATIENCE_S:
                # An answer that took longer is an inode, whose attributes are there.
                places[number] = "/tmp/17" if number == 17 else places[number]
                continue
            assert said.count("nput/output error") + said.count("I/O error") == 1, said
            assert "No such file" not in said
        assert failed(refusing.rootfs(box) / "outage/4") == errno.EIO
    for number, place in places.items():
        comes_back(box, place, content("outage", number))


def failed(path: Path) -> int:
    """The errno with which a file cannot be read."""
    with pytest.raises(OSError) as caught:
        path.read_bytes()
    assert caught.value.errno is not None
    return caught.value.errno


def test_names_and_attributes_are_there_while_the_registry_is_away(refusing: Node) -> None:
    box = started(refusing)
    with refusing.outage():
        listed = sh(box, "ls -lnR /kill /layers /special | wc -l; stat -c %s /kill/7; readlink /special/link")
    assert listed.splitlines()[1:] == [str(len(content("kill", 7))), "../change/1"]
    assert int(listed.splitlines()[0]) > FILES_IN_FOLDER


def test_parts_of_a_large_file_that_are_there_stay_readable(refusing: Node) -> None:
    box, data = started(refusing), large("damage")
    with open(refusing.rootfs(box) / "damage/large", "rb", buffering=0) as file:
        assert file.read(100) == data[:100]
        with refusing.outage():
            assert os.pread(file.fileno(), 100, 500_000) == data[500_000:500_100]
            with pytest.raises(OSError, match="Input/output error"):
                os.pread(file.fileno(), 100, 2 * CHUNK + 8192)
        comes_back(box, "/damage/large", data)


class Waiter:
    """A process in a container that waits for a file."""

    def __init__(self, this: Node, box: Container, path: str) -> None:
        before = this.processes(path)
        # Its output goes to a file: nothing of it may hold the exec open.
        box.exec(["/bin/busybox", "sh", "-c", f"/bin/probe read {path} > /tmp/said 2>&1 < /dev/null &"])
        wait_for(lambda: bool(this.processes(path) - before), "the start of a reader")
        (self.pid,) = this.processes(path) - before
        # The first to ask sleeps interruptibly until a signal comes, the others and readers do not: S, D.
        wait_for(lambda: self.state() in {"S", "D"}, f"process {self.pid} to wait")
        self.began = time.monotonic()

    def state(self) -> str:
        """As in /proc; "" once it is gone."""
        try:
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0].replace("Z", "")
        except (FileNotFoundError, ProcessLookupError):
            return ""

    def kill(self) -> "Waiter":
        self.killed = time.monotonic()
        os.kill(self.pid, signal.SIGKILL)
        return self

    def died_after(self) -> float:
        """Seconds from its kill to its end, or to when that was looked at."""
        wait_for(lambda: not self.state(), f"the end of process {self.pid}")
        return time.monotonic() - self.killed


def ended(*waiters: Waiter) -> None:
    """Each is gone soon after its kill."""
    assert max(one.died_after() for one in waiters) < LONGEST_DEATH_S


def test_process_killed_while_it_waits_in_open_is_gone_and_others_go_on(patient: Node) -> None:
    box = started(patient)
    assert read(box, "/kill/1") == expected(content("kill", 1))
    with patient.hanging():
        first = Waiter(patient, box, "/kill/0").kill()
        assert first.died_after() < LONGEST_DEATH_S
        second = Waiter(patient, box, "/kill/0")
        assert read(box, "/kill/1") == expected(content("kill", 1))
    wait_for(lambda: not second.state(), "the end of the one that was not killed")
    assert sh(box, "cat /tmp/said") == expected(content("kill", 0))


def test_processes_of_one_container_that_wait_for_one_file_are_all_gone_when_killed(patient: Node) -> None:
    box = started(patient)
    with patient.hanging():
        waiters = [Waiter(patient, box, "/kill/2") for _ in range(6)]
        ended(*(one.kill() for one in reversed(waiters[1:])))
        assert waiters[0].state()
    wait_for(lambda: not waiters[0].state(), "the end of the one that was not killed")


def test_processes_of_several_containers_that_wait_for_one_file_are_all_gone_when_killed(patient: Node) -> None:
    boxes = [started(patient) for _ in range(3)]
    with patient.hanging():
        waiters = [Waiter(patient, box, "/kill/3") for box in boxes * 2]
        ended(*(one.kill() for one in waiters))
    wait_for(lambda: read(boxes[0], "/kill/3") == expected(content("kill", 3)), "the registry's return")


def test_who_waits_behind_one_that_is_killed_does_not_begin_to_wait_anew(patient: Node) -> None:
    boxes = [started(patient) for _ in range(4)]
    with patient.hanging():
        first, *others, last = (Waiter(patient, box, "/kill/4") for box in (boxes[0], *boxes[1:3] * 2, boxes[3]))
        # No signal reaches those who wait for the answer to the first, and one of them asks next.
        for one in others:
            one.kill()
        wait_for(lambda: time.monotonic() - first.began > 1.2, "the moment")
        ended(first.kill(), *others)
        assert last.state()
    wait_for(lambda: not last.state(), "the end of the one that was not killed")
    assert sh(boxes[-1], "cat /tmp/said") == expected(content("kill", 4))


def test_process_killed_while_it_waits_in_read_is_gone_at_once(patient: Node) -> None:
    box = started(patient)
    with patient.hanging():
        one, two = Waiter(patient, box, "/kill/large"), Waiter(patient, box, "/kill/5")
        ended(one.kill())
        # The open is through by now.
        time.sleep(2)
        ended(two.kill())
    assert read(box, "/kill/5") == expected(content("kill", 5))
    assert read(box, "/kill/large") == expected(large("kill"))
