"""What Cleanup frees, what it keeps, and what a start finds after a crash."""

import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from snapshotter.errors import NotLazy, StoreError
from snapshotter.service import cleanup
from snapshotter.service.cleanup import Cleanup, LayerGuard
from tests.doubles.lazy_layers import Offer
from tests.service.node import Node
from tests.service.remote_labels import L1, L2, prepare_remote

SECOND_NS = 10**9


def directories(node: Node) -> set[str]:
    """The names below the snapshots' directory."""
    return {path.name for path in (node.top / "r/snapshots").iterdir()}


def test_remove_only_unlinks_and_cleanup_deletes(node: Node) -> None:
    client = node.client
    client.layer("one", "", lambda top: (top / "file").touch())
    client.layer("two", "one", lambda top: (top / "file2").touch())
    client.view("v", "two")
    client.remove("v")
    client.remove("two")
    assert directories(node) == {"1", "2", "3"}
    client.cleanup()
    assert directories(node) == {"1"}
    assert {path.name for path in (node.top / "l").iterdir()} == {"1"}
    client.remove("one")
    client.cleanup()
    assert directories(node) == set()
    assert list((node.top / "l").iterdir()) == []
    client.cleanup()


def test_identifiers_are_not_used_twice(node: Node) -> None:
    node.client.prepare("a")
    node.client.remove("a")
    node.client.cleanup()
    node.restart()
    [mount] = node.client.prepare("a")
    assert mount.source == str(node.directories.fs(2))


def test_a_layer_goes_when_its_last_snapshot_went(node: Node) -> None:
    node.offers[L1] = Offer("sha256:t1")
    name = prepare_remote(node, "c1", L1)
    other = prepare_remote(node, "c2", L1)
    node.client.remove(name)
    node.client.cleanup()
    assert node.lazy.released == []
    node.client.remove(other)
    node.client.cleanup()
    assert node.lazy.released == [1]
    assert node.state.layers() == []


def test_layers_resolved_ahead_are_waited_for(node: Node) -> None:
    node.lazy.record(L2, Offer("sha256:t2"))
    node.client.cleanup()
    assert node.lazy.released == []
    later = Cleanup(
        node.state,
        node.directories,
        node.lazy,
        node.guard,
        clock_ns=lambda: node.state.layer(1).created_ns + 601 * SECOND_NS,
    )
    later.run()
    assert node.lazy.released == [1]


def test_a_layer_that_a_prepare_is_about_to_name_stays(node: Node) -> None:
    node.offers[L1] = Offer("sha256:t1")
    node.client.remove(prepare_remote(node, "c1", L1))
    node.lazy.gate.clear()
    with ThreadPoolExecutor(1) as pool:
        pulling = pool.submit(prepare_remote, node, "c1", L1)
        assert node.lazy.entered.acquire(timeout=30)
        assert node.lazy.entered.acquire(timeout=30)
        node.client.cleanup()
        node.lazy.gate.set()
        name = pulling.result(30)
    assert node.lazy.released == []
    assert node.client.usage(name) == (1000, 10)


@pytest.mark.parametrize("fault", [StoreError("it is ill"), TimeoutError("it is ill")])
def test_a_layer_that_cannot_be_dropped_is_tried_again(
    node: Node, caplog: pytest.LogCaptureFixture, fault: Exception
) -> None:
    node.offers |= {L1: Offer("sha256:t1"), L2: Offer("sha256:t2")}
    for chain, layer in (("c1", L1), ("c2", L2)):
        node.client.remove(prepare_remote(node, chain, layer))
    node.lazy.release_fault = fault
    node.client.cleanup()
    assert "it is ill" in caplog.text
    node.lazy.release_fault = None
    node.client.cleanup()
    assert node.lazy.released == [1, 2]


def test_a_prepare_waits_for_a_layer_that_is_being_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    guard = LayerGuard()
    entered = threading.Event()

    def want() -> None:
        with guard.wanted(L1):
            entered.set()

    with ThreadPoolExecutor(1) as pool:
        with guard.leaving(L1) as free:
            assert free
            waiting = pool.submit(want)
            with guard.leaving(L1) as twice:
                assert not twice
            assert not entered.is_set()
        waiting.result(30)
    monkeypatch.setattr(cleanup, "_LEAVING_WAIT_S", 0.0)
    with guard.leaving(L1), pytest.raises(NotLazy, match="still being removed"), guard.wanted(L1):
        pass


def test_a_crash_between_directory_and_record_leaves_nothing(node: Node) -> None:
    node.client.prepare("kept")
    node.directories.create(2, with_work=True, owner=None)
    (node.top / "r/snapshots/gone-9-x/fs/deep").mkdir(parents=True)
    node.restart()
    assert directories(node) == {"1"}
    [mount] = node.client.prepare("next")
    assert mount.source == str(node.directories.fs(2))


def test_a_start_names_snapshots_that_lost_their_directory(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    node.client.prepare("base-key")
    node.client.commit("base", "base-key")
    node.client.prepare("container")
    node.client.view("seen", "base")
    for number in (1, 2, 3):
        for name in ("fs", "work"):
            path = node.top / f"r/snapshots/{number}/{name}"
            if path.exists():
                path.rmdir()
    node.restart()
    messages = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(messages) == 2
    assert "'base'" in messages[0]
    assert "'container'" in messages[1]
    # Still there for containerd, which remembers it, and removable.
    node.client.remove("container")
    with pytest.raises(grpc.RpcError):
        node.client.usage("base")
