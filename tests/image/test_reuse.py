"""`--reuse`: layers that are right already stay, and only those."""

import gzip
import hashlib
import json
import random
from pathlib import Path
from typing import Any

import pytest

from snapshotter.errors import ConfigError
from snapshotter.format.footer import parse_footer, toc_json
from snapshotter.format.writer import gzip_blob
from tests.doubles.registry import LoopbackRegistry
from tests.format.tars import entry, folder, hard_link, tar
from tests.image.converting import LOWER, TOC_DIGEST, UPPER, run
from tests.image.images import Image, Layout, sha256

pytestmark = pytest.mark.usefixtures("scratch")


def manifest_of(path: Path, name: str) -> dict[str, Any]:
    return Layout(path).image(name)


def with_layers(path: Path, name: str, layers: list[dict[str, Any]]) -> str:
    """The image `name` of a layout once more, its manifest naming these layers; what the command line calls it."""
    layout = Layout(path)
    manifest = layout.image(name)
    image = Image()
    image.document = {**manifest, "layers": layers}
    for one in (manifest["config"], *layers):
        image.blobs[one["digest"]] = layout.blob(one["digest"])
    return image.lay_out(path.parent / "edited")


def test_layers_that_are_right_stay_however_they_are_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = Image(LOWER, UPPER).lay_out(tmp_path / "a")
    assert run(source, f"oci:{tmp_path}/b:one", "--chunk-size", "4KiB") == 0
    assert run(f"oci:{tmp_path}/b:one", f"oci:{tmp_path}/b:two", "--reuse") == 0
    assert "left as it is" in capsys.readouterr().err
    assert run(f"oci:{tmp_path}/b:one", f"oci:{tmp_path}/b:three") == 0
    one, two, three = (manifest_of(tmp_path / "b", name) for name in ("one", "two", "three"))
    assert two == one
    assert three["layers"] != one["layers"]


def test_new_layer_above_those_that_stay_knows_their_directories(tmp_path: Path) -> None:
    base = tar(folder("tmp", mode=0o1777, uid=5))
    assert run(Image(base).lay_out(tmp_path / "a"), f"oci:{tmp_path}/b:one") == 0
    lazy = manifest_of(tmp_path / "b", "one")["layers"][0]
    built = Image(base, tar(entry("tmp/a", b"1")))
    config = json.loads(built.blobs[built.document["config"]["digest"]])
    config["rootfs"]["diff_ids"][0] = Layout(tmp_path / "b").config(manifest_of(tmp_path / "b", "one"))["rootfs"][
        "diff_ids"
    ][0]
    built.document["config"] = built.add(json.dumps(config).encode(), built.document["config"]["mediaType"])
    built.document["layers"][0] = lazy
    built.blobs[lazy["digest"]] = Layout(tmp_path / "b").blob(lazy["digest"])
    assert run(built.lay_out(tmp_path / "c"), f"oci:{tmp_path}/d:reused", "--reuse") == 0
    assert run(built.lay_out(tmp_path / "c"), f"oci:{tmp_path}/d:anew") == 0
    assert manifest_of(tmp_path / "d", "reused") == manifest_of(tmp_path / "d", "anew")


@pytest.mark.parametrize("vouched", [True, False])
def test_layer_that_leaves_out_a_directory_of_another_does_not_stay(vouched: bool, tmp_path: Path) -> None:
    base, upper = tar(folder("tmp", mode=0o1777, uid=5)), tar(entry("tmp/a", b"1"))
    assert run(Image(upper).lay_out(tmp_path / "a"), f"oci:{tmp_path}/b:new") == 0
    lazy = Layout(tmp_path / "b").top()["layers"][0]
    blob = Layout(tmp_path / "b").blob(lazy["digest"])
    image = Image(base, gzip.decompress(blob))
    image.add(blob, lazy["mediaType"])
    image.document["layers"][1] = lazy if vouched else {**lazy, "annotations": {}}
    source = image.lay_out(tmp_path / "c")
    assert run(source, f"oci:{tmp_path}/d:reused", "--reuse") == 0
    assert run(source, f"oci:{tmp_path}/d:anew") == 0
    assert manifest_of(tmp_path / "d", "reused") == manifest_of(tmp_path / "d", "anew")


def test_nothing_but_ends_of_layers_is_read_when_all_of_them_stay(registry: LoopbackRegistry, tmp_path: Path) -> None:
    bulk = tar(*(entry(f"f{number}", bytes([number]) * 50_000) for number in range(200)))
    source = Image(LOWER, bulk).lay_out(tmp_path / "a")
    assert run(source, registry.reference(":lazy"), "--level", "1") == 0
    large = [digest for digest, data in registry.blobs.items() if len(data) > 2000]
    before = len(registry.requests)
    assert run(registry.reference(":lazy"), registry.reference(":again"), "--reuse") == 0
    later = registry.requests[before:]
    assert [one.path for one in later if one.method == "PUT"] == [f"/v2/{registry.repository}/manifests/again"]
    asked = [one for one in later if one.method == "GET" and one.path.endswith(tuple(large))]
    assert asked != []
    assert all(one.range is not None for one in asked)
    assert registry.manifests[registry.repository, "again"] == registry.manifests[registry.repository, "lazy"]


def test_table_far_before_the_end_of_a_zstd_layer_is_found(registry: LoopbackRegistry, tmp_path: Path) -> None:
    # Many small files: what says how the tar is put together again lies behind the table, and is longer than a first look.
    many = tar(*(entry(hashlib.sha256(b"%d" % number).hexdigest()) for number in range(1800)))
    assert run(Image(many).lay_out(tmp_path / "a"), registry.reference(":lazy"), "--zstdchunked", "--level", "1") == 0
    index = json.loads(registry.manifests[registry.repository, "lazy"][0])
    (layer,) = json.loads(registry.manifests[registry.repository, index["manifests"][0]["digest"]][0])["layers"]
    split = layer["annotations"]["io.github.containers.zstd-chunked.tarsplit-position"]
    assert 128 << 10 < int(split.split(":")[1]) < 256 << 10
    before = len(registry.requests)
    assert run(registry.reference(":lazy"), registry.reference(":again"), "--zstdchunked", "--reuse") == 0
    asked = [one for one in registry.requests[before:] if one.method == "GET" and one.path.endswith(layer["digest"])]
    assert len(asked) == 2
    assert all(one.range is not None and one.range[0] > 0 for one in asked)


def test_registry_without_ranges_gives_whole_layers_that_stay(registry: LoopbackRegistry, tmp_path: Path) -> None:
    bulk = tar(entry("f", random.Random(5).randbytes(300_000)))
    assert run(Image(bulk).lay_out(tmp_path / "a"), registry.reference(":lazy")) == 0
    (layer,) = json.loads(registry.manifests[registry.repository, "lazy"][0])["layers"]
    registry.script(f"/v2/{registry.repository}/blobs/{layer['digest']}", "200-to-range*", method="GET")
    assert run(registry.reference(":lazy"), f"oci:{tmp_path}/b:new", "--reuse") == 0
    assert Layout(tmp_path / "b").top()["layers"] == [layer]


def test_layer_without_annotation_gets_it_and_stays(tmp_path: Path) -> None:
    source = Image(LOWER, UPPER).lay_out(tmp_path / "a")
    assert run(source, f"oci:{tmp_path}/b:one") == 0
    layers = manifest_of(tmp_path / "b", "one")["layers"]
    bare = [{key: value for key, value in one.items() if key != "annotations"} for one in layers]
    assert run(with_layers(tmp_path / "b", "one", bare), f"oci:{tmp_path}/b:two", "--reuse") == 0
    again = manifest_of(tmp_path / "b", "two")["layers"]
    assert [one["digest"] for one in again] == [one["digest"] for one in layers]
    assert [one["annotations"][TOC_DIGEST] for one in again] == [one["annotations"][TOC_DIGEST] for one in layers]


def edited_table(blob: bytes, old: bytes, new: bytes) -> bytes:
    """An eStargz layer whose table of contents says something else."""
    footer = parse_footer(blob, len(blob))
    document = toc_json(footer, blob[footer.toc_offset : footer.toc_end])
    assert document.count(old) == 1
    archive = bytearray(document.replace(old, new))
    gzip_blob.make_archive(archive)
    return blob[: footer.toc_offset] + gzip_blob.pack(archive, 6) + gzip_blob.footer(footer.toc_offset)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"mode":493', b'"mode":2541'),
        (b'{"name":"usr/bash","type":"hardlink"', b'{"name":"usr/dash","type":"hardlink"'),
        (b'"linkName":"usr/sh"', b'"linkName":"other"'),
        (b'{"name":".wh.old"', b'{"name":".wh.new"'),
        (sha256(b"1" * 904).encode(), sha256(b"2" * 904).encode()),
    ],
    ids=["mode", "name", "link", "whiteout", "content"],
)
def test_table_that_nobody_vouches_for_and_that_lies_is_not_vouched_for(
    old: bytes, new: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = entry("usr/sh", b"#!", mode=0o755), hard_link("usr/bash", "usr/sh"), entry(".wh.old")
    layer = tar(folder("usr", mode=0o700), *files, entry("large", b"1" * 5000), entry("other", b"#!"))
    assert run(Image(layer).lay_out(tmp_path / "a"), f"oci:{tmp_path}/b:new", "--chunk-size", "4KiB") == 0
    made = Layout(tmp_path / "b").top()["layers"][0]
    good = Layout(tmp_path / "b").blob(made["digest"])
    for blob, stays in ((good, True), (edited_table(good, old, new), False)):
        image = Image(gzip.decompress(blob))
        image.document["layers"] = [image.add(blob, made["mediaType"])]
        capsys.readouterr()
        assert run(image.lay_out(tmp_path / f"c{stays}"), f"oci:{tmp_path}/d:new", "--reuse") == 0
        assert ("left as it is" in capsys.readouterr().err) is stays
        again = Layout(tmp_path / "d").top()["layers"][0]["digest"]
        assert (again == sha256(blob)) is stays


def test_layer_whose_annotation_lies_is_converted_anew(tmp_path: Path) -> None:
    source = Image(LOWER, UPPER).lay_out(tmp_path / "a")
    assert run(source, f"oci:{tmp_path}/b:one", "--level", "1") == 0
    layers = manifest_of(tmp_path / "b", "one")["layers"]
    lying = [{**one, "annotations": {TOC_DIGEST: f"sha256:{'0' * 64}"}} for one in layers]
    assert run(with_layers(tmp_path / "b", "one", lying), f"oci:{tmp_path}/b:two", "--reuse") == 0
    again = manifest_of(tmp_path / "b", "two")["layers"]
    assert [one["annotations"][TOC_DIGEST] for one in again] != [f"sha256:{'0' * 64}"] * 2


@pytest.mark.parametrize("options", [(), ("--zstdchunked",)])
def test_layer_whose_table_is_too_large_to_check_is_converted(
    options: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(Image(LOWER).lay_out(tmp_path / "a"), f"oci:{tmp_path}/b:one", *options) == 0
    # gzip's limit is for the archive around the table, too, and has a margin for that.
    monkeypatch.setattr("snapshotter.image.convert.reuse.TOC_REUSED", 100 - (0 if options else 1 << 20))
    assert run(f"oci:{tmp_path}/b:one", f"oci:{tmp_path}/b:two", "--reuse", *options) == 0
    assert "left as it is" not in capsys.readouterr().err


def test_ordinary_layers_are_converted_beside_those_that_stay(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = Image(LOWER, UPPER)
    assert run(source.lay_out(tmp_path / "a"), f"oci:{tmp_path}/b:one", "--level", "1") == 0
    done = manifest_of(tmp_path / "b", "one")
    config = Layout(tmp_path / "b").config(done)
    config["rootfs"]["diff_ids"][1] = json.loads(source.blobs[source.document["config"]["digest"]])["rootfs"][
        "diff_ids"
    ][1]
    mixed = Image()
    mixed.document = {
        **done,
        "config": mixed.add(json.dumps(config).encode(), done["config"]["mediaType"]),
        "layers": [done["layers"][0], source.document["layers"][1]],
    }
    mixed.blobs |= source.blobs | {one["digest"]: Layout(tmp_path / "b").blob(one["digest"]) for one in done["layers"]}
    assert run(mixed.lay_out(tmp_path / "c"), f"oci:{tmp_path}/b:two", "--reuse", "--json") == 0
    told = json.loads(capsys.readouterr().out.partition("\n")[2])["images"][0]["layers"]
    assert [one["reused"] for one in told] == [True, False]
    two = manifest_of(tmp_path / "b", "two")["layers"]
    assert two[0] == done["layers"][0]
    assert TOC_DIGEST in two[1]["annotations"]


def test_layers_in_the_other_format_are_converted(tmp_path: Path) -> None:
    source = Image(LOWER, UPPER).lay_out(tmp_path / "a")
    assert run(source, f"oci:{tmp_path}/b:one") == 0
    assert run(f"oci:{tmp_path}/b:one", f"oci:{tmp_path}/b:two", "--reuse", "--zstdchunked") == 0
    assert all(one["mediaType"].endswith("+zstd") for one in manifest_of(tmp_path / "b", "two")["layers"])


def test_zstd_layer_of_the_other_dialect_gets_what_it_lacks_and_stays(tmp_path: Path) -> None:
    source = Image(LOWER, UPPER).lay_out(tmp_path / "a")
    assert run(source, f"oci:{tmp_path}/b:one", "--zstdchunked") == 0
    layers = manifest_of(tmp_path / "b", "one")["layers"]
    storage = [
        {
            **one,
            "annotations": {key: value for key, value in one["annotations"].items() if key.startswith("io.github.")},
        }
        for one in layers
    ]
    edited = with_layers(tmp_path / "b", "one", storage)
    assert run(edited, f"oci:{tmp_path}/b:two", "--zstdchunked", "--reuse") == 0
    again = manifest_of(tmp_path / "b", "two")["layers"]
    assert [one["digest"] for one in again] == [one["digest"] for one in layers]
    for before, after in zip(layers, again, strict=True):
        told = {key: value for key, value in before["annotations"].items() if not key.endswith("uncompressed-size")}
        assert after["annotations"] == told


def test_list_that_layers_that_stay_do_not_follow_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(Image(LOWER, UPPER).lay_out(tmp_path / "a"), f"oci:{tmp_path}/b:one") == 0
    (tmp_path / "list").write_text("/usr/sh\n")
    assert run(f"oci:{tmp_path}/b:one", f"oci:{tmp_path}/b:two", "--reuse", "--prefetch-list", tmp_path / "list") == 0
    said = capsys.readouterr().err
    assert "layer 2 of the image for linux/amd64 is kept: 1 files of the list are not moved to its front" in said
    assert "layer 1 of the image" not in said
    assert run(f"oci:{tmp_path}/b:one", f"oci:{tmp_path}/b:three", "--reuse") == 0
    assert "of the list" not in capsys.readouterr().err


def test_reuse_and_tables_outside_exclude_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = Image(LOWER).lay_out(tmp_path / "a")
    assert run(source, f"oci:{tmp_path}/b:one", "--external-toc", "--reuse") == ConfigError.exit_code
    assert "exclude each other" in capsys.readouterr().err


def test_tables_that_lie_elsewhere_are_none_that_stay(tmp_path: Path) -> None:
    source = Image(LOWER).lay_out(tmp_path / "a")
    assert run(source, f"oci:{tmp_path}/b:one", "--external-toc") == 0
    assert run(f"oci:{tmp_path}/b:one", f"oci:{tmp_path}/b:two", "--reuse") == 0
    assert run(source, f"oci:{tmp_path}/b:three") == 0
    assert manifest_of(tmp_path / "b", "two") == manifest_of(tmp_path / "b", "three")
