"""The rules of the snapshots service as a client sees them, over a real channel (containerd-contract 1 and 2)."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from snapshotter.api import snapshots_pb2 as pb
from tests.service.node import Client, Node

HOSTILE = "k8s.io/29/extract-740708864-VwT0 sha256:" + "a" * 64 + "/../../x\\\"'\n\t:,é\U0001f600"
OPAQUE = "containerd.io/gc.root"


def ns(stamp: Timestamp) -> int:
    """A protobuf time as nanoseconds."""
    return stamp.seconds * 10**9 + stamp.nanos


def refused(code: grpc.StatusCode, call: Callable[..., object], *args: object, **named: object) -> str:
    """The call fails with this status; its message."""
    with pytest.raises(grpc.RpcError) as caught:
        call(*args, **named)
    error = caught.value
    assert isinstance(error, grpc.Call)
    assert error.code() is code
    return error.details() or ""


def committed(client: Client, name: str, parent: str = "", labels: dict[str, str] | None = None) -> None:
    """A committed snapshot without content of its own."""
    client.prepare(f"{name}-key", parent)
    client.commit(name, f"{name}-key", labels)


def test_an_empty_store_lists_nothing_and_says_ok(client: Client) -> None:
    assert list(client.walk()) == []


def test_mounts_of_an_active_snapshot_without_parent(node: Node) -> None:
    [mount] = node.client.prepare("a")
    assert (mount.type, mount.source) == ("bind", str(node.directories.fs(1)))
    assert list(mount.options) == ["rw", "rbind"]
    assert node.client.mounts("a") == [mount]


def test_mounts_of_an_active_snapshot_with_parents(node: Node) -> None:
    committed(node.client, "one")
    committed(node.client, "two", "one")
    [mount] = node.client.prepare("a", "two")
    assert (mount.type, mount.source) == ("overlay", "overlay")
    assert list(mount.options) == [
        "index=off",
        f"workdir={node.directories.work(3)}",
        f"upperdir={node.directories.fs(3)}",
        f"lowerdir={node.top}/l/2:{node.top}/l/1",
    ]
    assert node.client.mounts("a") == [mount]


def test_mounts_of_views(node: Node) -> None:
    committed(node.client, "one")
    committed(node.client, "two", "one")
    [empty] = node.client.view("v0")
    [single] = node.client.view("v1", "one")
    [double] = node.client.view("v2", "two")
    assert (empty.type, empty.source, list(empty.options)) == ("bind", str(node.directories.fs(3)), ["ro", "rbind"])
    assert (single.type, single.source, list(single.options)) == (
        "bind", str(node.directories.fs(1)), ["ro", "rbind"],
    )  # fmt: skip
    assert (double.type, list(double.options)) == ("overlay", ["index=off", f"lowerdir={node.top}/l/2:{node.top}/l/1"])


def test_mounts_of_a_committed_or_missing_snapshot_are_refused(client: Client) -> None:
    committed(client, "one")
    refused(grpc.StatusCode.FAILED_PRECONDITION, client.mounts, "one")
    refused(grpc.StatusCode.NOT_FOUND, client.mounts, "none")


def test_stat_tells_name_parent_and_kind(client: Client) -> None:
    committed(client, "one")
    client.prepare("a", "one")
    client.view("v", "one")
    assert (client.stat("one").kind, client.stat("one").parent) == (pb.COMMITTED, "")
    assert (client.stat("a").kind, client.stat("a").parent) == (pb.ACTIVE, "one")
    assert (client.stat("v").kind, client.stat("v").name) == (pb.VIEW, "v")
    assert client.stat(client.stat("a").parent).name == "one"
    refused(grpc.StatusCode.NOT_FOUND, client.stat, "a-key")


def test_a_key_is_taken_once_whatever_the_kind(client: Client) -> None:
    committed(client, "one")
    client.prepare("a", "one")
    client.view("v", "one")
    for key in ("one", "a", "v"):
        refused(grpc.StatusCode.ALREADY_EXISTS, client.prepare, key, "one")
        refused(grpc.StatusCode.ALREADY_EXISTS, client.view, key, "one")


def test_a_parent_must_be_there_and_committed(client: Client) -> None:
    client.prepare("a")
    client.view("v")
    for call in (client.prepare, client.view):
        refused(grpc.StatusCode.NOT_FOUND, call, "x", "none")
        refused(grpc.StatusCode.INVALID_ARGUMENT, call, "x", "a")
        refused(grpc.StatusCode.INVALID_ARGUMENT, call, "x", "v")


def test_an_empty_key_is_refused(client: Client) -> None:
    refused(grpc.StatusCode.INVALID_ARGUMENT, client.prepare, "")
    client.prepare("a")
    refused(grpc.StatusCode.INVALID_ARGUMENT, client.commit, "", "a")


def test_commit_refuses_a_taken_name_and_leaves_the_key(client: Client) -> None:
    committed(client, "one")
    client.prepare("a")
    refused(grpc.StatusCode.ALREADY_EXISTS, client.commit, "one", "a")
    assert client.stat("a").kind == pb.ACTIVE


def test_commit_wants_an_active_key(client: Client) -> None:
    committed(client, "one")
    client.view("v", "one")
    refused(grpc.StatusCode.NOT_FOUND, client.commit, "x", "none")
    refused(grpc.StatusCode.FAILED_PRECONDITION, client.commit, "x", "v")
    refused(grpc.StatusCode.FAILED_PRECONDITION, client.commit, "x", "one")


def test_labels_of_the_commit_replace_those_of_the_active_snapshot(client: Client) -> None:
    client.prepare("a", labels={"active": "1", "both": "old", "empty": ""})
    assert dict(client.stat("a").labels) == {"active": "1", "both": "old"}
    before = time.time_ns()
    client.commit("one", "a", {"both": "new", "empty": ""})
    info = client.stat("one")
    assert dict(info.labels) == {"both": "new"}
    assert before <= ns(info.created_at) == ns(info.updated_at) <= time.time_ns()


def test_commit_with_a_parent_rebases_a_snapshot_that_had_none(client: Client) -> None:
    committed(client, "one")
    committed(client, "two")
    client.prepare("free")
    client.prepare("bound", "one")
    client.prepare("active")
    refused(grpc.StatusCode.INVALID_ARGUMENT, client.commit, "x", "bound", parent="two")
    refused(grpc.StatusCode.NOT_FOUND, client.commit, "x", "free", parent="none")
    refused(grpc.StatusCode.FAILED_PRECONDITION, client.commit, "x", "free", parent="active")
    client.commit("three", "free", parent="two")
    client.commit("four", "bound", parent="one")
    assert (client.stat("three").parent, client.stat("four").parent) == ("two", "one")


def test_a_snapshot_with_children_is_not_removed(client: Client) -> None:
    committed(client, "one")
    committed(client, "two", "one")
    client.prepare("a", "two")
    assert "remove" in refused(grpc.StatusCode.FAILED_PRECONDITION, client.remove, "one")
    assert "remove" in refused(grpc.StatusCode.FAILED_PRECONDITION, client.remove, "two")
    for key in ("a", "two", "one"):
        client.remove(key)
    assert client.names() == set()
    refused(grpc.StatusCode.NOT_FOUND, client.remove, "one")


def test_a_removed_key_serves_again_as_another_kind(client: Client) -> None:
    committed(client, "one")
    client.prepare("key", "one")
    client.remove("key")
    client.view("key", "one")
    client.remove("key")
    client.prepare("key")
    client.remove("one")
    client.commit("one", "key")
    assert client.stat("one").parent == ""


def test_update_replaces_all_labels_without_a_mask_and_ignores_the_rest(client: Client) -> None:
    committed(client, "base")
    committed(client, "one", "base", {OPAQUE: "then", "a": "1"})
    before = client.stat("one")
    after = client.update(
        "one", {"b": "2", "c": ""}, noise=pb.Info(parent="noise", kind=pb.ACTIVE, created_at=Timestamp(seconds=1))
    )
    assert dict(after.labels) == {"b": "2"}
    assert (after.parent, after.kind, after.created_at) == ("base", pb.COMMITTED, before.created_at)
    assert ns(before.updated_at) < ns(after.updated_at) <= time.time_ns()
    assert client.stat("one") == after


@pytest.mark.parametrize("key", ["committed", "active", "view", "committed2", "active2", "view2"])
def test_update_works_on_every_kind(client: Client, key: str) -> None:
    before = time.time_ns()
    committed(client, "committed")
    committed(client, "committed2", "committed")
    client.prepare("active")
    client.prepare("active2", "committed")
    client.view("view")
    client.view("view2", "committed")
    info = client.stat(key)
    assert before <= ns(info.created_at) == ns(info.updated_at) <= time.time_ns()
    assert dict(client.update(key, {"a": "1", OPAQUE: "x"}, "labels").labels) == {"a": "1", OPAQUE: "x"}
    assert dict(client.update(key, {OPAQUE: "y"}, f"labels.{OPAQUE}").labels) == {"a": "1", OPAQUE: "y"}
    assert dict(client.update(key, {}, "labels.a").labels) == {OPAQUE: "y"}


def test_update_of_anything_but_labels_changes_nothing(client: Client) -> None:
    committed(client, "one", labels={"a": "1"})
    before = client.stat("one")
    for path in ("parent", "kind", "created_at", "name", "labels.", "labelsx", ""):
        refused(grpc.StatusCode.INVALID_ARGUMENT, client.update, "one", {"a": "2"}, "labels.a", path)
    assert client.stat("one") == before
    refused(grpc.StatusCode.NOT_FOUND, client.update, "none", {}, "labels")


def test_list_gives_infos_equal_to_stats(client: Client) -> None:
    committed(client, "one", labels={"x": "y"})
    client.prepare("a", "one")
    client.view("v", "one")
    for info in client.walk():
        # A Stat while the List is running must not wait for it.
        assert client.stat(info.name) == info


def test_list_of_several_hundred_gives_each_once(client: Client) -> None:
    for number in range(250):
        client.prepare(f"key {number}")
    found = []
    for info in client.walk():
        found.append(info.name)
        assert client.stat(info.name) == info
    assert sorted(found) == sorted(f"key {number}" for number in range(250))


def test_list_filters_as_containerds_walk_test_wants(client: Client) -> None:
    committed(client, "one", labels={"for": "a", "dotted.io/k.e-y": "v"})
    committed(client, "two", "one", {"for": "b"})
    client.prepare("a", "two", {"for": "a"})
    client.view("v", "two")
    for filters, expected in [
        (["kind==committed"], {"one", "two"}),
        (["kind==active"], {"a"}),
        (["kind==view"], {"v"}),
        (["name==one", "name==v"], {"one", "v"}),
        (["parent==two"], {"a", "v"}),
        (['parent!=""'], {"two", "a", "v"}),
        (["labels.for"], {"one", "two", "a"}),
        (["labels.for==a"], {"one", "a"}),
        (['labels."dotted.io/k.e-y"==v'], {"one"}),
        (["labels.for==a,kind==committed"], {"one"}),
        (["name~=^o", "kind==view"], {"one", "v"}),
        ([""], {"one", "two", "a", "v"}),
        (["parent"], {"one", "two", "a", "v"}),
        (["labels.for!=a"], {"two", "v"}),
        (["nothing"], set()),
    ]:
        assert client.names(*filters) == expected, filters
    assert "filter" in refused(grpc.StatusCode.INVALID_ARGUMENT, client.names, "name==")


def test_the_filter_with_which_containerd_adopts_finds_the_snapshot(client: Client) -> None:
    chain = "sha256:" + "5" * 64
    committed(client, "default/1/one")
    committed(client, "default/2/two words", "default/1/one", {"containerd.io/snapshot.ref": chain})
    filters = f'labels."containerd.io/snapshot.ref"=={chain},parent=="default/1/one"'
    assert client.names(filters) == {"default/2/two words"}


def test_hostile_keys_never_become_paths(node: Node) -> None:
    [mount] = node.client.prepare(HOSTILE, labels={HOSTILE: HOSTILE})
    assert mount.source == str(node.directories.fs(1))
    node.client.commit(HOSTILE + "!", HOSTILE)
    node.client.prepare("../../../etc", HOSTILE + "!")
    assert node.client.stat("../../../etc").parent == HOSTILE + "!"
    assert sorted(path.name for path in (node.top / "r/snapshots").iterdir()) == ["1", "2"]
    node.client.remove("../../../etc")
    node.client.remove(HOSTILE + "!")


def test_usage_of_an_active_snapshot_follows_its_content(node: Node) -> None:
    node.client.prepare("a")
    before, inodes = node.client.usage("a")
    assert inodes == 1
    file = node.directories.fs(1) / "file"
    file.write_bytes(b"x" * 100_000)
    (node.directories.fs(1) / "link").hardlink_to(file)
    size, inodes = node.client.usage("a")
    assert inodes == 2
    assert 100_000 <= size - before < 120_000


def test_usage_of_a_committed_snapshot_is_measured_once(node: Node) -> None:
    node.client.prepare("a")
    (node.directories.fs(1) / "file").write_bytes(b"x" * 100_000)
    expected = node.client.usage("a")
    node.client.commit("one", "a")
    assert node.client.usage("one") == expected
    (node.directories.fs(1) / "more").write_bytes(b"x" * 100_000)
    assert node.client.usage("one") == expected
    node.restart()
    assert node.client.usage("one") == expected


def test_usage_of_a_view_is_nothing_and_of_a_missing_snapshot_not_found(client: Client) -> None:
    client.view("v")
    assert client.usage("v") == (0, 0)
    refused(grpc.StatusCode.NOT_FOUND, client.usage, "none")


def test_many_prepares_of_one_key_at_once_give_one_snapshot(node: Node) -> None:
    barrier = threading.Barrier(6)

    def prepare() -> None:
        barrier.wait()
        node.client.prepare("key")

    with ThreadPoolExecutor(6) as pool:
        outcomes = [call.exception() for call in [pool.submit(prepare) for _ in range(6)]]
    codes = sorted(error.code().name if isinstance(error, grpc.Call) else "made" for error in outcomes)
    assert codes == ["ALREADY_EXISTS"] * 5 + ["made"]
    assert len(list((node.top / "r/snapshots").iterdir())) == 1


def test_a_parent_removed_at_the_same_time_gives_a_child_or_not_found(node: Node) -> None:
    for number in range(10):
        committed(node.client, f"base {number}")
        with ThreadPoolExecutor(2) as pool:
            made = pool.submit(node.client.prepare, f"child {number}", f"base {number}")
            gone = pool.submit(node.client.remove, f"base {number}")
            outcomes = (made.exception(), gone.exception())
        assert sum(outcome is None for outcome in outcomes) == 1
        assert (f"child {number}" in node.client.names()) == (outcomes[0] is None)


def test_a_restart_keeps_every_field_of_every_snapshot(node: Node) -> None:
    committed(node.client, "one", labels={"a": "1"})
    node.client.prepare("a", "one", {"b": "2"})
    node.client.view("v", "one")
    before = {info.name: info for info in node.client.walk()}
    mounts = node.client.mounts("a")
    node.restart()
    assert {info.name: info for info in node.client.walk()} == before
    assert node.client.mounts("a") == mounts


def test_an_unexpected_error_is_answered_and_the_service_goes_on(
    node: Node, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(node.snapshots, "stat", lambda key: 1 / 0)
        assert "ZeroDivisionError" in refused(grpc.StatusCode.UNKNOWN, node.client.stat, "a")
    assert "ZeroDivisionError" in caplog.text
    refused(grpc.StatusCode.NOT_FOUND, node.client.stat, "a")


def test_a_lost_directory_is_an_error_that_says_what_to_do(node: Node) -> None:
    committed(node.client, "one")
    node.directories.fs(1).rmdir()
    message = refused(grpc.StatusCode.INTERNAL, node.client.prepare, "a", "one")
    assert "pull it again" in message
    assert "a" not in node.client.names()
