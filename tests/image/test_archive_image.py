"""Archives of images as a place to convert from, OCI's and docker's."""

import gzip
import io
import json
import os
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from backports import zstd

from snapshotter.errors import BlobMissing, FormatError, IntegrityError, NotFound, SnapshotterError, StoreError
from snapshotter.image.places import archive_file
from snapshotter.image.places.ends import Source
from snapshotter.registry.manifest import DOCKER_MANIFEST, ImageManifest, parse_manifest
from tests.image.images import OCI_MANIFEST, Image, sha256
from tests.image.places import TARS, Members, access, at, docker_tar, oci_members, read_back, saved, tar_of

TOP = f"top/{sha256(TARS[1])[7:]}.tar"
PLAIN = "application/vnd.docker.image.rootfs.diff.tar"
Squeeze = Callable[[bytes], bytes]


def as_it_is(data: bytes) -> bytes:
    return data


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("squeeze", [as_it_is, gzip.compress, zstd.compress])
def test_oci_archive_gives_the_image_back_compressed_or_not(squeeze: Squeeze, tmp_path: Path, scratch: Path) -> None:
    image = Image(*TARS)
    path = written(tmp_path / "a.tar", squeeze(tar_of(oci_members(image, "v1", "v2"))))
    blobs = [image.blobs[entry["digest"]] for entry in (*image.document["layers"], image.document["config"])]
    for name in ("", ":v1", ":v2"):  # two names of one image are one image
        assert read_back(f"oci-archive:{path}{name}", tmp_path) == blobs


@pytest.mark.parametrize("squeeze", [as_it_is, gzip.compress, zstd.compress])
def test_docker_archive_gets_the_manifest_that_it_lacks(squeeze: Squeeze, tmp_path: Path, scratch: Path) -> None:
    path = written(tmp_path / "a.tar", squeeze(docker_tar(saved(*TARS))))
    source = f"docker-archive:{path}:example.org/app:v1"

    async def look(place: Source) -> ImageManifest:
        top = await place.manifest(None)
        assert (top.media_type, top.digest) == (DOCKER_MANIFEST, sha256(top.raw))
        document = parse_manifest(top.raw, top.media_type)
        assert isinstance(document, ImageManifest)
        return document

    manifest: ImageManifest = at(source, look)
    assert [(layer.digest, layer.media_type) for layer in manifest.layers] == [(sha256(one), PLAIN) for one in TARS]
    assert read_back(source, tmp_path)[:2] == list(TARS)


def test_compressed_layers_of_a_docker_archive_are_told_by_their_first_bytes(tmp_path: Path) -> None:
    members, entry = saved(*TARS, b"third")
    packed = [gzip.compress(TARS[0]), zstd.compress(TARS[1]), b"third"]
    members += [(f"{number}.tar", data) for number, data in enumerate(packed)]
    entry["Layers"] = ["0.tar", "./1.tar", "2.tar"]
    source = f"docker-archive:{written(tmp_path / 'a.tar', docker_tar((members, entry)))}"

    async def types(place: Source) -> list[str]:
        top = await place.manifest(None)
        document = parse_manifest(top.raw, top.media_type)
        assert isinstance(document, ImageManifest)
        return [layer.media_type for layer in document.layers]

    assert at(source, types) == [f"{PLAIN}.gzip", f"{PLAIN}.zstd", PLAIN]
    assert read_back(source, tmp_path)[:3] == packed


def test_manifest_that_docker_saved_itself_is_taken_with_what_it_says_of_layers(tmp_path: Path) -> None:
    image = Image(*TARS)
    image.document["layers"][0]["annotations"] = {"of": "the layer"}
    names = [f"blobs/sha256/{entry['digest'][7:]}" for entry in (image.document["config"], *image.document["layers"])]
    entry = {"Config": names[0], "RepoTags": ["app:v1"], "Layers": names[1:]}
    path = written(tmp_path / "a.tar", docker_tar((oci_members(image), entry)))

    async def top(place: Source) -> tuple[str, str]:
        found = await place.manifest(None)
        return found.digest, found.media_type

    assert at(f"docker-archive:{path}:app:v1", top) == (image.manifest()["digest"], OCI_MANIFEST)


def test_one_of_several_images_is_chosen_by_its_normalised_name(tmp_path: Path) -> None:
    first = saved(b"first", names=("busybox:latest", "example.org/first:v1"))
    second = saved(b"second", names=("busybox:1",))
    path = written(tmp_path / "a.tar", docker_tar(first, second, saved(b"third", names=None)))
    for name, data in (
        ("busybox", b"first"),
        ("docker.io/library/busybox:latest", b"first"),
        ("example.org/first:v1", b"first"),
        ("busybox:1", b"second"),
    ):
        assert read_back(f"docker-archive:{path}:{name}", tmp_path)[0] == data
    for name in ("", ":busybox:2"):
        with pytest.raises(NotFound, match=r"\(unnamed\), busybox:1, busybox:latest, example.org/first:v1"):
            at(f"docker-archive:{path}{name}", lambda place: place.manifest(None))


def test_archive_that_tar_makes_of_a_layout_is_read(tmp_path: Path) -> None:
    image = Image(*TARS)
    image.lay_out(tmp_path / "a")
    # A second name of a blob before it, which becomes a hard link in the archive.
    blob = tmp_path / "a" / "blobs" / "sha256" / image.document["layers"][0]["digest"][7:]
    os.link(blob, tmp_path / "a" / "before")
    subprocess.run(["tar", "-C", tmp_path / "a", "-czf", tmp_path / "a.tgz", "./before", "."], check=True)
    assert len(read_back(f"oci-archive:{tmp_path}/a.tgz:v1", tmp_path)) == 3


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def other_byte(data: bytes) -> bytes:
    at_byte = data.index(b"lower")
    return data[:at_byte] + b"L" + data[at_byte + 1 :]


def without(name: str) -> Callable[[Members], Members]:
    return lambda members: [member for member in members if member[0] != name]


def docker_bytes(change: Callable[[Members], Members] = lambda members: members, **entry: Any) -> bytes:
    members, said = saved(*TARS)
    return docker_tar((change(members), {**said, **entry}))


@pytest.mark.parametrize(
    ("kind", "data", "error", "words"),
    [
        ("docker", b"", NotFound, "has no manifest.json"),
        ("docker", b"no tar at all" * 999, FormatError, "no archive"),
        ("docker", cut(docker_bytes()), FormatError, "cut off"),
        ("docker", cut(gzip.compress(docker_bytes())), FormatError, "cut off"),
        ("docker", other_byte(docker_bytes()), IntegrityError, "is not sha256:"),
        ("docker", docker_bytes(without(TOP)), BlobMissing, "lacks the layer"),
        ("docker", docker_bytes(Config="nowhere.json"), NotFound, "nowhere.json"),
        ("docker", docker_bytes(Config=TOP), FormatError, "not JSON"),
        ("docker", docker_bytes(Layers=[]), FormatError, "names 2 layers"),
        ("docker", docker_bytes(Layers="x"), FormatError, "odd"),
        ("docker", docker_bytes(Layers=["shared"] * 501), FormatError, "501 layers"),
        ("docker", tar_of([("manifest.json", b"{}")]), FormatError, "list"),
        ("docker", tar_of([("manifest.json", b"[" * 100_000)]), FormatError, "JSON"),
        ("docker", tar_of([("manifest.json", bytes(9 << 20))]), FormatError, "limit"),
        ("docker", tar_of([("repositories", b"{}")]), NotFound, "before 1.10"),
        ("docker", tar_of(oci_members(Image(*TARS), "v1")), NotFound, "write oci-archive:"),
        ("docker", b"BZh91AY", FormatError, "bzip2"),
        ("oci", docker_bytes(), NotFound, "write docker-archive:"),
        ("oci", tar_of([("index.json", b"[]")]), FormatError, "index"),
        ("oci", tar_of([("index.json", b'{"manifests":[]}')]), NotFound, "it has: none"),
        ("oci", tar_of(without("blobs/sha256/" + sha256(b"")[7:])([("index.json", b"{}")])), FormatError, "index"),
    ],
)
def test_bad_archive_is_a_clear_error(
    kind: str, data: bytes, error: type[SnapshotterError], words: str, tmp_path: Path, scratch: Path
) -> None:
    path = written(tmp_path / "a.tar", data)
    with pytest.raises(error, match=words):
        read_back(f"{kind}-archive:{path}", scratch)
    assert list(scratch.iterdir()) == []


def test_blob_that_an_oci_archive_lacks_or_has_damaged_is_named(tmp_path: Path, scratch: Path) -> None:
    image = Image(*TARS)
    digest = image.document["layers"][0]["digest"]
    name = f"blobs/sha256/{digest[7:]}"
    members = oci_members(image, "v1")
    path = written(tmp_path / "a.tar", tar_of(without(name)(members)))
    with pytest.raises(BlobMissing, match=digest):
        read_back(f"oci-archive:{path}", scratch)
    path.write_bytes(tar_of([*members, (name, image.blobs[digest][:-1] + b"x")]))
    with pytest.raises(IntegrityError, match=digest):
        read_back(f"oci-archive:{path}", scratch)


def test_links_and_names_of_a_hostile_archive_lead_nowhere(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    secret = written(tmp_path / "secret", b"of the node")
    for target in (str(secret), f"../../../../../..{secret}", "loop", "/etc/passwd"):
        members, entry = saved(*TARS)
        members += [("loop", "loop"), ("layer", target)]
        entry["Layers"] = ["layer", "layer"]
        path = written(tmp_path / "a.tar", docker_tar((members, entry)))
        with pytest.raises(BlobMissing, match="lacks the layer"):
            read_back(f"docker-archive:{path}", scratch)
    members, entry = saved(*TARS)
    path = written(tmp_path / "b.tar", docker_tar(([("../" * 9 + name, data) for name, data in members], entry)))
    assert read_back(f"docker-archive:{path}", scratch)[:2] == list(TARS)
    assert sorted(one.name for one in tmp_path.iterdir() if one.is_file()) == ["a.tar", "b.tar", "secret"]


def test_sizes_that_a_header_invents_are_refused(tmp_path: Path, scratch: Path) -> None:
    info = tarfile.TarInfo("manifest.json")
    info.size = 10 << 40
    data = info.tobuf(tarfile.PAX_FORMAT) + b"[]"
    extension = tarfile.TarInfo("x")
    extension.type, extension.size = tarfile.XHDTYPE, 1 << 33
    for bad in (data, extension.tobuf(tarfile.GNU_FORMAT) + bytes(4096)):
        path = written(tmp_path / "a.tar", bad)
        with pytest.raises(FormatError, match=r"a\.tar is no archive"):
            read_back(f"docker-archive:{path}", scratch)


def test_number_of_files_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_file, "MEMBERS_MAX", 3)
    path = written(tmp_path / "a.tar", docker_bytes())
    with pytest.raises(FormatError, match="more than 3 files"):
        read_back(f"docker-archive:{path}", tmp_path)


def test_indexes_that_lead_in_circles_come_to_an_end(tmp_path: Path) -> None:
    members, entry = saved(*TARS)
    digest = sha256(b"the circle")
    child = {"mediaType": "application/vnd.oci.image.index.v1+json", "digest": digest, "size": 2}
    index = json.dumps({"schemaVersion": 2, "manifests": [child] * 50}).encode()
    members += [("index.json", index), (f"blobs/sha256/{digest[7:]}", index)]
    path = written(tmp_path / "a.tar", docker_tar((members, entry)))
    assert read_back(f"docker-archive:{path}", tmp_path)[:2] == list(TARS)


def test_sparse_files_and_later_files_of_the_same_name(tmp_path: Path) -> None:
    members, entry = saved(*TARS)
    early = [(name, b"replaced") for name, data in members if isinstance(data, bytes)]
    path = written(tmp_path / "a.tar", docker_tar(([*early, *members], entry)))
    assert read_back(f"docker-archive:{path}", tmp_path)[:2] == list(TARS)


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="does not exist"):
        at(f"oci-archive:{tmp_path}/none", lambda place: place.manifest(None))
    os.mkfifo(tmp_path / "pipe")
    for name in ("", "/pipe"):
        with pytest.raises(StoreError, match=r"directory|not a file"):
            at(f"oci-archive:{tmp_path}{name}", lambda place: place.manifest(None))


def test_compressed_archive_is_made_plain_where_it_is_told_to(tmp_path: Path) -> None:
    path = written(tmp_path / "a.tar", gzip.compress(docker_bytes()))
    with pytest.raises(NotFound, match=f"{tmp_path}/none"):
        at(f"docker-archive:{path}", lambda place: place.manifest(None), access(scratch=tmp_path / "none"))


def test_archive_that_shrinks_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    path = written(tmp_path / "a.tar", docker_bytes())

    async def shrunk(place: Source) -> None:
        top = parse_manifest((await place.manifest(None)).raw, DOCKER_MANIFEST)
        assert isinstance(top, ImageManifest)
        with path.open("r+b") as file:
            file.truncate(2048)
        with pytest.raises(FormatError, match="became shorter"):
            await place.blob_file(top.layers[0], tmp_path, lambda _size: None)
        with pytest.raises(FormatError, match="ends before"):
            await place.read_range(top.layers[0], top.layers[0].size - 1, 2)

    at(f"docker-archive:{path}", shrunk)


def test_gnu_sparse_member_is_not_taken_for_its_bytes(tmp_path: Path) -> None:
    out = io.BytesIO()
    info = tarfile.TarInfo("manifest.json")
    info.type, info.size = tarfile.GNUTYPE_SPARSE, 0
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
        archive.addfile(info)
    with pytest.raises(NotFound, match=r"has no manifest\.json"):
        read_back(f"docker-archive:{written(tmp_path / 'a.tar', out.getvalue())}", tmp_path)
