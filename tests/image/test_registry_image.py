"""Registries as a place to convert from and to: what is there is not sent."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from snapshotter.errors import FormatError, RegistryError
from snapshotter.image.places.ends import Source, Target
from snapshotter.registry.manifest import Descriptor, ImageManifest, parse_manifest
from tests.doubles.registry import LoopbackRegistry
from tests.doubles.token_server import TokenServer
from tests.image.images import Image, sha256
from tests.image.places import TARS, between, copier, copy, read_back


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackRegistry]:
    """A registry; no credentials of the machine."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    with LoopbackRegistry() as made:
        yield made


def sent_to(registry: LoopbackRegistry) -> list[str]:
    """Which uploads were made, and how: mounts by the repository that they came from."""
    found = []
    for record in registry.requests:
        if record.method == "POST" and "mount=" in record.query:
            found.append(f"mount {record.status}")
        elif record.method == "PUT" and "/uploads/" in record.path:
            found.append("upload")
    return found


def in_another_repository(registry: LoopbackRegistry, image: Image) -> None:
    """Let the target's repository say that it has none of the image's blobs."""
    for digest in image.blobs:
        registry.script(f"/v2/other/app/blobs/{digest}", "404", method="HEAD")


def test_blobs_of_the_same_registry_are_mounted_and_never_sent(pair: LoopbackRegistry, tmp_path: Path) -> None:
    image = Image(*TARS)
    source = image.push(pair)
    in_another_repository(pair, image)
    assert copy(source, f"{pair.host}/other/app:v2", tmp_path) == []
    assert sent_to(pair) == ["mount 201"] * 3
    assert all("from=library" in record.query for record in pair.requests if "mount=" in record.query)
    # Layers were not even fetched.
    assert pair.manifests["other/app", "v2"][0] == image.blobs[image.manifest()["digest"]]


def test_blobs_of_another_registry_are_sent_once_however_often_it_breaks_off(
    pair: LoopbackRegistry, tmp_path: Path
) -> None:
    image = Image(*TARS)
    with LoopbackRegistry() as other:
        source = image.push(other)
        pair.script("/manifests/v2", "400", method="PUT")
        for _ in range(2):
            with pytest.raises(RegistryError):
                copy(source, pair.reference(":v2"), tmp_path)
            assert sent_to(pair) == ["upload"] * 3
            assert (pair.repository, "v2") not in pair.manifests
            pair.script("/manifests/v2", "400 ok", method="PUT")
        pair.script("/manifests/v2", "ok", method="PUT")
        assert copy(source, pair.reference(":v2"), tmp_path) == []
    assert sent_to(pair) == ["upload"] * 3


def test_layout_has_nothing_to_mount(pair: LoopbackRegistry, tmp_path: Path) -> None:
    image = Image(*TARS)
    sent = copy(image.lay_out(tmp_path / "a"), pair.reference(":v2"), tmp_path)
    assert (len(sent), sent_to(pair)) == (3, ["upload"] * 3)


@pytest.mark.parametrize("status", [403, 404, 405])
def test_registry_that_will_not_mount_is_asked_once_and_gets_the_blobs(
    status: int, pair: LoopbackRegistry, tmp_path: Path
) -> None:
    image = Image(*TARS)
    source = image.push(pair)
    for digest in image.blobs:
        pair.script(f"/v2/other/app/blobs/{digest}", "404 404", method="HEAD")
    pair.script("/v2/other/app/blobs/uploads/", f"{status} ok {status} ok {status} ok", method="POST")
    assert len(copy(source, f"{pair.host}/other/app:v2", tmp_path)) == 3
    assert sent_to(pair) == [f"mount {status}", "upload"] * 3


def test_blob_that_was_made_anew_and_is_the_source_s_is_mounted(pair: LoopbackRegistry, tmp_path: Path) -> None:
    image = Image(*TARS)
    source = image.push(pair)
    in_another_repository(pair, image)
    (tmp_path / "blob").write_bytes(b"")

    async def work(place: Source, target: Target) -> None:
        manifest = parse_manifest((await place.manifest(None)).raw)
        assert isinstance(manifest, ImageManifest)
        assert not await target.put_blob(manifest.layers[0], tmp_path / "blob")

    between(source, f"{pair.host}/other/app:v2", work)
    assert sent_to(pair) == ["mount 201"]


def test_token_for_a_mount_may_read_the_source_and_write_the_target(pair: LoopbackRegistry, tmp_path: Path) -> None:
    image = Image(*TARS)
    source = image.push(pair)
    in_another_repository(pair, image)
    with TokenServer() as tokens:
        pair.tokens, pair.challenge = tokens, tokens.challenge()
        assert copy(source, f"{pair.host}/other/app:v2", tmp_path) == []
        mounts = [record for record in pair.requests if "mount=" in record.query and record.status == 201]
        granted = {tokens.issued[record.headers["authorization"].removeprefix("Bearer ")] for record in mounts}
    assert granted == {("repository:library/image:pull", "repository:other/app:pull,push")}


def test_images_of_other_platforms_and_suffixes_are_pushed_under_their_names(
    pair: LoopbackRegistry, tmp_path: Path
) -> None:
    image = Image(*TARS)
    between(image.lay_out(tmp_path / "a"), pair.reference(":v2"), copier(tmp_path, "-esgztoc"))
    assert (pair.repository, "v2-esgztoc") in pair.manifests
    assert (pair.repository, "v2") not in pair.manifests


def test_image_is_read_whole_and_in_ranges(pair: LoopbackRegistry, tmp_path: Path) -> None:
    image = Image(*TARS)
    found = read_back(image.push(pair), tmp_path)
    assert [sha256(data) for data in found[:2]] == [layer["digest"] for layer in image.document["layers"]]


def test_layer_that_is_too_large_for_a_document_is_no_document(pair: LoopbackRegistry, tmp_path: Path) -> None:
    image = Image(*TARS)
    image.document["config"]["size"] = 9 << 20
    with pytest.raises(FormatError, match="limit"):
        read_back(image.push(pair), tmp_path)


def test_name_is_given_whole_though_a_signal_comes_meanwhile(pair: LoopbackRegistry) -> None:
    image = Image(*TARS)
    pair.script("/manifests/v2", "slow@0.5", method="PUT")

    async def naming(_: Source, target: Target) -> bool:
        descriptor = Descriptor(image.media_type, image.manifest()["digest"], image.manifest()["size"])
        with trio.move_on_after(0.1) as scope:
            await target.name_image(image.blobs[descriptor.digest], descriptor)
            return scope.cancel_called
        return False

    assert between(image.push(pair), f"{pair.host}/other/app:v2", naming)
    assert pair.manifests["other/app", "v2"][0] == image.blobs[image.manifest()["digest"]]
