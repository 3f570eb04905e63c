"""`snapshotter top` while real containers wait for a registry that does not answer, on both planes."""

import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from integration.conftest import ALONE
from integration.harness.cri import Container
from integration.harness.daemon import Table
from integration.harness.node import Node, node
from integration.harness.process import wait_for
from integration.harness.registry import Registry
from integration.images.dialects import push_built
from integration.images.trial import probe_program, programs
from snapshotter.daemon.waiting import ROWS_SHOWN
from tests.doubles.layers import BuiltLayer, dir, file, layer

NAME = "top:lazy"
SLEEP = ("/bin/busybox", "sleep", "1000")
PATIENT: Table = {**ALONE, "fetch": {**ALONE["fetch"], "on_outage": "wait"}, "registry": {"retries": 0}}
MANY = 1000
MAPPER = Path(__file__).parent / "images" / "mapper.c"
READ_ALL = """
import sys, threading
threading.stack_size(1 << 18)
read = lambda number: open(f"{sys.argv[1]}/many/{number}", "rb").read()
for number in range(int(sys.argv[2])):
    threading.Thread(target=read, args=(number,)).start()
"""
"""Threads of one process of the host, each of which reads a file of its own."""


def layers() -> list[BuiltLayer]:
    """Programs, and in a layer above them what containers wait for: a directory for each test."""
    with tempfile.TemporaryDirectory() as place:
        made = Path(place, "mapper")
        subprocess.run(["gcc", "-O2", "-static", "-s", "-o", made, MAPPER], check=True)
        mapper = made.read_bytes()
    noise = random.Random(11).randbytes(300_000) + b"x"
    waited = [
        dir("wait"), dir("gone"), dir("many"),
        file("wait/file", b"a file"), file("wait/program", probe_program() + b"waited for", mode=0o755),
        file("wait/mapped", noise), file("gone/file", b"another file"),
        *(file(f"many/{number}", b"many %d" % number) for number in range(MANY)),
    ]  # fmt: skip
    return [layer(*programs(), file("bin/mapper", mapper, mode=0o755)), layer(*waited)]


@pytest.fixture(scope="module")
def built(registry: Registry) -> list[BuiltLayer]:
    """The image in the registry."""
    made = layers()
    with registry.client() as client:
        push_built(client, NAME, made)
    return made


@pytest.fixture(scope="module")
def this(registry: Registry, built: list[BuiltLayer], plane: str) -> Iterator[Node]:
    """A node of each plane on which reads wait for ever, with the image pulled."""
    with node(registry, settings=PATIENT, plane=plane) as made:
        made.pull(NAME)
        yield made


def started(this: Node) -> Container:
    """A running container whose programs are on the node."""
    box = this.start(this.reference(NAME), *SLEEP)
    assert box.exec(["/bin/busybox", "sh", "-c", "/bin/probe uid; /bin/mapper"]).stdout == "0 0\n"
    return box


def begin(box: Container, command: str) -> None:
    """Start something in a container and wait for nothing. Nothing of it may hold the exec open."""
    box.exec(["/bin/busybox", "sh", "-c", f"exec > /tmp/said 2>&1 < /dev/null; {command} &"])


def top(this: Node) -> dict[str, Any]:
    """The picture for programs."""
    answer: dict[str, Any] = this.daemon.json("top", "--once", "--interval", "0.1")
    return answer


def waiting(this: Node) -> int:
    """How many requests of the kernel wait."""
    answer = top(this)
    return int(answer["reads_waiting"] + answer["lookups_waiting"])


def waits(this: Node, folder: str) -> dict[tuple[str, str], dict[str, Any]]:
    """Rows with a process, of the files in a folder, by container and path."""
    rows = top(this)["waits"]
    return {
        (row["container"], row["path"]): row for row in rows if row["pid"] and row["path"].startswith(f"/{folder}/")
    }


def settled(this: Node, folder: str, expected: set[tuple[str, str]]) -> dict[tuple[str, str], dict[str, Any]]:
    """The rows of a folder, once they are these and stay so: what is looked up on the erofs plane goes on as a read."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}

    def stay() -> bool:
        rows.clear()
        rows.update(waits(this, folder))
        return set(rows) == expected and {row["kind"] for row in rows.values()} == {"read"}

    wait_for(stay, f"waits of {expected}")
    return rows


def test_each_process_is_shown_with_its_container_file_and_layer_until_the_bytes_come(
    this: Node, built: list[BuiltLayer]
) -> None:
    one, two = started(this), started(this)
    expected = {(one.id, f"/wait/{name}") for name in ("file", "program", "mapped")} | {(two.id, "/wait/file")}
    with this.hanging():
        for box in (one, two):
            begin(box, "/bin/busybox cat /wait/file")
        begin(one, "/wait/program uid")
        begin(one, "/bin/mapper /wait/mapped")
        first, later = settled(this, "wait", expected), settled(this, "wait", expected)
        for key, row in later.items():
            assert row["waited_ns"] > first[key]["waited_ns"] > 0
            assert row["path_seen"] or row["path"] == "/wait/program"
            assert (row["namespace"], row["layer"]) == ("k8s.io", built[1].digest)
            assert row["image"] == this.reference(NAME)
        readers = {later[box.id, "/wait/file"]["pid"] for box in (one, two)}
        assert readers == this.processes("/wait/file")
        mapper = later[one.id, "/wait/mapped"]
        assert mapper["process"] == "mapper"
        assert mapper["pid"] in this.processes("/wait/mapped")

        def shown() -> bool:
            text = this.daemon.command("top", "--once", "--interval", "0.1")
            return "container-" in text and "/wait/program" in text

        wait_for(shown, "a text with containers and files")
    wait_for(lambda: not top(this)["waits"], "the bytes", 60)
    assert "nobody waits" in this.daemon.command("top", "--once", "--interval", "0.1")


def test_a_process_that_is_killed_while_it_waits_is_shown_no_more(this: Node) -> None:
    one, two = started(this), started(this)
    with this.hanging():
        for box in (one, two):
            begin(box, "/bin/busybox cat /gone/file")
        rows = settled(this, "gone", {(box.id, "/gone/file") for box in (one, two)})
        os.kill(rows[one.id, "/gone/file"]["pid"], signal.SIGKILL)
        settled(this, "gone", {(two.id, "/gone/file")})
    wait_for(lambda: not top(this)["waits"], "the bytes", 60)


def test_a_thousand_waiting_reads_are_counted_and_the_answer_stays_short(this: Node) -> None:
    box = started(this)
    with this.hanging():
        argv = [sys.executable, "-c", READ_ALL, str(this.rootfs(box)), str(MANY)]
        with subprocess.Popen(argv, stderr=subprocess.DEVNULL) as reader:
            try:
                wait_for(lambda: waiting(this) >= MANY, "a thousand waits", 120)
                answer: dict[str, Any] = {}

                def looked() -> bool:
                    answer.update(top(this))
                    return bool(answer["processes_seen"])

                # A look at all their threads that takes too long is given up.
                wait_for(looked, "a look at the processes")
                assert len(answer["waits"]) == ROWS_SHOWN
                # One process of the host, for many files.
                assert {row["pid"] for row in answer["waits"] if row["pid"]} == {reader.pid}
                # What is on the node is read meanwhile, and commands are answered.
                assert box.exec(["/bin/probe", "uid"]).stdout == "0 0\n"
            finally:
                reader.kill()


def test_what_came_is_shown_by_image(this: Node) -> None:
    box = started(this)
    box.exec(["/bin/busybox", "cat", "/wait/file"])
    answer = this.daemon.json("cache", "list")
    row = next(row for row in answer["images"] if row["image"] == this.reference(NAME))
    assert (row["lazy"], row["ordinary"], row["failed"]) == (2, 0, 0)
    assert 0 < row["present"] < row["size"]
    of_layers = [one for one in this.daemon.json("layers") if one["image"] == this.reference(NAME)]
    assert row["present"] <= sum(one["present"] for one in of_layers)
    files = this.daemon.json("cache", "list", "--files")
    assert sum(one["present"] for one in files) >= row["present"]
