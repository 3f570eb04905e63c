"""`snapshotter image inspect`, run as the command line runs it."""

import json
import platform
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from snapshotter.cli.main import main
from snapshotter.format.footer import Flavor
from snapshotter.registry.platform import host_platform
from tests.doubles.layers import BuiltLayer, dir, file, hardlink, layer, opaque, symlink, whiteout
from tests.doubles.registry import LoopbackRegistry
from tests.image.converting import LOWER, UPPER, index_of
from tests.image.images import OCI_CONFIG, Image, write_layout

pytestmark = pytest.mark.usefixtures("scratch")
Captured = pytest.CaptureFixture[str]
HOST = host_platform(platform.machine())
NONE = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
ENTRIES = (
    dir("etc"),
    file("etc/passwd", b"root" * 100, mode=0o600, uid=3),
    file("big", b"big" * 4000),
    file("empty"),
    symlink("link", "big"),
    hardlink("twin", "big"),
)


def image_of(*layers: BuiltLayer, annotated: bool = True) -> Image:
    """An image with these layers."""
    image = Image()
    config = {
        "os": "linux",
        "architecture": "amd64",
        "created": "2024-01-02T03:04:05Z",
        "config": {"Entrypoint": ["/bin/sh", "-c"], "Env": ["A=b"], "User": "7", "ExposedPorts": {"80/tcp": {}}},
        "rootfs": {"type": "layers", "diff_ids": [one.diff_id for one in layers]},
    }
    image.document["config"] = image.add(json.dumps(config).encode(), OCI_CONFIG)
    for one in layers:
        descriptor = image.add(one.blob, one.media_type)
        image.document["layers"].append({**descriptor, **({"annotations": one.annotations} if annotated else {})})
    return image


def inspect(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["image", "inspect", *map(str, arguments)])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def found(capsys: Captured, *arguments: str | Path) -> Any:
    """What it says for programs."""
    code = inspect(*arguments, "--json")
    output = capsys.readouterr()
    assert code == 0, output.err
    return json.loads(output.out)


@pytest.mark.parametrize(
    "built",
    [
        pytest.param(layer(*ENTRIES, prefetch=["etc/passwd"], chunk_size=5000), id="estargz"),
        pytest.param(layer(*ENTRIES, prefetch=["etc/passwd"], chunk_size=5000, flavor=Flavor.ZSTD_CHUNKED), id="zstd"),
        pytest.param(
            layer(*ENTRIES, prefetch=["etc/passwd"], chunk_size=5000, flavor=Flavor.ZSTD_CHUNKED, storage=True),
            id="zstd-of-podman",
        ),
    ],
)
def test_layer_is_described_from_its_table_of_contents(built: BuiltLayer, tmp_path: Path, capsys: Captured) -> None:
    told = found(capsys, image_of(built).lay_out(tmp_path / "a"))
    (image,) = told["images"]
    (one,) = image["layers"]
    mark = next(row for row in json.loads(built.toc_json)["entries"] if row["name"] == ".prefetch.landmark")
    assert image["lazy"] is True
    assert (one["number"], one["digest"], one["size"]) == (1, built.digest, built.size)
    assert (one["format"], one["lazy"], one["reason"], one["why"]) == (built.flavor, True, None, None)
    assert (one["toc_digest"], one["toc_as_promised"]) == (built.toc_digest, True)
    assert one["toc_json_size"] == len(built.toc_json)
    assert (one["entries"], one["chunks"], one["content_size"]) == (6, 4, 12_400)
    assert (one["landmark"], one["prefetch_size"], one["prefetch_files"]) == (".prefetch.landmark", mark["offset"], 1)
    assert image["seen_size"] == 12_400
    assert image["biggest_files"][0] == {"path": "big", "size": 12_000, "layer": 1}
    assert image["biggest_directories"] == [{"path": "etc", "size": 400}]
    assert image["config"]["entrypoint"] == ["/bin/sh", "-c"]
    assert image["config"]["exposed_ports"] == ["80/tcp"]


def without_digests() -> BuiltLayer:
    return layer(*ENTRIES, flavor=Flavor.STARGZ)


def edited(change: Callable[[dict[str, Any]], None]) -> BuiltLayer:
    return layer(*ENTRIES, edit=lambda toc: change(toc["entries"][1]))


@pytest.mark.parametrize(
    ("built", "reason", "shown"),
    [
        (without_digests(), "toc-invalid", True),
        (edited(lambda row: row.update(offset=1 << 40)), "toc-invalid", False),
        (edited(lambda row: row.update(name="../" * 3)), "toc-invalid", False),
        (edited(lambda row: row.update(modtime="yesterday")), "toc-invalid", False),
        (edited(lambda row: row.update(type="socket")), "toc-invalid", False),
    ],
    ids=["no-digests", "outside", "name", "time", "type"],
)
def test_table_that_cannot_be_mounted_says_why(
    built: BuiltLayer, reason: str, shown: bool, tmp_path: Path, capsys: Captured
) -> None:
    (image,) = found(capsys, image_of(built).lay_out(tmp_path / "a"))["images"]
    (one,) = image["layers"]
    assert (image["lazy"], one["lazy"], one["reason"], one["format"]) == (False, False, reason, built.flavor)
    assert one["why"]
    assert (one["entries"] is not None) is shown


def test_promise_of_the_manifest_is_compared_and_its_absence_told(tmp_path: Path, capsys: Captured) -> None:
    good, bad = layer(*ENTRIES), layer(*ENTRIES, file("other", b"1"))
    bad.annotations["containerd.io/snapshot/stargz/toc.digest"] = good.toc_digest
    (image,) = found(capsys, image_of(good, bad).lay_out(tmp_path / "a"))["images"]
    assert [one["toc_as_promised"] for one in image["layers"]] == [True, False]
    assert [one["reason"] for one in image["layers"]] == [None, "toc-digest-mismatch"]
    (image,) = found(capsys, image_of(good, annotated=False).lay_out(tmp_path / "b"))["images"]
    assert [(one["reason"], one["toc_as_promised"]) for one in image["layers"]] == [("no-toc-digest", None)]
    assert image["layers"][0]["entries"] == 6


def test_ordinary_layers_are_told_apart_and_leave_questions_open(tmp_path: Path, capsys: Captured) -> None:
    image = Image(LOWER, UPPER, UPPER)
    image.document["layers"][1]["mediaType"] = NONE
    image.document["layers"][2]["mediaType"] = "application/vnd.oci.image.layer.v1.tar"
    (told,) = found(capsys, image.lay_out(tmp_path / "a"))["images"]
    assert [one["format"] for one in told["layers"]] == ["gzip", "gzip", "tar"]
    reasons = ["not-a-lazy-format", "unsupported-media-type", "not-a-lazy-format"]
    assert [one["reason"] for one in told["layers"]] == reasons
    assert {one["entries"] for one in told["layers"]} == {None}
    assert told["biggest_files"] == []


def test_table_in_another_image_is_found_by_the_name_of_this_one(tmp_path: Path, capsys: Captured) -> None:
    built = layer(*ENTRIES, flavor=Flavor.EXTERNAL)
    image = image_of(built)
    location = image.lay_out(tmp_path / "a", "v1")
    (one,) = found(capsys, location)["images"][0]["layers"]
    assert (one["format"], one["lazy"], one["entries"]) == ("estargz-external-toc", False, None)
    assert "v1-esgztoc" in one["why"]

    tocs = Image()
    descriptor = tocs.add(built.external_toc, "application/vnd.oci.image.layer.v1.tar+gzip")
    annotations = {"containerd.io/snapshot/stargz/layer.digest": built.digest}
    tocs.document["layers"] = [{**descriptor, "annotations": annotations}]
    other = tmp_path / "b"
    tocs.lay_out(other, "v1-esgztoc")
    for blob in (other / "blobs" / "sha256").iterdir():
        blob.rename(tmp_path / "a" / "blobs" / "sha256" / blob.name)
    index, more = (json.loads((path / "index.json").read_text()) for path in (tmp_path / "a", other))
    index["manifests"] += more["manifests"]
    (tmp_path / "a" / "index.json").write_text(json.dumps(index))
    (one,) = found(capsys, location)["images"][0]["layers"]
    assert (one["lazy"], one["entries"], one["toc_digest"]) == (True, 6, built.toc_digest)


def test_registry_is_asked_for_the_ends_of_layers_only(registry: LoopbackRegistry, capsys: Captured) -> None:
    built = layer(*(file(f"f{n}", bytes([n]) * 400_000, mode=0o644) for n in range(20)), level=0)
    told = found(capsys, image_of(built).push(registry))
    assert told["images"][0]["lazy"] is True
    ranges = [request.headers.get("range") for request in registry.requests if built.digest in request.path]
    assert ranges == [f"bytes={built.size - 128 * 1024}-{built.size - 1}"]
    assert told["fetched_layer_bytes"] == 128 * 1024


def test_container_sees_neither_what_upper_layers_hide_nor_what_they_replace(tmp_path: Path, capsys: Captured) -> None:
    lower = layer(
        *(
            file(name, b"x" * size)
            for name, size in {"a/gone": 900, "a/kept": 10, "b/1": 800, "c": 700, "d/x": 600}.items()
        )
    )
    upper = layer(whiteout("a/gone"), opaque("b"), file("b/2", b"x" * 20), file("c", b"x" * 30), file("d", b"x" * 40))
    (image,) = found(capsys, image_of(lower, upper).lay_out(tmp_path / "a"))["images"]
    assert [(one["path"], one["size"], one["layer"]) for one in image["biggest_files"]] == [
        ("d", 40, 2),
        ("c", 30, 2),
        ("b/2", 20, 2),
        ("a/kept", 10, 1),
    ]
    assert image["biggest_directories"] == [{"path": "b", "size": 20}, {"path": "a", "size": 10}]
    assert image["seen_size"] == 100
    (image,) = found(capsys, image_of(lower, upper).lay_out(tmp_path / "b"), "--top", "1")["images"]
    assert (len(image["biggest_files"]), len(image["biggest_directories"])) == (1, 1)


def test_index_is_shown_whole_and_one_of_its_images_closer(tmp_path: Path, capsys: Captured) -> None:
    other = "arm64" if HOST.architecture != "arm64" else "amd64"
    location = index_of(tmp_path / "a", **{HOST.architecture: Image(LOWER), other: Image(UPPER)})
    told = found(capsys, location)
    assert [one["platform"] for one in told["manifests"]] == [str(HOST), f"linux/{other}", None]
    assert [one["attestation"] for one in told["manifests"]] == [False, False, True]
    assert [image["digest"] for image in told["images"]] == [told["manifests"][0]["digest"]]
    told = found(capsys, location, "--platform", f"linux/{other}")
    assert [image["digest"] for image in told["images"]] == [told["manifests"][1]["digest"]]
    assert inspect(location, "--platform", "linux/mips64le") != 0
    location = index_of(tmp_path / "b", riscv64=Image(LOWER))
    assert found(capsys, location)["images"] == []
    assert inspect(location) == 0
    assert f"no image for {HOST}" in capsys.readouterr().out


def test_table_fits_eighty_columns_and_names_cannot_steer_the_terminal(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    evil = layer(*ENTRIES, file("evil\x1b[2J", b"x" * 99_999), prefetch=["big"], flavor=Flavor.ZSTD_CHUNKED)
    location = image_of(*[evil] * 12).lay_out(tmp_path / "a")
    monkeypatch.setenv("COLUMNS", "80")
    assert inspect(location, "--files") == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    rows = [line for line in out.splitlines() if "zstd:chunked" in line]
    assert len(rows) == 12
    assert max(map(len, rows)) <= 80
    assert f"digest   {image_of(*[evil] * 12).manifest()['digest']}" in out
    line = next(line for line in out.splitlines() if line.endswith(" big"))
    assert line.startswith("*-rw-r--r-- 0/0 ")
    monkeypatch.setenv("COLUMNS", "120")
    assert inspect(location) == 0
    assert "CHUNKS" in capsys.readouterr().out


def test_table_of_contents_is_printed_as_it_is(tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    one, two = layer(*ENTRIES), layer(file("caf\udce9", b"1"))
    location = image_of(one, two).lay_out(tmp_path / "a")
    for wanted in ("2", two.digest, two.digest.removeprefix("sha256:")[:12]):
        assert inspect(location, "--toc", wanted) == 0
        assert capsysbinary.readouterr().out == two.toc_json
    assert inspect(location, "--toc", "3") != 0
    assert b"it has 2 layers" in capsysbinary.readouterr().err
    assert inspect(Image(LOWER).lay_out(tmp_path / "b"), "--toc", "1") != 0
    assert b"shows no table of contents" in capsysbinary.readouterr().err


def test_archive_and_missing_places_are_told_like_everywhere(tmp_path: Path, capsys: Captured) -> None:
    image_of(layer(*ENTRIES)).lay_out(tmp_path / "a")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(tmp_path / "a", ".")
    told = found(capsys, f"oci-archive:{tmp_path}/a.tar")
    assert told["images"][0]["lazy"] is True
    assert inspect(f"oci:{tmp_path}/nothing") != 0
    assert "no OCI layout" in capsys.readouterr().err


def test_blob_that_is_shorter_than_promised_is_told(tmp_path: Path, capsys: Captured) -> None:
    built = layer(*ENTRIES)
    image = image_of(built)
    write_layout(tmp_path, [image.manifest()], {**image.blobs, built.digest: built.blob[:-9]}, "v1")
    (one,) = found(capsys, f"oci:{tmp_path}:v1")["images"][0]["layers"]
    assert (one["reason"], one["entries"]) == ("blob-missing", None)
