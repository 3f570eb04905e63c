"""containerd's store as a place to convert to; the real one: integration/test_places.py."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
import trio

from snapshotter.containerd import leases
from snapshotter.errors import (
    FormatError,
    IntegrityError,
    SnapshotterError,
)
from snapshotter.image.labels import children_labels
from snapshotter.image.places.ends import Source, Target
from snapshotter.registry.manifest import Descriptor, parse_manifest
from tests.doubles.registry import LoopbackRegistry
from tests.image.images import OCI_INDEX, OCI_LAYER, OCI_MANIFEST, Image, sha256
from tests.image.places import TARS, between, copier, copy
from tests.image.stores import There, layers_of, store


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[There]:
    monkeypatch.setattr(leases, "_DELETE_PAUSE_S", 0.001)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    with store(tmp_path) as made:
        yield made


def test_image_is_written_under_a_lease_and_kept_by_its_name(there: There, tmp_path: Path) -> None:
    image = Image(*TARS)
    held: list[int] = []
    there.node.at_call = lambda name, _: held.append(len(there.node.leases)) if name == "Images.Create" else None
    sent = copy(image.lay_out(tmp_path / "a"), "containerd:busybox", tmp_path, there.how)
    node = there.node
    assert list(node.images) == ["docker.io/library/busybox:latest"]
    assert node.images["docker.io/library/busybox:latest"].target.digest == image.manifest()["digest"]
    assert (held, node.leases, len(sent)) == ([1], {}, 3)
    assert node.calls.index("Images.Create") > max(n for n, call in enumerate(node.calls) if call == "Content.COMMIT")
    node.collect()
    assert {digest: blob.data for digest, blob in node.blobs.items()} == image.blobs


def test_record_that_has_the_name_is_changed(there: There, tmp_path: Path) -> None:
    image = Image(*TARS)
    there.have(Image(b"older"), "docker.io/library/busybox:latest")
    there.have(Image(b"older"), "exactly so")
    for name in ("busybox", "exactly so"):
        copy(image.lay_out(tmp_path / "a"), f"containerd:{name}", tmp_path, there.how)
    there.node.collect()
    assert {record.target.digest for record in there.node.images.values()} == {image.manifest()["digest"]}
    assert set(there.node.blobs) == set(image.blobs)


def test_blobs_that_are_there_are_not_written_again(there: There, tmp_path: Path) -> None:
    image = Image(*TARS)
    there.have(image, "docker.io/library/app:v1")
    assert copy("containerd:app:v1", "containerd:app:v2", tmp_path, there.how) == []
    assert copy("containerd:app:v1", "containerd:app:v1", tmp_path, there.how) == []
    assert sorted(there.node.images) == ["docker.io/library/app:v1", "docker.io/library/app:v2"]


def test_layer_that_was_never_fetched_is_there_after_a_copy(there: There, tmp_path: Path) -> None:
    image = Image(*TARS)
    with LoopbackRegistry() as registry:
        image.push(registry)
        there.have(image, registry.reference(":v1"), without=tuple(layers_of(image)))
        copied = f"containerd:{registry.host}/other/app:v2"
        assert copy(f"containerd:{registry.reference(':v1')}", copied, tmp_path, there.how) == layers_of(image)
    there.node.collect()
    assert set(there.node.blobs) == set(image.blobs)


def test_blobs_are_mounted_from_the_repository_that_labels_name(there: There, tmp_path: Path) -> None:
    image = Image(*TARS)
    with LoopbackRegistry() as registry:
        image.push(registry)
        there.have(image, registry.reference(":v1"), source=registry.repository)
        for digest in image.blobs:
            registry.script(f"/v2/other/app/blobs/{digest}", "404", method="HEAD")
        target = f"{registry.host}/other/app:v2"
        assert copy(f"containerd:{registry.reference(':v1')}", target, tmp_path, there.how) == []


def test_index_keeps_all_its_images(there: There, tmp_path: Path) -> None:
    images = {name: Image(name.encode(), architecture=name) for name in ("amd64", "arm64")}
    entries = [{**one.manifest(), "platform": {"os": "linux", "architecture": name}} for name, one in images.items()]
    whole = Image()
    whole.document, whole.media_type = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}, OCI_INDEX
    whole.blobs = {digest: data for one in images.values() for digest, data in one.blobs.items()}
    copy(whole.lay_out(tmp_path / "a"), "containerd:app:v1", tmp_path, there.how)
    there.node.collect()
    assert set(there.node.blobs) == set(whole.blobs)


def test_suffix_is_behind_the_tag_of_the_record(there: There, tmp_path: Path) -> None:
    source = Image(*TARS).lay_out(tmp_path / "a")
    for name in ("app:v1", "no Reference"):
        between(source, f"containerd:{name}", copier(tmp_path, "-esgztoc"), there.how)
    assert sorted(there.node.images) == ["docker.io/library/app:v1-esgztoc", "no Reference-esgztoc"]


def test_content_with_another_digest_is_refused(there: There, tmp_path: Path) -> None:
    async def work(_source: Source, target: Target) -> None:
        await target.put_blob(Descriptor(OCI_LAYER, sha256(b"this"), 4), b"that")

    with pytest.raises(IntegrityError, match="does not take"):
        between(Image(*TARS).lay_out(tmp_path / "a"), "containerd:app:v1", work, there.how)
    there.assert_nothing()


def test_write_that_broke_off_is_gone_on_with(there: There, tmp_path: Path) -> None:
    image = Image(*TARS)
    layer = layers_of(image)[0]
    there.node.ingests[f"layer-{layer}"] = bytearray(image.blobs[layer][:20])
    copy(image.lay_out(tmp_path / "a"), "containerd:app:v1", tmp_path, there.how)
    assert there.node.blobs[layer].data == image.blobs[layer]


@pytest.mark.parametrize("code", [grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNAVAILABLE])
def test_call_that_is_refused_leaves_nothing_and_can_be_repeated(
    code: grpc.StatusCode, there: There, tmp_path: Path
) -> None:
    image = Image(*TARS)
    source = image.lay_out(tmp_path / "a")
    copy(source, "containerd:app:v1", tmp_path, there.how)
    calls = [(name, there.node.calls[: n + 1].count(name)) for n, name in enumerate(there.node.calls)]
    for cut in calls:
        if cut[0] in ("Leases.Delete", "Images.Delete"):
            continue
        there.node.images.clear()
        there.node.collect()
        there.node.calls.clear()
        there.node.at_call = lambda name, number, cut=cut: code if (name, number) == cut else None
        with suppress(SnapshotterError):
            copy(source, "containerd:app:v1", tmp_path, there.how)
            assert cut[0] == "Content.Status"
        there.node.at_call = None
        there.assert_nothing()
    copy(source, "containerd:app:v1", tmp_path, there.how)
    assert there.node.images


def test_work_that_is_given_up_leaves_nothing(there: There, tmp_path: Path) -> None:
    source = Image(*TARS).lay_out(tmp_path / "a")

    async def given_up(place: Source, target: Target) -> None:
        await copier(tmp_path)(place, target)
        assert there.node.images
        with trio.CancelScope() as scope:
            scope.cancel()
            await trio.sleep_forever()
        raise FormatError("after the name")

    with pytest.raises(FormatError, match="after the name"):
        between(source, "containerd:app:v1", given_up, there.how)
    there.assert_nothing()


def test_lease_that_cannot_be_deleted_is_told(there: There, tmp_path: Path) -> None:
    notes: list[str] = []
    there.node.at_call = lambda name, _: grpc.StatusCode.UNKNOWN if name == "Leases.Delete" else None
    how = replace(there.how, note=notes.append)
    copy(Image(*TARS).lay_out(tmp_path / "a"), "containerd:app:v1", tmp_path, how)
    (note,) = notes
    assert "estargz-convert-" in note
    assert "12 hours" in note


def test_manifest_s_labels_are_set_where_it_is_there_without_them(there: There, tmp_path: Path) -> None:
    image = Image(*TARS)
    top = image.manifest()["digest"]
    there.have(image, "docker.io/library/app:v1")
    there.node.blobs[top].labels.clear()
    copy(image.lay_out(tmp_path / "a"), "containerd:app:v2", tmp_path, there.how)
    assert there.node.blobs[top].labels == children_labels(parse_manifest(image.blobs[top], OCI_MANIFEST))
