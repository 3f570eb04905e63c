"""What `docker save` says of images."""

import json

import pytest

from snapshotter.errors import FormatError, NotFound
from snapshotter.image.places.docker_manifest import SavedImage, choose, familiar, parse_saved, saved_json
from snapshotter.registry.reference import parse_reference


@pytest.mark.parametrize(
    ("reference", "shown"),
    [
        ("busybox", "busybox:latest"),
        ("docker.io/library/busybox:1", "busybox:1"),
        ("team/app:v1", "team/app:v1"),
        ("docker.io/library/a/b:v1", "library/a/b:v1"),
        ("example.org:5000/a:v1", "example.org:5000/a:v1"),
        ("localhost/a:v1", "localhost/a:v1"),
    ],
)
def test_names_are_shown_as_docker_shows_them_and_mean_the_same(reference: str, shown: str) -> None:
    assert familiar(parse_reference(reference)) == shown
    assert parse_reference(shown) == parse_reference(reference)


def test_what_is_written_is_read_back() -> None:
    images = [SavedImage("c.json", ("a/layer.tar", "b/layer.tar"), ("x:1", "y:2")), SavedImage("d.json", (), ())]
    assert parse_saved(saved_json(images), "there") == images
    assert json.loads(saved_json(images))[1] == {"Config": "d.json", "RepoTags": None, "Layers": []}


def test_lists_that_are_null_are_empty_and_unknown_keys_are_passed_over() -> None:
    raw = b'[{"Config": "c", "RepoTags": null, "Layers": null, "LayerSources": {}}]'
    assert parse_saved(raw, "there") == [SavedImage("c", (), ())]


def test_one_image_under_two_names_is_one_image() -> None:
    twice = [SavedImage("c", ("l",), ("x:1",)), SavedImage("c", ("l",), ("y:1",))]
    assert choose(twice, None, "there") == twice[0]
    with pytest.raises(NotFound, match="exactly one image; append :NAME; it has: x:1, y:1"):
        choose([twice[0], SavedImage("c", ("m",), ("y:1",))], None, "there")
    with pytest.raises(NotFound, match="it has: none"):
        choose([], None, "there")


@pytest.mark.parametrize(
    "raw", [b"", b"{}", b"[1]", b'[{"Layers": []}]', b'[{"Config": 1}]', b'[{"Config": "c", "RepoTags": [1]}]']
)
def test_anything_else_is_refused(raw: bytes) -> None:
    with pytest.raises(FormatError, match=r"there: manifest\.json"):
        parse_saved(raw, "there")
