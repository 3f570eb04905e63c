"""`snapshotter image convert`, run as the command line runs it."""

import gzip
import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from snapshotter.errors import (
    BlobMissing,
    ConfigError,
    FormatError,
    IntegrityError,
    NotFound,
    RegistryUnreachable,
    SnapshotterError,
    StoreError,
)
from tests.doubles.registry import LoopbackRegistry
from tests.format.tars import entry, folder, hard_link, listing, symlink, tar
from tests.image.converting import LOWER, TOC_DIGEST, UPPER, index_of, run
from tests.image.images import OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST, Image, Layout, sha256

UNCOMPRESSED = "io.containers.estargz.uncompressed-size"
OURS = ("stargz.index.json", ".prefetch.landmark", ".no.prefetch.landmark")
pytestmark = pytest.mark.usefixtures("scratch")


def landmark_order(blob: bytes) -> list[str]:
    return [str(row[0]) for row in listing(gzip.decompress(blob))]


def test_converted_image_is_an_ordinary_oci_image_of_the_same_tree(tmp_path: Path) -> None:
    source = Image(LOWER, UPPER, docker=True, annotations={"keep": "me"})
    assert run(source.lay_out(tmp_path / "a"), f"oci:{tmp_path}/b:new") == 0
    layout = Layout(tmp_path / "b")
    manifest = layout.top()
    config = layout.config(manifest)
    before = json.loads(source.blobs[source.document["config"]["digest"]])
    assert manifest["mediaType"] == OCI_MANIFEST
    assert manifest["config"]["mediaType"] == OCI_CONFIG
    assert manifest["annotations"] == {"keep": "me"}
    assert {**config, "rootfs": None} == {**before, "rootfs": None}
    for layer, diff_id, plain in zip(manifest["layers"], config["rootfs"]["diff_ids"], (LOWER, UPPER), strict=True):
        assert layer["mediaType"] == OCI_LAYER
        blob = layout.blob(layer["digest"])
        unpacked = gzip.decompress(blob)
        assert sha256(unpacked) == diff_id
        assert listing(unpacked, OURS) == listing(plain)
        assert layer["annotations"][UNCOMPRESSED] == str(len(unpacked))
        assert layer["annotations"][TOC_DIGEST].startswith("sha256:")


def test_image_goes_from_registry_to_registry_and_only_what_is_new_is_pushed(
    registry: LoopbackRegistry, capsys: pytest.CaptureFixture[str]
) -> None:
    source = Image(LOWER, UPPER).push(registry)
    target = registry.reference(":lazy")
    assert run(source, f"docker://{target}") == 0
    output = capsys.readouterr()
    digest = output.out.strip().removeprefix(f"{target}@")
    raw, media_type = registry.manifests[registry.repository, "lazy"]
    assert (sha256(raw), media_type) == (digest, OCI_MANIFEST)
    assert all(layer["digest"] in registry.blobs for layer in json.loads(raw)["layers"])
    first, second, last = sorted(line.partition(":")[0] for line in output.err.splitlines())
    assert (first, second, last) == ("layer 1/2", "layer 2/2", "linux/amd64")
    puts = [record.path for record in registry.requests if record.method == "PUT"]
    assert puts[-1].endswith("/manifests/lazy")
    assert run(source, registry.reference(":again")) == 0
    assert registry.manifests[registry.repository, "again"] == (raw, media_type)
    assert "was there already" in capsys.readouterr().err
    again = [record.path for record in registry.requests if record.method == "PUT"][len(puts) :]
    assert [path.rpartition("/")[2] for path in again] == ["again"]


def test_result_does_not_depend_on_parallelism(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = Image(LOWER, UPPER).lay_out(tmp_path / "a")
    for threads in ("1", "2", "4"):
        assert run(source, f"oci:{tmp_path}/{threads}", "--parallelism", threads, "--chunk-size", "4KiB") == 0
    assert len({line.partition("@")[2] for line in capsys.readouterr().out.splitlines()}) == 1


def test_converting_a_converted_image_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(Image(LOWER, UPPER).lay_out(tmp_path / "a"), f"oci:{tmp_path}/b:one") == 0
    assert run(f"oci:{tmp_path}/b:one", f"oci:{tmp_path}/b:two") == 0
    one, two = capsys.readouterr().out.split()
    assert one.partition("@")[2] == two.partition("@")[2]
    assert Layout(tmp_path / "b").names() == ["one", "two"]


def test_prefetch_list_puts_each_path_first_in_the_topmost_layer_that_has_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lower = tar(folder("usr"), folder("usr/bin"), entry("usr/bin/dash", b"1"), entry("usr/bin/x", b"2"), entry("z"))
    upper = tar(
        symlink("bin", "usr/bin"), entry("z", b"new"), folder("etc"), entry("etc/hosts", b"h"), entry(".wh.gone")
    )
    top = tar(symlink("sh", "/bin/dash"))
    names = tmp_path / "list"
    names.write_text("# first things first\n/sh\n\n/etc/hosts\nz\n/gone\n")
    source = Image(tar(entry("gone", b"1")), lower, upper, top).lay_out(tmp_path / "a")
    assert run(source, f"oci:{tmp_path}/b:new", "--prefetch-list", names, "--json") == 0
    output = capsys.readouterr()
    result = json.loads(output.out)
    assert result["images"][0]["missing"] == ["/gone"]
    assert "no /gone to prefetch" in output.err
    layout = Layout(tmp_path / "b")
    orders = [landmark_order(layout.blob(layer["digest"])) for layer in layout.top()["layers"]]
    assert orders[0][0] == ".no.prefetch.landmark"
    assert orders[1][:4] == ["usr", "usr/bin", "usr/bin/dash", ".prefetch.landmark"]
    assert orders[2][:5] == ["bin", "etc", "etc/hosts", "z", ".prefetch.landmark"]
    assert orders[3] == ["sh", ".prefetch.landmark", "stargz.index.json"]
    assert [layer["prefetch_size"] > 0 for layer in result["images"][0]["layers"]] == [False, True, True, True]


def test_directories_that_a_layer_leaves_out_are_those_of_the_layers_below(tmp_path: Path) -> None:
    base = tar(folder("tmp", mode=0o1777, uid=5), folder("root", mode=0o700))
    source = Image(base, tar(entry("tmp/a/b", b"1"), entry("root/c")), tar(entry("tmp/a/d")))
    assert run(source.lay_out(tmp_path / "a"), f"oci:{tmp_path}/b:new") == 0
    layout = Layout(tmp_path / "b")
    upper = [listing(gzip.decompress(layout.blob(one["digest"])), OURS) for one in layout.top()["layers"]]
    assert [(row[0], row[2], row[3]) for row in upper[1]] == [
        ("tmp", 0o1777, (5, 0, "", "")),
        ("tmp/a/b", 0o644, (0, 0, "", "")),
        ("root", 0o700, (0, 0, "", "")),
        ("root/c", 0o644, (0, 0, "", "")),
    ]
    assert [row[0] for row in upper[2]] == ["tmp", "tmp/a/d"]


@pytest.mark.parametrize(
    ("odd", "reason"),
    [(tar(hard_link("b", "etc/passwd")), "no earlier entry"), (tar(entry("lib/x", b"1")), "is a symlink in a lower")],
)
def test_layer_that_a_toc_cannot_describe_stays_as_it_is(
    odd: bytes, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tar(folder("etc"), entry("etc/passwd", b"1"), symlink("lib", "etc"))
    source = Image(base, odd, UPPER, docker=True)
    assert run(source.lay_out(tmp_path / "a"), f"oci:{tmp_path}/b:new") == 0
    assert reason in capsys.readouterr().err
    layout = Layout(tmp_path / "b")
    layers = layout.top()["layers"]
    kept = source.document["layers"][1]
    assert layers[1] == {"mediaType": OCI_LAYER, "digest": kept["digest"], "size": kept["size"]}
    assert layout.blob(kept["digest"]) == source.blobs[kept["digest"]]
    assert layout.config(layout.top())["rootfs"]["diff_ids"][1] == sha256(odd)
    assert TOC_DIGEST in layers[2]["annotations"]


def test_platform_is_chosen_from_an_index_and_all_platforms_keep_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arm = Image(UPPER, architecture="arm64")
    source = index_of(tmp_path / "a", amd64=Image(LOWER), arm64=arm)
    layout = Layout(tmp_path / "b")
    assert run(source, f"oci:{tmp_path}/b:arm", "--platform", "linux/arm64") == 0
    assert layout.config(layout.top("arm"))["architecture"] == "arm64"
    assert run(source, f"oci:{tmp_path}/b:all", "--all-platforms") == 0
    assert "attestation" in capsys.readouterr().err
    top = layout.top("all")
    assert top["mediaType"] == OCI_INDEX
    assert [one["platform"]["architecture"] for one in top["manifests"]] == ["amd64", "arm64"]
    assert json.loads(layout.blob(top["manifests"][1]["digest"])) == layout.top("arm")
    assert run(source, f"oci:{tmp_path}/b:no", "--platform", "linux/s390x") == FormatError.exit_code
    assert "linux/arm64" in capsys.readouterr().err
    assert (
        run(arm.lay_out(tmp_path / "c"), f"oci:{tmp_path}/b:no", "--platform", "linux/amd64") == FormatError.exit_code
    )
    assert layout.names() == ["arm", "all"]


def test_all_platforms_of_a_registry_are_pushed_before_the_index(registry: LoopbackRegistry, tmp_path: Path) -> None:
    source = index_of(tmp_path / "a", amd64=Image(LOWER), arm64=Image(UPPER, architecture="arm64"))
    assert run(source, registry.reference(":all"), "--all-platforms") == 0
    raw, media_type = registry.manifests[registry.repository, "all"]
    assert media_type == OCI_INDEX
    children = [child["digest"] for child in json.loads(raw)["manifests"]]
    puts = [record.path.rpartition("/")[2] for record in registry.requests if "/manifests/" in record.path]
    assert [name for name in puts if name in {*children, "all"}] == [*children, "all"]


def damaged_layer(image: Image) -> str:
    digest: str = image.document["layers"][0]["digest"]
    image.blobs[digest] = image.blobs[digest][:-9] + b"otherbyte"
    return digest


def wrong_diff_id(image: Image) -> None:
    config = json.loads(image.blobs[image.document["config"]["digest"]])
    config["rootfs"]["diff_ids"][0] = sha256(b"something else")
    image.document["config"] = image.add(json.dumps(config).encode(), OCI_CONFIG)


def fewer_diff_ids(image: Image) -> None:
    config = json.loads(image.blobs[image.document["config"]["digest"]])
    config["rootfs"]["diff_ids"].pop()
    image.document["config"] = image.add(json.dumps(config).encode(), OCI_CONFIG)


def missing_blob(image: Image) -> None:
    del image.blobs[image.document["layers"][1]["digest"]]


def foreign_layer(image: Image) -> None:
    image.document["layers"][0]["mediaType"] = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"


def artifact(image: Image) -> None:
    image.document["config"]["mediaType"] = "application/vnd.cncf.helm.config.v1+json"


def no_tar(image: Image) -> None:
    image.document["layers"][0] = image.add(gzip.compress(b"no tar at all" * 100), OCI_LAYER)
    config = json.loads(image.blobs[image.document["config"]["digest"]])
    config["rootfs"]["diff_ids"][0] = sha256(b"no tar at all" * 100)
    image.document["config"] = image.add(json.dumps(config).encode(), OCI_CONFIG)


def cut_gzip(image: Image) -> None:
    blob = image.blobs[image.document["layers"][0]["digest"]]
    image.document["layers"][0] = image.add(blob[:-30], OCI_LAYER)


@pytest.mark.parametrize(
    ("spoil", "kind"),
    [
        (damaged_layer, IntegrityError),
        (wrong_diff_id, IntegrityError),
        (fewer_diff_ids, FormatError),
        (missing_blob, BlobMissing),
        (foreign_layer, FormatError),
        (artifact, FormatError),
        (no_tar, FormatError),
        (cut_gzip, FormatError),
    ],
    ids=lambda value: value.__name__,
)
def test_bad_source_is_a_clear_error_and_leaves_no_image(
    spoil: Any, kind: type[SnapshotterError], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = Image(LOWER, UPPER)
    spoil(image)
    assert run(image.lay_out(tmp_path / "a"), f"oci:{tmp_path}/b:new") == kind.exit_code
    assert capsys.readouterr().err.splitlines()[-1].startswith("snapshotter: ")
    assert not (tmp_path / "b" / "index.json").exists()


def test_push_that_breaks_off_leaves_no_manifest_and_can_be_repeated(
    registry: LoopbackRegistry, tmp_path: Path
) -> None:
    source = Image(LOWER, UPPER).lay_out(tmp_path / "a")
    registry.script("/manifests/lazy", "400", method="PUT")
    assert run(source, registry.reference(":lazy")) != 0
    assert (registry.repository, "lazy") not in registry.manifests
    uploads = sum(record.method == "POST" for record in registry.requests)
    assert run(source, registry.reference(":lazy")) == 0
    assert sum(record.method == "POST" for record in registry.requests) == uploads


def test_other_bytes_from_a_registry_are_an_error(registry: LoopbackRegistry, tmp_path: Path) -> None:
    image = Image(LOWER)
    source = image.push(registry)
    digest = damaged_layer(image)
    registry.blobs[digest] = image.blobs[digest]
    assert run(source, f"oci:{tmp_path}/b:new") == IntegrityError.exit_code
    assert not (tmp_path / "b").exists()


def test_failed_conversion_keeps_the_image_that_had_the_name(tmp_path: Path) -> None:
    assert run(Image(LOWER).lay_out(tmp_path / "a"), f"oci:{tmp_path}/b:new") == 0
    before = Layout(tmp_path / "b").top()
    bad = Image(UPPER)
    wrong_diff_id(bad)
    assert run(bad.lay_out(tmp_path / "c"), f"oci:{tmp_path}/b:new") == IntegrityError.exit_code
    assert Layout(tmp_path / "b").top() == before


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("oci:{tmp}/nothing", "oci:{tmp}/b"), NotFound.exit_code),
        (("oci:{tmp}/a:other", "oci:{tmp}/b"), NotFound.exit_code),
        (("oci:", "oci:{tmp}/b"), ConfigError.exit_code),
        (("docker-daemon:x:latest", "oci:{tmp}/b"), ConfigError.exit_code),
        (("oci:{tmp}/a:v1", "127.0.0.1:1/x@sha256:" + "0" * 64), ConfigError.exit_code),
        (("oci:{tmp}/a:v1", "127.0.0.1:1/Case"), ConfigError.exit_code),
        (("oci:{tmp}/a:v1", "oci:{tmp}/b", "--platform", "amd64"), ConfigError.exit_code),
        (("oci:{tmp}/a:v1", "oci:{tmp}/b", "--platform", "linux/amd64", "--all-platforms"), ConfigError.exit_code),
        (("oci:{tmp}/a:v1", "oci:{tmp}/b", "--chunk-size", "1"), 2),
        (("oci:{tmp}/a:v1", "oci:{tmp}/b", "--chunk-size", "large"), 2),
        (("oci:{tmp}/a:v1", "oci:{tmp}/b", "--level", "13"), 2),
        (("oci:{tmp}/a:v1", "oci:{tmp}/b", "--prefetch-list", "/does/not/exist"), 2),
        (("oci:{tmp}/a:v1", "oci:{tmp}/b", "--scratch", "{tmp}/none"), NotFound.exit_code),
        (("oci:{tmp}/a:v1", "oci:{tmp}/a/index.json"), StoreError.exit_code),
    ],
)
def test_wrong_arguments_are_refused_with_a_sentence(
    arguments: tuple[str, ...], code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image(LOWER).lay_out(tmp_path / "a")
    assert run(*(argument.replace("{tmp}", str(tmp_path)) for argument in arguments)) == code
    assert "Traceback" not in capsys.readouterr().err


def test_registry_that_does_not_answer_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with LoopbackRegistry() as gone:
        reference = gone.reference()
    assert run(reference, f"oci:{tmp_path}/b") == RegistryUnreachable.exit_code
    assert reference.partition("/")[0] in capsys.readouterr().err


def test_bars_are_shown_on_a_terminal(tmp_path: Path) -> None:
    source = Image(LOWER, UPPER).lay_out(tmp_path / "a")
    shown = on_terminal(source, f"oci:{tmp_path}/b:new", env={**os.environ, "TERM": "xterm", "COLUMNS": "200"})
    assert "layer 1/2" in shown
    assert "Traceback" not in shown
    assert Layout(tmp_path / "b").names() == ["new"]


def on_terminal(*arguments: str, env: dict[str, str]) -> str:
    """What the command writes to a terminal of its own."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "snapshotter", "image", "convert", *arguments]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=env) as process:
        os.close(theirs)
        pieces = []
        while True:
            try:
                piece = os.read(ours, 65536)
            except OSError:
                break
            if not piece:
                break
            pieces.append(piece)
    os.close(ours)
    assert process.returncode == 0
    return b"".join(pieces).decode()


def test_tables_of_contents_outside_need_a_tag_before_anything_is_done(tmp_path: Path) -> None:
    source = Image(LOWER).lay_out(tmp_path / "a")
    for target in (f"oci:{tmp_path}/b", f"docker-archive:{tmp_path}/b", f"docker-archive:{tmp_path}/b:app:v1"):
        assert run(source, target, "--external-toc") == ConfigError.exit_code
        assert not (tmp_path / "b").exists()


def test_image_with_tables_of_contents_is_an_image_like_others(tmp_path: Path) -> None:
    assert run(Image(LOWER, UPPER).lay_out(tmp_path / "a"), f"oci:{tmp_path}/b:new", "--external-toc") == 0
    layout = Layout(tmp_path / "b")
    tables = layout.top("new-esgztoc")
    plain = [gzip.decompress(layout.blob(one["digest"])) for one in tables["layers"]]
    assert layout.config(tables)["rootfs"]["diff_ids"] == list(map(sha256, plain))
    described = [one["annotations"]["containerd.io/snapshot/stargz/layer.digest"] for one in tables["layers"]]
    assert described == [one["digest"] for one in layout.top()["layers"]]
