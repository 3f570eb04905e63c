"""OCI layouts as a place to convert from and to."""

import json
import os
from pathlib import Path

import pytest

from snapshotter.errors import BlobMissing, FormatError, IntegrityError, NotFound, StoreError
from snapshotter.image.places.ends import Source, Target
from snapshotter.registry.manifest import Descriptor
from tests.image.images import OCI_LAYER, Image, Layout, sha256, write_layout
from tests.image.places import TARS, at, between, copier, copy, read_back


def test_image_goes_from_layout_to_layout_and_what_is_there_stays(tmp_path: Path) -> None:
    image = Image(*TARS)
    source = image.lay_out(tmp_path / "a")
    sent = copy(source, f"oci:{tmp_path}/b:new", tmp_path)
    assert sorted(sent) == sorted(set(image.blobs) - {image.manifest()["digest"]})
    assert copy(source, f"oci:{tmp_path}/b:newer", tmp_path) == []
    assert Layout(tmp_path / "b").names() == ["new", "newer"]
    assert Layout(tmp_path / "b").top("newer") == image.document
    assert not list((tmp_path / "b").rglob(".estargz-new-*"))


def test_name_may_be_given_to_another_image_of_the_same_layout(tmp_path: Path) -> None:
    source = Image(*TARS).lay_out(tmp_path / "a")
    assert copy(source, f"oci:{tmp_path}/a:v1", tmp_path) == []
    assert copy(source, f"oci:{tmp_path}/a:v2", tmp_path) == []
    assert Layout(tmp_path / "a").names() == ["v1", "v2"]


def test_damaged_blob_of_the_target_is_written_anew(tmp_path: Path) -> None:
    image = Image(*TARS)
    source = image.lay_out(tmp_path / "a")
    copy(source, f"oci:{tmp_path}/b:new", tmp_path)
    digest = image.document["layers"][0]["digest"]
    damaged = tmp_path / "b" / "blobs" / "sha256" / digest[7:]
    damaged.write_bytes(bytes(damaged.stat().st_size))
    assert copy(source, f"oci:{tmp_path}/b:new", tmp_path) == [digest]
    assert Layout(tmp_path / "b").blob(digest) == image.blobs[digest]


def test_second_image_has_the_suffix_behind_its_tag(tmp_path: Path) -> None:
    source = Image(*TARS).lay_out(tmp_path / "a")
    between(source, f"oci:{tmp_path}/b:host/name:v1", copier(tmp_path, "-esgztoc"))
    assert Layout(tmp_path / "b").names() == ["host/name:v1-esgztoc"]


def test_blob_that_is_missing_or_damaged_is_named(tmp_path: Path) -> None:
    image = Image(*TARS)
    source = image.lay_out(tmp_path / "a")
    digest = image.document["layers"][0]["digest"]
    path = tmp_path / "a" / "blobs" / "sha256" / digest[7:]
    path.write_bytes(image.blobs[digest] + b"more")
    with pytest.raises(IntegrityError, match=digest[7:]):
        read_back(source, tmp_path)
    path.unlink()
    with pytest.raises(BlobMissing, match=digest):
        read_back(source, tmp_path)
    os.mkfifo(path)
    with pytest.raises(StoreError, match="not a file"):
        read_back(source, tmp_path)


def test_range_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    image = Image(*TARS)
    entry = image.document["layers"][0]
    layer = Descriptor(OCI_LAYER, entry["digest"], entry["size"])

    async def past(place: Source) -> bytes:
        return await place.read_range(layer, entry["size"] - 1, 2)

    async def missing(place: Source) -> bytes:
        return await place.read_range(Descriptor(OCI_LAYER, sha256(b"none"), 4), 0, 4)

    source = image.lay_out(tmp_path / "a")
    with pytest.raises(FormatError, match="ends before"):
        at(source, past)
    with pytest.raises(BlobMissing, match="lacks"):
        at(source, missing)


def test_document_of_the_wrong_size_or_digest_is_refused(tmp_path: Path) -> None:
    image = Image(*TARS)
    config = image.document["config"]
    source = image.lay_out(tmp_path / "a")

    async def large(place: Source) -> bytes:
        return await place.document(Descriptor(config["mediaType"], config["digest"], 9 << 20))

    async def other(place: Source) -> bytes:
        return await place.document(Descriptor(config["mediaType"], config["digest"], config["size"] - 1))

    with pytest.raises(FormatError, match="limit"):
        at(source, large)
    with pytest.raises(IntegrityError, match=config["digest"]):
        at(source, other)


@pytest.mark.parametrize(
    ("index", "error"),
    [
        (b"{", FormatError),
        (b"[]", FormatError),
        (b'{"manifests": [1]}', FormatError),
        (b'{"manifests": [{}]}', FormatError),
        (b'{"manifests": [{"mediaType": "a/b", "digest": "sha256:0", "size": 1}]}', FormatError),
        (b'{"manifests": []}', NotFound),
        (b"[" * 100_000, FormatError),
        (b" " * (9 << 20), FormatError),
    ],
)
def test_broken_index_is_a_clear_error(index: bytes, error: type[Exception], tmp_path: Path) -> None:
    (tmp_path / "index.json").write_bytes(index)
    with pytest.raises(error, match=str(tmp_path)):
        at(f"oci:{tmp_path}", lambda place: place.manifest(None))


def test_names_of_other_tools_are_known(tmp_path: Path) -> None:
    image = Image(*TARS)
    image.lay_out(tmp_path / "a")
    entry = {**image.manifest(), "annotations": {"io.containerd.image.name": "docker.io/library/app:v1"}}
    (tmp_path / "a" / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    assert read_back(f"oci:{tmp_path}/a:docker.io/library/app:v1", tmp_path)


def test_two_images_of_a_layout_need_a_name(tmp_path: Path) -> None:
    first, second = Image(b"first"), Image(b"second")
    entries = [first.manifest(), second.manifest()]
    write_layout(tmp_path / "a", entries, {**first.blobs, **second.blobs}, None)
    with pytest.raises(NotFound, match=r"append :TAG; it has: \(unnamed\)"):
        at(f"oci:{tmp_path}/a", lambda place: place.manifest(None))


def test_blob_that_breaks_off_leaves_no_file(tmp_path: Path) -> None:
    source = Image(*TARS).lay_out(tmp_path / "a")
    (tmp_path / "short").write_bytes(b"some")

    async def work(_place: Source, target: Target) -> None:
        await target.put_blob(Descriptor(OCI_LAYER, sha256(b"?"), 5), tmp_path / "short")

    with pytest.raises(FormatError, match="announced with"):
        between(source, f"oci:{tmp_path}/b:new", work)
    assert not [path for path in (tmp_path / "b").rglob("*") if path.is_file()]
