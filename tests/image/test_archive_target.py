"""Archives as a place to convert to."""

import errno
import json
import os
import platform
import re
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import pytest
import trio

from snapshotter.errors import ConfigError, FormatError, NotFound, StoreFull
from snapshotter.image.places.ends import Source, Target
from snapshotter.registry.manifest import Descriptor
from snapshotter.registry.platform import host_platform
from tests.image.images import OCI_INDEX, OCI_LAYER, Image, sha256
from tests.image.places import TARS, at, between, copier, copy, docker_tar, read_back, saved

KINDS = ("oci-archive", "docker-archive")


def files_of(path: Path) -> dict[str, bytes]:
    """What a reader of tars finds, every name once."""
    found: dict[str, bytes] = {}
    with tarfile.open(path) as archive:
        for member in archive:
            if (file := archive.extractfile(member)) is not None:
                assert member.name not in found
                found[member.name] = file.read()
    return found


def assert_alone(*paths: Path) -> None:
    """Nothing lies beside these."""
    assert sorted(paths[0].parent.iterdir()) == sorted(paths)


@pytest.mark.parametrize("kind", KINDS)
def test_archive_is_a_layout_with_exactly_the_images_blobs(kind: str, tmp_path: Path) -> None:
    image = Image(*TARS)
    source = image.lay_out(tmp_path / "a")
    path = tmp_path / "out" / "b.tar"
    path.parent.mkdir()
    sent = copy(source, f"{kind}:{path}:example.org/app:v1", tmp_path)
    assert sorted(sent) == sorted(set(image.blobs) - {image.manifest()["digest"]})
    found = files_of(path)
    blobs = {name.rpartition("/")[2]: data for name, data in found.items() if name.startswith("blobs/sha256/")}
    assert {f"sha256:{name}": data for name, data in blobs.items()} == image.blobs
    assert json.loads(found["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
    assert ("manifest.json" in found) == (kind == "docker-archive")
    assert path.stat().st_mode & 0o777 == 0o644
    assert_alone(path)
    for name in ("", ":example.org/app:v1"):
        assert read_back(f"{kind}:{path}{name}", tmp_path)[0] == image.blobs[image.document["layers"][0]["digest"]]


def test_docker_archive_says_what_docker_and_containerd_call_the_image(tmp_path: Path) -> None:
    image = Image(*TARS)
    copy(image.lay_out(tmp_path / "a"), f"docker-archive:{tmp_path}/b.tar:busybox", tmp_path)
    found = files_of(tmp_path / "b.tar")
    (entry,) = json.loads(found["manifest.json"])
    assert entry["RepoTags"] == ["busybox:latest"]
    assert sha256(found[entry["Config"]]) == image.document["config"]["digest"]
    assert [sha256(found[name]) for name in entry["Layers"]] == [one["digest"] for one in image.document["layers"]]
    (top,) = json.loads(found["index.json"])["manifests"]
    assert top["digest"] == image.manifest()["digest"]
    assert top["annotations"] == {
        "io.containerd.image.name": "docker.io/library/busybox:latest",
        "org.opencontainers.image.ref.name": "latest",
    }
    copy(f"oci:{tmp_path}/a:v1", f"docker-archive:{tmp_path}/unnamed.tar", tmp_path)
    assert json.loads(files_of(tmp_path / "unnamed.tar")["manifest.json"])[0]["RepoTags"] is None


def test_second_image_with_a_suffix_is_not_docker_s(tmp_path: Path) -> None:
    source = Image(*TARS).lay_out(tmp_path / "a")

    async def both(place: Source, target: Target) -> None:
        await copier(tmp_path, "-esgztoc")(place, target)
        await copier(tmp_path)(place, target)

    between(source, f"docker-archive:{tmp_path}/b.tar:app:v1", both)
    found = files_of(tmp_path / "b.tar")
    assert [one["RepoTags"] for one in json.loads(found["manifest.json"])] == [["app:v1"]]
    names = [one["annotations"]["io.containerd.image.name"] for one in json.loads(found["index.json"])["manifests"]]
    assert names == ["docker.io/library/app:v1-esgztoc", "docker.io/library/app:v1"]
    with pytest.raises(ConfigError, match="give it a tag"):
        between(source, f"docker-archive:{tmp_path}/c.tar", both)
    assert not (tmp_path / "c.tar").exists()


def test_of_an_index_docker_is_told_the_image_for_this_host_alone(tmp_path: Path) -> None:
    here = host_platform(platform.machine()).architecture
    images = {name: Image(name.encode(), architecture=name) for name in ("s390x", here, "riscv64")}
    entries = [{**one.manifest(), "platform": {"os": "linux", "architecture": name}} for name, one in images.items()]
    whole = Image()
    whole.document, whole.media_type = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}, OCI_INDEX
    whole.blobs = {digest: data for one in images.values() for digest, data in one.blobs.items()}
    copy(whole.lay_out(tmp_path / "a"), f"docker-archive:{tmp_path}/b.tar:app:v1", tmp_path)
    found = files_of(tmp_path / "b.tar")
    said = json.loads(found["manifest.json"])
    assert [one["RepoTags"] for one in said] == [["app:v1"]]
    assert json.loads(found[said[0]["Config"]])["architecture"] == here

    async def top(place: Source) -> str:
        return (await place.manifest(None)).digest

    assert at(f"docker-archive:{tmp_path}/b.tar:app:v1", top) == whole.manifest()["digest"]


@pytest.mark.parametrize("kind", KINDS)
def test_work_that_fails_keeps_the_archive_that_was_there(kind: str, tmp_path: Path) -> None:
    source = Image(*TARS).lay_out(tmp_path / "a")
    path = tmp_path / "out" / "b.tar"
    path.parent.mkdir()
    path.write_bytes(b"of before")

    async def cut_off(place: Source, target: Target) -> None:
        await copier(tmp_path)(place, target)
        raise FormatError("the last layer is bad")

    with pytest.raises(FormatError, match="last layer"):
        between(source, f"{kind}:{path}", cut_off)
    assert path.read_bytes() == b"of before"
    assert_alone(path)

    async def given_up(place: Source, target: Target) -> None:
        with trio.CancelScope() as scope:
            scope.cancel()
            await copier(tmp_path)(place, target)

    between(source, f"{kind}:{path}", given_up)
    assert path.read_bytes() == b"of before"
    assert_alone(path)
    copy(source, f"{kind}:{path}", tmp_path)
    assert len(files_of(path)) == 6 + (kind == "docker-archive")


def test_archive_may_be_converted_in_place(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(docker_tar(saved(*TARS)))
    copy(f"docker-archive:{path}", f"docker-archive:{path}:example.org/app:v2", tmp_path)
    assert read_back(f"docker-archive:{path}:example.org/app:v2", tmp_path)[:2] == list(TARS)


def test_blob_that_breaks_off_leaves_the_rest_of_the_archive_whole(tmp_path: Path) -> None:
    source = Image(*TARS).lay_out(tmp_path / "a")
    short = tmp_path / "short"
    short.write_bytes(b"some")

    async def work(place: Source, target: Target) -> None:
        for size in (3, 5):
            with pytest.raises(FormatError, match="announced with"):
                await target.put_blob(Descriptor(OCI_LAYER, sha256(b"?"), size), short)
        await copier(tmp_path)(place, target)

    between(source, f"oci-archive:{tmp_path}/b.tar", work)
    assert len(files_of(tmp_path / "b.tar")) == 6


class FullDisk:
    """A file on a disk that takes so many bytes."""

    def __init__(self, file: Any, room: int) -> None:
        self._file, self._room = file, room

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, data: bytes) -> int:
        if self._file.tell() + len(data) > self._room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return int(self._file.write(data))

    def close(self) -> None:
        self._file.close()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("room", [1200, 1600, 2600, 4600, 6600])
def test_full_disk_is_told_with_the_archive_and_leaves_nothing(
    room: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Image(*TARS).lay_out(tmp_path / "a")
    path = tmp_path / "out" / "b.tar"
    path.parent.mkdir()
    made = tempfile.NamedTemporaryFile
    monkeypatch.setattr(tempfile, "NamedTemporaryFile", lambda **how: FullDisk(made(**how), room))
    with pytest.raises(StoreFull, match=re.escape(f"no room left at {path}")):
        copy(source, f"docker-archive:{path}:app:v1", tmp_path)
    assert list(path.parent.iterdir()) == []


def test_same_image_makes_the_same_archive(tmp_path: Path) -> None:
    source = Image(*TARS).lay_out(tmp_path / "a")
    for name in ("b", "c"):
        copy(source, f"docker-archive:{tmp_path}/{name}.tar:app:v1", tmp_path)
    assert (tmp_path / "b.tar").read_bytes() == (tmp_path / "c.tar").read_bytes()


def test_place_that_cannot_be_written_to_is_told_before_the_work(tmp_path: Path) -> None:
    source = Image(*TARS).lay_out(tmp_path / "a")
    asked: list[Any] = []

    async def work(place: Source, target: Target) -> None:
        asked.append((place, target))

    with pytest.raises(NotFound, match=re.escape(f"{tmp_path}/none does not exist")):
        between(source, f"oci-archive:{tmp_path}/none/b.tar", work)
    with pytest.raises(ConfigError, match="no file"):
        between(source, f"oci-archive:{tmp_path}", work)
    with pytest.raises(ConfigError, match="not known before"):
        between(source, f"docker-archive:{tmp_path}/b.tar:app@sha256:{'0' * 64}", work)
    assert asked == []


def test_archive_into_which_nothing_was_named_does_not_appear(tmp_path: Path) -> None:
    source = Image(*TARS).lay_out(tmp_path / "a")

    async def nothing(_place: Source, target: Target) -> None:
        await target.put_blob(Descriptor(OCI_LAYER, sha256(b"x"), 1), b"x")

    between(source, f"oci-archive:{tmp_path}/b.tar", nothing)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a"]
