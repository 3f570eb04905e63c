"""containerd's store as a place to convert from; the real one: integration/test_places.py."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from snapshotter.errors import (
    BlobMissing,
    ContainerdError,
    ContainerdUnreachable,
    FormatError,
    IntegrityError,
    NotFound,
)
from tests.doubles.registry import LoopbackRegistry
from tests.image.images import Image, sha256
from tests.image.places import TARS, access, read_back
from tests.image.stores import There, layers_of, store


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[There]:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    with store(tmp_path) as made:
        yield made


@pytest.mark.parametrize("name", ["busybox", "busybox:latest", "docker.io/library/busybox:latest"])
def test_record_is_found_by_the_name_as_people_type_it(name: str, there: There, tmp_path: Path) -> None:
    image = Image(*TARS)
    there.have(image, "docker.io/library/busybox:latest")
    assert [sha256(data) for data in read_back(f"containerd:{name}", tmp_path, there.how)[:2]] == layers_of(image)
    assert there.node.namespaces == {"k8s.io"}
    assert there.node.leases == {}


def test_record_of_exactly_the_name_comes_first(there: There, tmp_path: Path) -> None:
    literal, written_out = Image(b"literal" * 9), Image(b"written out" * 9)
    there.have(written_out, "docker.io/library/Busy box".lower().replace(" ", "") + ":latest")
    there.have(literal, "busybox")
    there.have(literal, "no Reference")
    for name in ("busybox", "no Reference"):
        found = read_back(f"containerd:{name}", tmp_path, there.how)
        assert sha256(found[0]) == layers_of(literal)[0]


def test_name_that_is_not_there_is_told_with_the_namespace(there: There, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"no image busybox in the namespace k8s\.io; `ctr -n k8s\.io images ls`"):
        read_back("containerd:busybox", tmp_path, there.how)


def test_containerd_that_does_not_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(ContainerdUnreachable, match="no containerd at"):
        read_back("containerd:busybox", tmp_path, access(tmp_path / "none"))


def test_blobs_that_were_never_fetched_come_from_the_registry_that_labels_name(there: There, tmp_path: Path) -> None:
    image = Image(*TARS)
    with LoopbackRegistry(repository="team/app") as registry:
        image.push(registry)
        missing = (layers_of(image)[0], image.document["config"]["digest"])
        there.have(image, f"{registry.host}/retagged/here:v1", without=missing, source="wrong/one,team/app")
        registry.script(f"/v2/wrong/one/blobs/{missing[0]}", "404 404 404 404")
        registry.script(f"/v2/wrong/one/blobs/{missing[1]}", "404 404 404 404")
        found = read_back(f"containerd:{registry.host}/retagged/here:v1", tmp_path, there.how)
        assert [sha256(data) for data in found] == [*layers_of(image), missing[1]]
        asked = {record.path.rpartition("/")[2] for record in registry.requests if record.status in (200, 206)}
        assert asked == set(missing)


def test_manifest_that_is_missing_comes_from_the_registry_of_the_name(there: There, tmp_path: Path) -> None:
    image = Image(*TARS)
    with LoopbackRegistry() as registry:
        image.push(registry)
        there.have(image, registry.reference(":v1"), without=(image.manifest()["digest"],))
        assert read_back(f"containerd:{registry.reference(':v1')}", tmp_path, there.how)
        assert [record.path.rpartition("/")[2] for record in registry.requests] == [image.manifest()["digest"]]


def test_blob_that_nobody_has_is_named(there: There, tmp_path: Path) -> None:
    image = Image(*TARS)
    missing = layers_of(image)[0]
    with LoopbackRegistry() as registry:
        there.have(image, registry.reference(":v1"), without=(missing,))
        with pytest.raises(BlobMissing, match=rf"lacks {missing} of .*HTTP 404"):
            read_back(f"containerd:{registry.reference(':v1')}", tmp_path, there.how)
        there.have(image, "No Reference", without=(missing,))
        with pytest.raises(BlobMissing, match="nothing says which registry"):
            read_back("containerd:No Reference", tmp_path, there.how)
        registry.blobs[missing] = bytes(len(image.blobs[missing]))
        with pytest.raises(IntegrityError, match=missing):
            read_back(f"containerd:{registry.reference(':v1')}", tmp_path, there.how)


def test_blob_that_is_damaged_on_the_node_is_told(there: There, tmp_path: Path) -> None:
    image = Image(*TARS)
    layer = layers_of(image)[0]
    there.have(image, "docker.io/library/app:v1")
    there.node.blobs[layer].data = bytes(len(image.blobs[layer]))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with pytest.raises(IntegrityError, match="its disk may fail"):
        read_back("containerd:app:v1", scratch, there.how)
    assert list(scratch.iterdir()) == []
    there.node.blobs[layer].data = b"short"
    with pytest.raises((FormatError, ContainerdError)):
        read_back("containerd:app:v1", scratch, there.how)
