"""Remote Prepare: adopted, or ordinary with a reason (containerd-contract 3.1, design 8)."""

import logging
import re
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from snapshotter.api import snapshots_pb2 as pb
from snapshotter.errors import (
    BlobMissing,
    FormatError,
    NotLazy,
    PlaneError,
    RangeUnsupported,
    Reason,
    RegistryDenied,
    RegistryError,
    RegistryUnreachable,
    StoreError,
    StoreFull,
)
from snapshotter.request import AttachedLayer, LayerRequest
from snapshotter.service.labels import REMOTE, SNAPSHOT_REF
from snapshotter.service.pulls import Outcome
from snapshotter.service.remote import RemoteRequest
from snapshotter.store.state_snapshots import SnapshotRecord
from tests.doubles.lazy_layers import Offer
from tests.service.node import Node, mounted
from tests.service.remote_labels import (
    CRI,
    L1,
    L2,
    L3,
    MANIFEST,
    REFERENCE,
    T1,
    T2,
    adopted,
    ask,
    labels_of,
    prepare_remote,
)


def last_pull(node: Node) -> tuple[str, str, Outcome, Reason | None]:
    """The newest outcome that was noted."""
    reference, noted = node.pulls.told[-1]
    return reference, noted.layer, noted.outcome, noted.reason


def test_a_lazy_layer_is_committed_with_all_labels(node: Node) -> None:
    node.offers[L1] = Offer(T1, size=12345, inodes=67)
    labels = {**labels_of("c1", L1, toc=T1), "containerd.io/snapshot/x": "y"}
    name = adopted(node, labels)
    info = node.client.stat(name)
    assert (info.kind, info.parent) == (pb.COMMITTED, "")
    assert dict(info.labels) == {**labels, REMOTE: "remote snapshot"}
    assert node.client.usage(name) == (12345, 67)
    assert not (node.top / "r/snapshots/1").exists()
    assert last_pull(node) == (REFERENCE, L1, Outcome.LAZY, None)
    [request] = node.lazy.attached
    assert (request.layer_digest, request.toc_digest, request.manifest_digest) == (L1, T1, MANIFEST)


def test_containers_run_on_lazy_layers(node: Node) -> None:
    node.offers[L1] = Offer(T1, fill=lambda top: (top / "low").write_text("1"), root=(11, 22, 0o755))
    node.offers[L2] = Offer(T2, fill=lambda top: (top / "high").write_text("2"))
    one = prepare_remote(node, "c1", L1)
    two = prepare_remote(node, "c2", L2, one)
    with mounted(node.client.prepare("container", two)) as place:
        assert {path.name for path in place.iterdir()} == {"low", "high"}
        (place / "new").write_text("3")
    [view] = node.client.view("view", one)
    assert (view.type, view.source, list(view.options)) == ("bind", f"{node.top}/layers/1", ["ro", "rbind"])
    assert node.lazy.touched[-2:] == [(2, 1), (1,)]
    # By what is known of the layer, not by a look through its mount.
    node.client.prepare("on one", one)
    assert node.directories.owner(5) == (11, 22)


def test_a_view_over_equal_layers_is_mounted_as_the_plane_mounts_one(node: Node) -> None:
    """A bind of the lower directory would inherit `nosuid` and `nodev` from the FUSE mount."""
    node.offers[L1] = Offer(T1)
    twice = prepare_remote(node, "c2", L1, prepare_remote(node, "c1", L1))
    [view] = node.client.view("view", twice)
    assert view.source == f"{node.top}/layers/1"
    assert node.client.mounts("view") == [view]


def test_an_ordinary_layer_may_lie_on_a_lazy_one_and_under_one(node: Node) -> None:
    node.offers |= {L1: Offer(T1, fill=lambda top: (top / "a").touch()), L3: Offer(T2)}
    one = prepare_remote(node, "c1", L1)
    labels = labels_of("c2", L2)
    with mounted(ask(node, labels, one)) as place:
        assert (place / "a").exists()
        (place / "a").unlink()
    node.client.commit("default/2/c2", f"default/1/extract-1-abcd {labels[SNAPSHOT_REF]}", labels)
    three = prepare_remote(node, "c3", L3, "default/2/c2")
    with mounted(node.client.prepare("container", three)) as place:
        assert not (place / "a").exists()
    assert node.lazy.extractions == [True, False]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (NotLazy(Reason.NO_ANCHOR, "no digest of the TOC"), Reason.NO_ANCHOR),
        (RegistryUnreachable("down"), Reason.UNREACHABLE),
        (RegistryDenied("401"), Reason.REGISTRY_DENIED),
        (BlobMissing("404"), Reason.BLOB_MISSING),
        (RangeUnsupported("200"), Reason.NO_RANGES),
        (RegistryError("strange"), Reason.REGISTRY_FAULT),
        (FormatError("no TOC"), Reason.NOT_LAZY_FORMAT),
        (StoreFull("full"), Reason.DISK),
        (OSError(28, "No space left on device"), Reason.DISK),
        (TimeoutError("no answer within 30 s"), Reason.TIMEOUT),
        (PlaneError("no fuse"), Reason.INTERNAL),
        (KeyError("a bug"), Reason.INTERNAL),
    ],
)
def test_every_fault_ends_in_an_ordinary_snapshot_with_its_reason(
    node: Node, caplog: pytest.LogCaptureFixture, fault: Exception, reason: Reason
) -> None:
    caplog.set_level(logging.INFO)
    node.lazy.fault = fault
    labels = labels_of("c1", L1)
    mounts = ask(node, labels)
    with mounted(mounts) as place:
        assert list(place.iterdir()) == []
        (place / "unpacked").touch()
    assert mounts[0].type == "bind"
    key = "default/1/extract-1-abcd c1"
    record = node.snapshots.stat(key)
    assert (record.not_lazy, record.reference) == (reason, REFERENCE)
    assert dict(record.labels) == labels
    assert last_pull(node)[3] is reason
    [line] = [entry for entry in caplog.records if "is not lazy" in entry.getMessage()]
    assert line.levelno == (logging.INFO if reason is Reason.NOT_LAZY_FORMAT else logging.WARNING)
    assert str(reason) in line.getMessage()
    assert REFERENCE in line.getMessage()
    node.client.commit("default/2/c1", key, labels)
    # What containerd unpacked satisfies the next namespace without any network.
    node.lazy.fault = AssertionError("asked the registry")
    assert adopted(node, labels, namespace="k8s.io") == "default/2/c1"
    assert last_pull(node)[2] is Outcome.PRESENT


def test_an_ordinary_image_is_no_reason_for_a_warning(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    ask(node, labels_of("c1", L1))  # nothing is offered: it has no TOC
    node.lazy.fault = NotLazy(Reason.DENIED, "lazy.deny names it")
    ask(node, labels_of("c2", L2))
    said = [(entry.levelno, entry.getMessage()) for entry in caplog.records if "is not lazy" in entry.getMessage()]
    assert [level for level, _ in said] == [logging.INFO] * 2
    assert "lazy.deny names it" in said[1][1]


@pytest.mark.parametrize(
    ("namespace", "change", "reason"),
    [
        ("default", {CRI + "layer-digest": ""}, Reason.BAD_LABELS),
        ("default", {CRI + "layer-digest": "sha256:x"}, Reason.BAD_LABELS),
        ("default", {CRI + "image-ref": "a b"}, Reason.BAD_LABELS),
        ("k8s.io", {CRI + "manifest-digest": ""}, Reason.BAD_LABELS),
        ("default", {key: "" for key in labels_of("c1", L1) if key.startswith(CRI)}, Reason.NO_LABELS),
    ],
)
def test_bad_labels_are_never_asked_about(node: Node, namespace: str, change: dict[str, str], reason: Reason) -> None:
    node.offers[L1] = Offer(T1)
    assert ask(node, labels_of("c1", L1) | change, namespace=namespace)
    assert node.lazy.attached == []
    assert last_pull(node)[1:] == ("c1", Outcome.ORDINARY, reason)


def test_an_empty_target_is_no_target(node: Node) -> None:
    labels = labels_of("", L1)
    assert node.client.prepare("key", "", labels)[0].type == "bind"
    assert node.lazy.attached == []


def test_in_kubernetes_the_manifest_is_to_be_checked(node: Node) -> None:
    node.offers[L1] = Offer(T1)
    adopted(node, labels_of("c1", L1), namespace="k8s.io")
    assert node.lazy.attached[0].trusted_only


def test_parents_follow_the_rules_of_any_prepare(node: Node) -> None:
    node.offers[L1] = Offer(T1)
    node.client.prepare("active")
    for parent, code in (("none", grpc.StatusCode.NOT_FOUND), ("active", grpc.StatusCode.INVALID_ARGUMENT)):
        with pytest.raises(grpc.RpcError) as caught:
            ask(node, labels_of("c1", L1), parent)
        assert isinstance(caught.value, grpc.Call)
        assert caught.value.code() is code
    assert node.lazy.attached == []


def test_a_target_with_another_parent_is_not_adopted(node: Node) -> None:
    node.offers |= {L1: Offer(T1), L2: Offer(T2)}
    one = prepare_remote(node, "c1", L1)
    under_one = prepare_remote(node, "c2", L2, one)
    alone = prepare_remote(node, "c2", L2)
    assert alone != under_one
    assert node.client.stat(under_one).parent == one


def test_a_known_layer_is_adopted_by_another_namespace_without_network(node: Node) -> None:
    node.offers[L1] = Offer(T1)
    labels = labels_of("c1", L1, toc=T1)
    name = adopted(node, labels)
    node.lazy.fault = AssertionError("asked the registry")
    assert adopted(node, labels, namespace="k8s.io") == name
    assert last_pull(node) == (REFERENCE, L1, Outcome.PRESENT, None)


def test_a_layer_that_was_not_brought_back_is_fetched_again(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Adopting it as it is would end a pull well whose containers cannot start."""
    node.offers[L1] = Offer(T1)
    labels = labels_of("c1", L1, toc=T1)
    name = adopted(node, labels)
    healthy, attach = node.lazy.describe, node.lazy.attach

    def broken(number: int) -> AttachedLayer:
        raise StoreError(f"layer {number}: its index is damaged")

    def repair(request: LayerRequest) -> AttachedLayer:
        monkeypatch.setattr(type(node.lazy), "describe", lambda _, number: healthy(number))
        return attach(request)

    monkeypatch.setattr(type(node.lazy), "describe", lambda _, number: broken(number))
    monkeypatch.setattr(type(node.lazy), "attach", lambda _, request: repair(request))
    assert adopted(node, labels, namespace="k8s.io") == name
    assert len(node.lazy.attached) == 2


def test_a_target_that_was_just_removed_is_made_again(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    node.offers[L1] = Offer(T1)
    labels = labels_of("c1", L1, toc=T1)
    name = adopted(node, labels)
    find_targets = node.remote._targets

    def removed_meanwhile(request: RemoteRequest, parent_id: int | None) -> list[SnapshotRecord]:
        found = find_targets(request, parent_id)
        node.client.remove(name)
        node.client.cleanup()
        return found

    monkeypatch.setattr(node.remote, "_targets", removed_meanwhile)
    assert adopted(node, labels) != name


def test_another_image_must_prove_that_it_has_the_layer(node: Node) -> None:
    node.offers[L1] = Offer(T1)
    name = adopted(node, labels_of("c1", L1, toc=T1))
    node.lazy.fault = RegistryDenied("no access to that image")
    foreign = labels_of("c1", L1, toc=T1, reference="registry.example/foreign:1")
    assert ask(node, foreign, key="denied")[0].type == "bind"
    node.lazy.fault = None
    assert adopted(node, foreign, key="allowed") == name
    assert len(node.state.layers()) == 1


@pytest.mark.parametrize("change", ["layer", "toc", "domain"])
def test_other_content_under_the_same_chain_is_not_adopted(node: Node, change: str) -> None:
    node.offers[L1] = Offer(T1)
    adopted(node, labels_of("c1", L1, toc=T1))
    node.offers[L2] = Offer(T1)
    if change != "layer":
        node.offers[L1] = Offer(T2 if change == "toc" else T1, domain="other" if change == "domain" else "node")
    layer = L2 if change == "layer" else L1
    labels = labels_of("c1", layer, toc=node.offers[layer].toc_digest, reference="registry.example/other:1")
    assert ask(node, labels, namespace="other")[0].type == "bind"
    assert last_pull(node)[2:] == (Outcome.ORDINARY, Reason.CONFLICT)
    key = "other/1/extract-1-abcd c1"
    node.client.commit("other/2/c1", key, labels)
    assert len(node.client.names('labels."containerd.io/snapshot.ref"==c1')) == 2


def test_two_pulls_of_one_target_at_once_share_a_snapshot(node: Node) -> None:
    node.offers[L1] = Offer(T1)
    node.lazy.gate.clear()
    with ThreadPoolExecutor(2) as pool:
        names = [pool.submit(adopted, node, labels_of("c1", L1), "", space) for space in ("a", "b")]
        for _ in names:
            assert node.lazy.entered.acquire(timeout=30)
        node.lazy.gate.set()
        assert len({name.result(30) for name in names}) == 1


def test_pulls_that_wait_leave_threads_for_the_rest(node: Node) -> None:
    node.offers[L1] = Offer(T1)
    node.lazy.gate.clear()
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(adopted, node, labels_of(f"c{n}", L1), "", "default") for n in range(4)]
        for _ in waiting:
            assert node.lazy.entered.acquire(timeout=30)
        assert ask(node, labels_of("c9", L2))[0].type == "bind"
        assert last_pull(node)[2:] == (Outcome.ORDINARY, Reason.BUSY)
        node.lazy.gate.set()
        for call in waiting:
            call.result(30)
    prepare_remote(node, "c5", L1)


def test_pulls_that_wait_for_a_removal_are_counted_too(node: Node) -> None:
    node.offers[L1] = Offer(T1)
    with ThreadPoolExecutor(4) as pool:
        with node.guard.leaving(L1):
            waiting = [pool.submit(adopted, node, labels_of(f"c{n}", L1), "", "default") for n in range(4)]
            for attempt in range(600):
                assert ask(node, labels_of(f"d{attempt}", L2))[0].type == "bind"
                if last_pull(node)[3] is Reason.BUSY:
                    break
                time.sleep(0.05)
            else:
                pytest.fail("four calls wait and none is counted")
        for call in waiting:
            call.result(30)


def test_an_answer_is_wanted_in_half_of_what_the_call_has_left(node: Node) -> None:
    node.offers[L1] = Offer(T1)
    prepare_remote(node, "c1", L1)  # the client gives 60 s, the configuration 30
    timeout_s = node.lazy.attached[0].timeout_s
    assert timeout_s is not None
    assert 0 < timeout_s <= 30


def test_one_line_tells_the_outcome_of_a_pull(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    node.offers |= {L1: Offer(T1), L3: Offer(T2)}
    one = adopted(node, labels_of("c1", L1, (L2, L3)))
    ordinary = labels_of("c2", L2, (L3,))
    ask(node, ordinary, one)
    node.client.commit("two", "default/1/extract-1-abcd c2", ordinary)
    lines = [entry.getMessage() for entry in caplog.records if entry.getMessage().startswith("pull of")]
    assert lines == []
    prepare_remote(node, "c3", L3, "two")
    [line] = [entry.getMessage() for entry in caplog.records if entry.getMessage().startswith("pull of")]
    expected = f"pull of {REFERENCE}: 3 layers, 1 not lazy: {L1} lazy, {L2} ordinary (not-a-lazy-format), {L3} lazy"
    assert line == expected


def test_lazy_snapshots_survive_a_restart_without_network(node: Node) -> None:
    node.offers[L1] = Offer(T1, fill=lambda top: (top / "file").write_text("x"))
    name = prepare_remote(node, "c1", L1)
    before = node.client.stat(name)
    node.restart()
    node.lazy.fault = AssertionError("asked the registry")
    assert node.client.stat(name) == before
    with mounted(node.client.prepare("container", name)) as place:
        assert (place / "file").read_text() == "x"


def test_the_name_of_a_lazy_snapshot_tells_no_path(node: Node) -> None:
    node.offers[L1] = Offer(T1)
    name = prepare_remote(node, "../../c", L1)
    assert re.fullmatch(r"default/lazy-[0-9a-f]{16}/\.\./\.\./c", name)
