"""Which labels name a layer's source, and which are believed (design 8)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapshotter.errors import NotLazy, Reason
from snapshotter.service.labels import PREFETCH, SKIP_VERIFY, TOC_DIGEST, layer_request, said_reference

L1, L2, L3, M, T = (f"sha256:{digit * 64}" for digit in "12345")
CRI = {
    "containerd.io/snapshot/cri.image-ref": "registry.example:5000/a/b:tag",
    "containerd.io/snapshot/cri.layer-digest": L1,
    "containerd.io/snapshot/cri.manifest-digest": M,
    "containerd.io/snapshot/cri.image-layers": f"{L1},{L2},{L3}",
}
CLIENT = {
    "containerd.io/snapshot/remote/stargz.reference": "other.example/x:1",
    "containerd.io/snapshot/remote/stargz.digest": L2,
    "containerd.io/snapshot/remote/stargz.layers": f"{L2},{L3}",
}


def refused(namespace: str, labels: dict[str, str]) -> tuple[Reason, str]:
    """Reason and message with which the labels are refused."""
    with pytest.raises(NotLazy) as caught:
        layer_request(namespace, labels)
    return caught.value.reason, str(caught.value)


@pytest.mark.parametrize(("namespace", "trusted"), [("k8s.io", True), ("default", False), ("", False)])
def test_the_cri_set_describes_a_layer(namespace: str, trusted: bool) -> None:
    request = layer_request(namespace, {**CRI, TOC_DIGEST: T})
    assert request.reference == "registry.example:5000/a/b:tag"
    assert (request.layer_digest, request.manifest_digest, request.toc_digest) == (L1, M, T)
    assert request.image_layers == (L1, L2, L3)
    assert (request.namespace, request.trusted_only) == (namespace, trusted)
    assert (request.prefetch_size, request.skip_verify) == (None, False)


def test_the_clients_set_counts_elsewhere_only() -> None:
    request = layer_request("default", CLIENT)
    assert (request.reference, request.layer_digest) == ("other.example/x:1", L2)
    assert (request.manifest_digest, request.image_layers) == (None, (L2, L3))
    assert refused("k8s.io", CLIENT)[0] is Reason.NO_LABELS


def test_sets_are_never_mixed() -> None:
    assert layer_request("default", CRI | CLIENT).layer_digest == L1
    partial = {key: value for key, value in CRI.items() if "layer-digest" not in key}
    request = layer_request("default", partial | CLIENT)
    assert (request.reference, request.manifest_digest) == ("other.example/x:1", None)
    assert refused("k8s.io", partial | CLIENT)[0] is Reason.BAD_LABELS


def test_a_complete_set_that_is_malformed_is_not_replaced_by_the_other() -> None:
    wrong = {**CRI, "containerd.io/snapshot/cri.layer-digest": "sha256:short"}
    reason, message = refused("default", wrong | CLIENT)
    assert reason is Reason.BAD_LABELS
    assert "cri.layer-digest" in message


def test_in_kubernetes_the_manifest_must_be_named() -> None:
    unnamed = {key: value for key, value in CRI.items() if "manifest" not in key}
    assert refused("k8s.io", unnamed)[0] is Reason.BAD_LABELS
    assert layer_request("default", unnamed).manifest_digest is None


def test_no_labels_tells_the_option_of_containerd() -> None:
    reason, message = refused("k8s.io", {TOC_DIGEST: T})
    assert reason is Reason.NO_LABELS
    assert "disable_snapshot_annotations" in message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("containerd.io/snapshot/cri.image-ref", "with space"),
        ("containerd.io/snapshot/cri.image-ref", "line\nbreak"),
        ("containerd.io/snapshot/cri.image-ref", "nön/ascii"),
        ("containerd.io/snapshot/cri.layer-digest", "sha512:" + "1" * 128),
        ("containerd.io/snapshot/cri.layer-digest", "sha256:" + "A" * 64),
        ("containerd.io/snapshot/cri.manifest-digest", L1 + "\n"),
        ("containerd.io/snapshot/cri.image-layers", f"{L1},"),
        ("containerd.io/snapshot/cri.image-layers", f"{L1},../etc"),
        (TOC_DIGEST, "x"),
        (PREFETCH, "-1"),
        (PREFETCH, "1e3"),
        (PREFETCH, "9" * 19),
        (PREFETCH, "\u0663"),
    ],
)
def test_malformed_labels_are_named(key: str, value: str) -> None:
    reason, message = refused("default", {**CRI, key: value})
    assert reason is Reason.BAD_LABELS
    assert key in message


def test_an_empty_value_is_no_label() -> None:
    request = layer_request("default", {**CRI, TOC_DIGEST: "", PREFETCH: "", SKIP_VERIFY: ""})
    assert (request.toc_digest, request.prefetch_size, request.skip_verify) == (None, None, False)


def test_a_prefetch_size_is_passed_on() -> None:
    assert layer_request("k8s.io", {**CRI, PREFETCH: "0"}).prefetch_size == 0
    assert layer_request("default", {**CLIENT, PREFETCH: "1048576"}).prefetch_size == 1 << 20


def test_an_image_author_cannot_switch_verification_off_in_kubernetes() -> None:
    assert layer_request("default", {**CLIENT, SKIP_VERIFY: "true"}).skip_verify
    assert not layer_request("k8s.io", {**CRI, SKIP_VERIFY: "true"}).skip_verify


def test_layers_without_the_layer_itself_begin_with_it() -> None:
    labels = {**CRI, "containerd.io/snapshot/cri.image-layers": f"{L2},{L3}"}
    assert layer_request("default", labels).image_layers == (L1, L2, L3)
    del labels["containerd.io/snapshot/cri.image-layers"]
    assert layer_request("default", labels).image_layers == (L1,)


def test_a_reference_for_people_is_printable_or_nothing() -> None:
    assert said_reference(CRI) == "registry.example:5000/a/b:tag"
    assert said_reference(CLIENT) == "other.example/x:1"
    assert said_reference({"containerd.io/snapshot/cri.image-ref": "a\x1b[31m"}) == ""
    assert said_reference({}) == ""


VALUES = st.one_of(st.text(max_size=20), st.sampled_from([L1, f"{L1},{L2}", "registry/a:b", "0"]))


@given(
    st.sampled_from(["k8s.io", "default"]),
    st.dictionaries(st.sampled_from([*CRI, *CLIENT, TOC_DIGEST, PREFETCH, SKIP_VERIFY]), VALUES),
)
def test_any_labels_give_a_request_or_a_reason(namespace: str, labels: dict[str, str]) -> None:
    try:
        request = layer_request(namespace, labels)
    except NotLazy as error:
        reason = error.reason
    else:
        assert request.layer_digest in request.image_layers
        assert request.trusted_only == (namespace == "k8s.io")
        return
    assert reason in (Reason.NO_LABELS, Reason.BAD_LABELS)
