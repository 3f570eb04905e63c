from pathlib import Path

import pytest

from snapshotter.errors import ConfigError
from snapshotter.image.places.location import LayoutLocation, RegistryLocation, parse_location


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


@pytest.mark.parametrize("text", ["127.0.0.1:5000/x:tag", "docker://127.0.0.1:5000/x:tag"])
def test_references_may_have_the_transport_of_other_tools(text: str) -> None:
    found = parse_location(text)
    assert isinstance(found, RegistryLocation)
    assert str(found) == "127.0.0.1:5000/x:tag"


@pytest.mark.parametrize(
    "text",
    [
        "oci:",
        "oci::v1",
        "oci-archive:",
        "docker-archive::x",
        "docker-daemon:x",
        "dir:x",
        "containerd:",
        "./x.tar",
        "https://host/x",
        "Upper/Case",
        "",
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_location(text)
