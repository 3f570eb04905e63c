"""Pulling into a containerd in memory: what is written, in which order, and what becomes of each layer."""

import json
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import trio

from snapshotter.containerd import ingest, snapshots
from snapshotter.errors import ContainerdError, ContainerdUnfit, FormatError, IntegrityError, RegistryError
from snapshotter.registry.platform import Platform
from tests.doubles.containerd_state import GC, REF
from tests.image.images import DOCKER_LAYER, Image
from tests.image.pulls import TARS, World, an_image, digests, push_index, world

PREFIX = "containerd.io/snapshot/"


@pytest.fixture
def there(tmp_path: Path) -> Iterator[World]:
    with world(tmp_path) as made:
        yield made


def test_lazy_image_leaves_manifest_and_config_alone_in_the_content_store(there: World) -> None:
    image = an_image(lazy=range(4))
    image.push(there.registry)
    there.node.lazy = set(digests(image))
    pulled = there.pull()
    assert there.states() == ["lazy"] * 4
    assert there.watched.ends == [1, 2, 3, 4]
    assert [row.fetched for row in pulled.rows] == [0] * 4
    there.assert_whole(image)
    assert len(there.node.blobs) == 2
    assert pulled.digest == image.manifest()["digest"]
    assert pulled.platform == Platform("linux", "amd64")


def test_layers_that_are_not_lazy_are_fetched_unpacked_and_leave_the_others_lazy(there: World) -> None:
    image = an_image(lazy=(0, 1, 3))
    image.push(there.registry)
    there.node.lazy = {digests(image)[number] for number in (0, 1, 3)}
    pulled = there.pull()
    assert there.states() == ["lazy", "lazy", "unpacked", "lazy"]
    there.assert_whole(image)
    assert [row.fetched for row in pulled.rows] == [0, 0, image.document["layers"][2]["size"], 0]
    chains = [row.chain_id for row in pulled.rows]
    assert [there.node.snapshots[chain].parent for chain in chains] == ["", *chains[:-1]]
    blob = there.node.blobs[digests(image)[2]]
    assert blob.labels["containerd.io/uncompressed"] == there.node.snapshots[chains[2]].filled


def test_refused_layer_that_looks_lazy_is_fetched_all_the_same_and_so_are_all_above(there: World) -> None:
    image = an_image(lazy=range(4))
    image.push(there.registry)
    there.pull()
    assert there.states() == ["unpacked"] * 4
    there.assert_whole(image)


def test_blob_fetched_ahead_and_found_lazy_is_given_up(there: World) -> None:
    image = an_image(lazy=range(4))
    image.push(there.registry)
    there.node.lazy = set(digests(image)[1:])
    for digest in digests(image)[1:]:
        there.registry.script(digest, "hang*")
    there.pull()
    assert there.states() == ["unpacked", "lazy", "lazy", "lazy"]
    there.assert_whole(image)


def test_second_pull_asks_for_the_top_snapshot_and_fetches_nothing(there: World) -> None:
    image = an_image(lazy=(0,))
    image.push(there.registry)
    there.node.lazy = {digests(image)[0]}
    there.pull()
    there.node.calls.clear()
    pulled = there.pull()
    assert there.states() == ["present"] * 4
    assert [row.detail for row in pulled.rows] == ["mounted lazily before", *["unpacked before"] * 3]
    assert "Snapshots.Prepare" not in there.node.calls
    there.assert_whole(image)


def test_snapshot_gets_the_labels_by_which_a_layer_is_found(there: World) -> None:
    image = an_image(lazy=range(4))
    layer = image.document["layers"][1]
    layer["annotations"] |= {f"{PREFIX}remote": "forged", f"{PREFIX}cri.image-ref": "forged", "other": "x"}
    image.push(there.registry)
    there.node.lazy = set(digests(image))
    chain = there.pull().rows[1].chain_id
    assert there.node.snapshots[chain].labels == {
        REF: chain,
        f"{PREFIX}cri.image-ref": there.registry.reference(":v1"),
        f"{PREFIX}cri.layer-digest": digests(image)[1],
        f"{PREFIX}cri.manifest-digest": image.manifest()["digest"],
        f"{PREFIX}cri.image-layers": ",".join(digests(image)[1:]),
        f"{PREFIX}stargz/toc.digest": f"sha256:{'7' * 64}",
    }


def test_manifest_index_and_config_keep_what_they_name_from_collection(there: World) -> None:
    image, other = an_image(lazy=range(4)), an_image(tars=TARS[:1])
    index = there.target = push_index(there.registry, {"arm64": other, "amd64": image})
    there.node.lazy = set(digests(image))
    pulled = there.pull()
    assert pulled.digest == index
    manifest, blobs = image.manifest()["digest"], there.node.blobs
    assert {key: value for key, value in blobs[index].labels.items() if key.startswith(GC)} == {
        f"{GC}content.m.0": other.manifest()["digest"],
        f"{GC}content.m.1": manifest,
    }
    config = image.document["config"]["digest"]
    expected = {f"{GC}content.l.{number}": digest for number, digest in enumerate(digests(image))}
    assert blobs[manifest].labels == {
        f"{GC}content.config": config,
        "containerd.io/distribution.source.127.0.0.1": there.registry.repository,
        **expected,
    }
    assert blobs[config].labels[f"{GC}snapshot.estargz"] == pulled.rows[-1].chain_id
    there.assert_whole(image)


def test_platform_decides_which_image_of_an_index_is_pulled(there: World) -> None:
    image, other = an_image(), Image(TARS[0], architecture="arm64")
    push_index(there.registry, {"arm64": other, "amd64": image})
    assert str(there.pull(platform=Platform("linux", "arm64")).platform) == "linux/arm64"
    with pytest.raises(FormatError, match="no manifest for linux/s390x; it has: linux/amd64, linux/arm64"):
        there.pull(platform=Platform("linux", "s390x"))


def test_single_image_of_another_platform_is_refused_if_one_was_demanded_and_told_otherwise(there: World) -> None:
    Image(TARS[0], architecture="arm64").push(there.registry)
    with pytest.raises(FormatError, match="an image for linux/arm64 alone, not for linux/amd64"):
        there.pull(demanded=True)
    there.assert_nothing()
    there.pull()
    assert there.watched.notes == ["the image is for linux/arm64, this host is linux/amd64"]


def test_record_in_kubernetes_namespace_is_one_that_cri_lists(there: World) -> None:
    image = an_image()
    image.push(there.registry)
    there.namespace = "k8s.io"
    pulled = there.pull()
    name = there.registry.reference("")
    names = {image.document["config"]["digest"], f"{name}@{pulled.digest}", f"{name}:v1"}
    assert there.node.images.keys() == names
    assert all(dict(one.labels) == {"io.cri-containerd.image": "managed"} for one in there.node.images.values())
    assert there.node.namespaces == {"k8s.io"}


def test_record_of_another_image_with_this_name_is_changed_at_the_end(there: World) -> None:
    old, image = an_image(tars=TARS[:1]), an_image()
    old.push(there.registry)
    there.pull()
    image.push(there.registry)
    there.pull()
    there.assert_whole(image)


def test_lease_ends_by_itself_some_hours_ahead(there: World) -> None:
    an_image().push(there.registry)
    there.pull()
    (expiry,) = there.node.expiries.values()
    assert expiry.endswith("Z")


def test_broken_write_of_an_earlier_pull_is_continued(there: World) -> None:
    image = an_image(tars=TARS[:1])
    image.push(there.registry)
    (digest,) = digests(image)
    data = there.registry.blobs[digest]
    there.node.ingests[f"layer-{digest}"] = bytearray(data[: len(data) // 2])
    (row,) = there.pull().rows
    assert row.fetched == len(data) - len(data) // 2
    assert row.received == len(data)


def test_broken_write_with_other_bytes_is_thrown_away(there: World) -> None:
    image = an_image(tars=TARS[:1])
    image.push(there.registry)
    (digest,) = digests(image)
    there.node.ingests[f"layer-{digest}"] = bytearray(b"something else")
    there.pull()
    there.assert_whole(image)


def test_registry_that_sends_other_bytes_leaves_nothing(there: World) -> None:
    image = an_image(tars=TARS[:1])
    image.push(there.registry)
    there.registry.script(digests(image)[0], "corrupt*")
    with pytest.raises(IntegrityError, match="sends other bytes for layer"):
        there.pull()
    there.assert_nothing()


def test_layer_that_the_registry_lost_leaves_nothing(there: World) -> None:
    image = an_image()
    image.push(there.registry)
    del there.registry.blobs[digests(image)[2]]
    with pytest.raises(RegistryError):
        there.pull()
    there.assert_nothing()


def test_config_that_lies_about_a_layer_leaves_nothing(there: World) -> None:
    an_image().push(there.registry)
    there.node.applied = lambda _diff_id: f"sha256:{'0' * 64}"
    with pytest.raises(IntegrityError, match="unpacks to sha256:0000"):
        there.pull()
    there.assert_nothing()


@pytest.mark.parametrize(
    ("media_type", "words"),
    [
        ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "is a foreign one"),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", "is a foreign one"),
        ("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", "no container image's layer"),
        ("application/vnd.cncf.helm.chart.content.v1.tar+gzip", "no container image's layer"),
    ],
)
def test_layers_that_containerd_cannot_unpack_are_refused_before_anything_is_written(
    there: World, media_type: str, words: str
) -> None:
    image = an_image()
    image.document["layers"][1]["mediaType"] = media_type
    image.push(there.registry)
    with pytest.raises(FormatError, match=words):
        there.pull()
    assert there.node.calls == []


def test_schema_1_and_artifacts_are_refused_before_anything_is_written(there: World) -> None:
    there.registry.add_manifest(
        json.dumps({"schemaVersion": 1, "fsLayers": [], "history": []}).encode(),
        tag="old",
        media_type="application/vnd.docker.distribution.manifest.v1+prettyjws",
    )
    with pytest.raises(FormatError, match="schema 1"):
        there.pull(":old")
    chart = an_image()
    chart.document["config"]["mediaType"] = "application/vnd.cncf.helm.config.v1+json"
    chart.push(there.registry)
    with pytest.raises(FormatError, match="not a container image"):
        there.pull()
    assert there.node.calls == []


def test_docker_image_is_pulled_as_what_it_is(there: World) -> None:
    image = Image(*TARS, docker=True)
    image.push(there.registry)
    there.pull()
    there.assert_whole(image)
    assert image.document["layers"][0]["mediaType"] == DOCKER_LAYER


def test_image_that_has_one_layer_twice_is_fetched_once(there: World) -> None:
    image = an_image(tars=(TARS[0], TARS[1], TARS[0]))
    image.push(there.registry)
    pulled = there.pull()
    assert there.states() == ["unpacked"] * 3
    assert [row.fetched > 0 for row in pulled.rows] == [True, True, False]


def test_image_without_layers_is_pulled(there: World) -> None:
    image = an_image(tars=())
    image.push(there.registry)
    assert list(there.pull().rows) == []
    there.assert_whole(image)


@pytest.mark.parametrize("lazy", [(), range(4)])
def test_two_pulls_of_one_image_at_once_both_succeed(there: World, lazy: tuple[int, ...]) -> None:
    image = an_image(lazy=lazy)
    image.push(there.registry)
    there.node.lazy = {digests(image)[number] for number in lazy}

    async def both() -> None:
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for _ in range(2):
                    nursery.start_soon(there.pulling)

    trio.run(both)
    there.assert_whole(image)


def test_write_of_somebody_who_does_not_get_on_is_waited_for_only_so_long(
    there: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest, "STUCK_S", 0.2)
    monkeypatch.setattr(ingest, "POLL_S", 0.01)
    image = an_image(tars=TARS[:1])
    image.push(there.registry)
    there.node.locked.add(f"layer-{digests(image)[0]}")
    with pytest.raises(ContainerdError, match="somebody else writes"):
        there.pull()
    assert (there.node.images, there.node.leases, there.node.active()) == ({}, {}, [])


def test_snapshotter_that_says_there_is_what_containerd_does_not_find_is_told(there: World) -> None:
    an_image(lazy=range(4)).push(there.registry)
    there.node.at_call = lambda name, _number: grpc.StatusCode.ALREADY_EXISTS if name == "Snapshots.Prepare" else None
    with pytest.raises(ContainerdError, match="containerd does not find it"):
        there.pull()
    there.node.at_call = None
    there.assert_nothing()


def test_snapshotter_that_is_away_is_told_from_a_containerd_that_is(there: World) -> None:
    an_image().push(there.registry)
    there.node.at_call = lambda name, _number: grpc.StatusCode.UNAVAILABLE if name == "Snapshots.Stat" else None
    with pytest.raises(ContainerdError, match="snapshotter estargz does not answer: start it"):
        there.pull()
    there.node.at_call = None
    there.assert_nothing()


@pytest.mark.parametrize("back", [True, False])
def test_snapshotter_that_containerd_has_not_dialled_again_yet_is_waited_for(
    there: World, monkeypatch: pytest.MonkeyPatch, *, back: bool
) -> None:
    monkeypatch.setattr(snapshots, "REDIAL_S", 30.0 if back else 0.3)
    monkeypatch.setattr(snapshots, "REDIAL_PAUSE_S", 0.01)
    image = an_image(lazy=range(4))
    image.push(there.registry)
    there.node.refusal = 'connection error: desc = "transport: Error while dialing dial unix /run/s: timeout"'
    there.node.at_call = lambda name, number: (
        grpc.StatusCode.UNAVAILABLE if name == "Snapshots.Stat" and (number <= 3 or not back) else None
    )
    if back:
        assert len(there.pull().rows) == 4
    else:
        with pytest.raises(ContainerdError, match="snapshotter estargz does not answer: start it"):
            there.pull()
        there.node.at_call = None
        there.assert_nothing()
    assert there.node.calls.count("Snapshots.Stat") > (3 if back else 0)


def test_containerd_that_is_too_old_or_has_no_such_plugin_is_unfit(there: World) -> None:
    there.node.version = "1.5.9"
    with pytest.raises(ContainerdUnfit, match=r"containerd 1\.5\.9 .* is too old"):
        there.pull()
    there.node.version = "1.7.0"
    there.node.plugins[0].init_err.message = "no such socket"
    with pytest.raises(ContainerdUnfit, match="could not load its snapshotter estargz: no such socket"):
        there.pull()
    there.node.plugins[0].id = "overlayfs"
    with pytest.raises(ContainerdUnfit, match=r"has no snapshotter estargz .*config containerd --write"):
        there.pull()
    assert there.node.calls == []
