"""Places as the command line names them."""

from pathlib import Path

import pytest

from snapshotter.errors import ConfigError
from snapshotter.image.places.location import (
    ContainerdLocation,
    DockerArchiveLocation,
    LayoutLocation,
    Location,
    OciArchiveLocation,
    RegistryLocation,
    parse_location,
    with_suffix,
)
from snapshotter.registry.reference import parse_reference


@pytest.mark.parametrize(
    ("text", "path", "tag"),
    [
        ("oci:a/b", "a/b", None),
        ("oci:/x:v1", "/x", "v1"),
        ("oci:/x:host/name:v1", "/x", "host/name:v1"),
        ("oci:.:", ".", None),
    ],
)
def test_layouts_are_named_as_skopeo_names_them(text: str, path: str, tag: str | None) -> None:
    assert parse_location(text) == LayoutLocation(Path(path), tag)
    assert parse_location(text.replace("oci:", "oci-archive:")) == OciArchiveLocation(Path(path), tag)


def test_image_of_a_docker_archive_is_named_as_docker_names_it() -> None:
    assert parse_location("docker-archive:a.tar") == DockerArchiveLocation(Path("a.tar"), None)
    for name in ("busybox", "docker.io/library/busybox:latest"):
        found = parse_location(f"docker-archive:/a.tar:{name}")
        assert found == DockerArchiveLocation(Path("/a.tar"), parse_reference("busybox:latest"))


@pytest.mark.parametrize("text", ["127.0.0.1:5000/x:tag", "docker://127.0.0.1:5000/x:tag"])
def test_references_may_have_the_transport_of_other_tools(text: str) -> None:
    found = parse_location(text)
    assert isinstance(found, RegistryLocation)
    assert str(found) == "127.0.0.1:5000/x:tag"


def test_records_of_containerd_may_be_called_anything() -> None:
    found = parse_location("containerd:Any Name")
    assert found == ContainerdLocation("Any Name")
    assert isinstance(found, ContainerdLocation)
    assert found.reference is None


@pytest.mark.parametrize(
    "text",
    [
        "oci:",
        "oci::v1",
        "oci-archive:",
        "docker-archive:",
        "docker-archive::x",
        "docker-archive:x.tar:Upper/Case",
        "docker-daemon:x",
        "containers-storage:x",
        "dir:x",
        "containerd:",
        "containerd: x",
        "containerd:x\n",
        "./x.tar",
        "/x.tar",
        "~/x.tar",
        "http://host/x",
        "https://host/x",
        "Upper/Case",
        "",
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_location(text)


def test_refusal_says_what_to_do_instead() -> None:
    with pytest.raises(ConfigError, match="docker save -o FILE NAME"):
        parse_location("docker-daemon:busybox:latest")
    with pytest.raises(ConfigError, match=r"is a path: say what is there; use .*docker-archive:FILE"):
        parse_location("./image.tar")


@pytest.mark.parametrize(
    ("text", "beside"),
    [
        ("host.org/x:v1", "host.org/x:v1-toc"),
        ("host.org/x", "host.org/x:latest-toc"),
        ("oci:/x:v1", "oci:/x:v1-toc"),
        ("oci-archive:/x:v1", "oci-archive:/x:v1-toc"),
        ("docker-archive:/x:a:v1", "docker-archive:/x:docker.io/library/a:v1-toc"),
        ("containerd:a", "containerd:docker.io/library/a:latest-toc"),
        ("containerd:Any Name", "containerd:Any Name-toc"),
    ],
)
def test_second_image_has_the_suffix_behind_the_tag(text: str, beside: str) -> None:
    place: Location = parse_location(text)
    assert str(with_suffix(place, "-toc")) == beside
    assert with_suffix(place, "") == place


@pytest.mark.parametrize(
    "text",
    [
        "oci:/x",
        "oci-archive:/x",
        "docker-archive:/x",
        f"host.org/x@sha256:{'0' * 64}",
        f"containerd:x@sha256:{'0' * 64}",
        f"host.org/x:{'v' * 126}",
    ],
)
def test_second_image_needs_a_tag_that_can_be_longer(text: str) -> None:
    place = parse_location(text)
    assert with_suffix(place, "") == place
    with pytest.raises(ConfigError):
        with_suffix(place, "-toc")
