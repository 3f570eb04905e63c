"""Files that are waited for, joined with the threads that wait: whose wait is whose."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from snapshotter.daemon.blocked import BlockedThread, Doing
from snapshotter.daemon.users import ContainerName
from snapshotter.daemon.waiting import ROWS_SHOWN, Rows, WaitedFile, path_of
from snapshotter.format.index import Index
from snapshotter.layer.layer import Layer
from snapshotter.layer.waits import Wait
from snapshotter.service.control_views import WaitKind, WaitView
from tests.doubles.layers import BuiltLayer, dir, file, hardlink, layer

BOX = ContainerName("c1", "k8s.io", "ns/pod/name")
NOW = 100.0
BUILT = layer(
    dir("bin/"), dir("lib/"), dir("lib/deep/"),
    file("bin/program", b"program"), file("lib/libc.so", b"libc"), file("lib/deep/equal", b"libc"),
    file("lib/linked", b"linked"), hardlink("lib/link", "lib/linked"), file("data", b"data"),
)  # fmt: skip


@pytest.fixture(scope="module")
def index() -> Index:
    return BUILT.index()


def node_of(index: Index, path: str, built: BuiltLayer = BUILT) -> int:
    return built.node(path, index)


class World:
    """One layer, files of it that are waited for, and the rows that come of it."""

    def __init__(self, index: Index) -> None:
        self.index = index
        record = SimpleNamespace(layer_digest="sha256:layer")
        self.layer = cast("Layer", SimpleNamespace(number=7, index=index, record=record))
        self.files: dict[bytes, WaitedFile] = {}

    def read(self, path: str, began: float, *hinted: int) -> None:
        node = node_of(self.index, path)
        self._wait(node, Wait(began, "node", self.index.digest(node), 7, node), set(hinted))

    def lookup(self, path: str, began: float, pid: int) -> None:
        node = node_of(self.index, path)
        self._wait(node, Wait(began, "node", self.index.digest(node), pid=pid), set())

    def _wait(self, node: int, wait: Wait, hinted: set[int]) -> None:
        made = WaitedFile(wait.digest, wait.began, holders=[(self.layer, node)])
        waited = self.files.setdefault(wait.digest, made)
        waited.waits.append(wait)
        waited.hinted |= hinted

    def rows(self, *threads: BlockedThread, exact_nodes: bool = False) -> list[WaitView]:
        state = cast("Any", SimpleNamespace(sources=lambda _number: [SimpleNamespace(reference="image:1")]))
        return Rows(state, self.files, NOW, exact_nodes=exact_nodes).of(threads)

    def seen(self, *threads: BlockedThread) -> list[tuple[str, int]]:
        return [(row.path, row.pid) for row in self.rows(*threads)]


@pytest.fixture
def world(index: Index) -> World:
    return World(index)


def thread(number: int, doing: Doing, *paths: str, pid: int = 0) -> BlockedThread:
    return BlockedThread(number, pid or number, "program", doing, paths, BOX)


def test_a_row_tells_all_of_a_wait(world: World) -> None:
    world.read("lib/libc.so", 90.0)
    world.read("lib/libc.so", 95.0)
    (row,) = world.rows(thread(70, Doing.CALL, "/dev/null", "/lib/libc.so"))
    assert row == WaitView(
        kind=WaitKind.READ,
        waited_ns=10_000_000_000,
        path="/lib/libc.so",
        path_seen=True,
        digest=f"sha256:{world.index.digest(node_of(world.index, 'lib/libc.so')).hex()}",
        size=4,
        layer="sha256:layer",
        image="image:1",
        reads=2,
        pid=70,
        process="program",
        container="c1",
        namespace="k8s.io",
        container_name="ns/pod/name",
    )


def test_several_containers_that_wait_for_one_file_have_a_row_each_and_threads_of_a_process_one(world: World) -> None:
    world.read("data", 90.0)
    world.read("bin/program", 80.0)
    threads = [
        thread(70, Doing.CALL, "/data"),
        thread(71, Doing.CALL, "/data", pid=70),
        thread(80, Doing.CALL, "/data"),
    ]
    assert world.seen(*threads) == [("/data", 70), ("/data", 80), ("/bin/program", 0)]


def test_another_path_of_equal_content_is_shown_as_the_process_has_it(world: World) -> None:
    world.read("lib/libc.so", 90.0)
    assert world.seen(thread(70, Doing.CALL, "/lib/deep/equal")) == [("/lib/deep/equal", 70)]


def test_execve_is_for_what_the_thread_has_opened(world: World) -> None:
    world.read("data", 80.0)
    world.read("lib/libc.so", 90.0, 70)
    assert world.seen(thread(70, Doing.CALL))[0] == ("/lib/libc.so", 70)
    # What it names itself is nearer than what it opened at some time.
    assert world.seen(thread(70, Doing.CALL, "/data"))[0] == ("/data", 70)


def test_a_page_fault_is_for_the_code_then_for_what_the_thread_opened_then_for_the_oldest(world: World) -> None:
    world.read("bin/program", 95.0)
    world.read("lib/linked", 92.0)
    world.read("data", 90.0)
    assert world.seen(thread(70, Doing.FAULT, "/bin/program", "/data", "/lib/link"))[0] == ("/bin/program", 70)
    assert world.seen(thread(70, Doing.FAULT, "/here", "/lib/link", "/data"))[0] == ("/data", 70)
    world.read("lib/linked", 92.0, 70)
    assert world.seen(thread(70, Doing.FAULT, "/here", "/data", "/lib/link"))[0] == ("/lib/link", 70)
    assert world.seen(thread(71, Doing.FAULT, "/here"))[0][1] == 0


def test_who_asks_at_the_gate_is_known_by_the_kernels_word_and_others_by_the_path_they_look_up(world: World) -> None:
    world.lookup("data", 99.0, 70)
    world.lookup("lib/libc.so", 98.5, 71)
    rows = world.rows(
        thread(70, Doing.LOOKUP), thread(72, Doing.LOOKUP, "/nowhere", "/data"), thread(73, Doing.LOOKUP, "/nowhere")
    )
    seen = [(row.path, row.path_seen, row.pid, row.kind) for row in rows]
    assert seen == [
        ("/lib/libc.so", False, 71, WaitKind.LOOKUP),
        ("/data", False, 70, WaitKind.LOOKUP),
        ("/data", True, 72, WaitKind.LOOKUP),
    ]


def test_whoever_looks_up_the_only_name_that_is_asked_for_waits_for_it(world: World) -> None:
    world.lookup("data", 99.0, 70)
    world.read("bin/program", 95.0, 73)
    assert world.seen(thread(73, Doing.LOOKUP))[0] == ("/data", 70)
    assert ("/data", 73) in world.seen(thread(73, Doing.LOOKUP))


def test_a_read_for_which_nobody_is_seen_to_wait_is_shown_last_without_a_process(world: World) -> None:
    world.read("data", 50.0, 70)
    world.read("lib/linked", 90.0)
    rows = world.rows(thread(71, Doing.CALL, "/lib/linked"), exact_nodes=True)
    assert [(row.path, row.pid, row.path_seen) for row in rows] == [("/lib/linked", 71, True), ("/data", 0, True)]


def test_a_file_with_several_names_may_have_been_opened_by_another(world: World) -> None:
    world.read("lib/linked", 90.0)
    (row,) = world.rows(exact_nodes=True)
    assert not row.path_seen


def test_rows_are_bounded(world: World) -> None:
    world.read("data", 90.0)
    assert len(world.rows(*(thread(number, Doing.CALL, "/data") for number in range(1, 1001)))) == ROWS_SHOWN


def test_paths_are_built_from_the_index(index: Index) -> None:
    for path in ("bin/program", "lib/deep/equal", "data"):
        assert path_of(index, node_of(index, path)) == f"/{path}"
    assert path_of(index, 0) == "/"
    assert Path(path_of(index, node_of(index, "lib/link"))).parent == Path("/lib")
