"""zstd:chunked images have a manifest for each family of tools, over the same blobs."""

import json
from pathlib import Path
from typing import Any

import pytest

from snapshotter.format.footer import toc_anchor
from tests.format.tars import entry, tar
from tests.image.converting import LOWER, TOC_DIGEST, UPPER, index_of, run
from tests.image.images import OCI_INDEX, OCI_MANIFEST, Image, Layout

pytestmark = pytest.mark.usefixtures("scratch")

BY_ZSTD = "io.github.containers.compression.zstd"


def manifests(layout: Layout, name: str = "new") -> list[dict[str, Any]]:
    """The entries of an index, each with its document in place of its annotations."""
    return [one | {"document": json.loads(layout.blob(one["digest"]))} for one in layout.top(name)["manifests"]]


def test_twin_names_the_same_blobs_without_what_podman_refuses(tmp_path: Path) -> None:
    source = Image(LOWER, UPPER, annotations={"keep": "me"}).lay_out(tmp_path / "a")
    assert run(source, f"oci:{tmp_path}/b:new", "--zstdchunked") == 0
    layout = Layout(tmp_path / "b")
    assert layout.top()["mediaType"] == OCI_INDEX
    first, twin = manifests(layout)
    assert first["platform"] == twin["platform"] == {"os": "linux", "architecture": "amd64"}
    assert (first.get("annotations"), twin["annotations"]) == (None, {BY_ZSTD: "true"})
    assert first["document"]["config"] == twin["document"]["config"]
    assert first["document"]["annotations"] == twin["document"]["annotations"] == {"keep": "me"}
    for one, other in zip(first["document"]["layers"], twin["document"]["layers"], strict=True):
        assert other["digest"] == one["digest"]
        assert one["annotations"] == other["annotations"] | {TOC_DIGEST: one["annotations"][TOC_DIGEST]}
        assert TOC_DIGEST not in other["annotations"]
        assert toc_anchor(one["annotations"]) == toc_anchor(other["annotations"]) is not None


def test_gzip_images_have_none(tmp_path: Path) -> None:
    source = Image(LOWER).lay_out(tmp_path / "a")
    assert run(source, f"oci:{tmp_path}/b:zstd", "--zstdchunked") == 0
    for options in ((), ("--all-platforms",), ("--platform", "linux/amd64")):
        assert run(f"oci:{tmp_path}/b:zstd", f"oci:{tmp_path}/b:gzip", *options) == 0
        layout = Layout(tmp_path / "b")
        (one,) = [layout.top("gzip")] if options != ("--all-platforms",) else layout.top("gzip")["manifests"]
        assert one["mediaType"] == OCI_MANIFEST
        assert BY_ZSTD not in one.get("annotations", {})


@pytest.mark.parametrize("options", [(), ("--all-platforms",), ("--reuse",), ("--all-platforms", "--reuse")])
def test_converting_it_again_changes_nothing(options: tuple[str, ...], tmp_path: Path) -> None:
    source = Image(LOWER, UPPER).lay_out(tmp_path / "a")
    assert run(source, f"oci:{tmp_path}/b:one", "--zstdchunked") == 0
    assert run(f"oci:{tmp_path}/b:one", f"oci:{tmp_path}/b:two", "--zstdchunked", *options) == 0
    layout = Layout(tmp_path / "b")
    assert layout.top("two") == layout.top("one")


def test_every_platform_has_its_twin_behind_all_images(tmp_path: Path) -> None:
    source = index_of(tmp_path / "a", amd64=Image(LOWER), arm64=Image(UPPER, architecture="arm64"))
    assert run(source, f"oci:{tmp_path}/b:new", "--zstdchunked", "--all-platforms") == 0
    entries = manifests(Layout(tmp_path / "b"))
    assert [one["platform"]["architecture"] for one in entries] == ["amd64", "arm64", "amd64", "arm64"]
    assert [BY_ZSTD in one.get("annotations", {}) for one in entries] == [False, False, True, True]


def test_image_without_layers_that_are_lazy_needs_none(tmp_path: Path) -> None:
    assert run(Image().lay_out(tmp_path / "a"), f"oci:{tmp_path}/b:new", "--zstdchunked") == 0
    assert Layout(tmp_path / "b").top()["mediaType"] == OCI_MANIFEST
    assert run(Image(tar(entry("a"))).lay_out(tmp_path / "c"), f"oci:{tmp_path}/b:some", "--zstdchunked") == 0
    assert Layout(tmp_path / "b").top("some")["mediaType"] == OCI_INDEX
