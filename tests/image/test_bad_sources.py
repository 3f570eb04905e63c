"""Sources that are damaged, odd or not for us: the right image, or a sentence and no image."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from integration.images.odd import END, spoilt, ustar
from snapshotter.errors import FormatError, IntegrityError, SnapshotterError
from snapshotter.format.zstd import zstd
from tests.format.tars import entry, listing, tar
from tests.image.converting import run
from tests.image.images import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, Image, Layout, sha256

OURS = ("stargz.index.json", ".prefetch.landmark", ".no.prefetch.landmark")
PLAIN = tar(entry("a", b"one\n" * 300), entry("b", b"two"))
LONGEST_COMPLAINT = 400
NONDISTRIBUTABLE = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"

pytestmark = pytest.mark.usefixtures("scratch")


def refused(source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """The exit code and the complaint of a conversion that must leave no image."""
    code = run(source, f"oci:{tmp_path}/b:new")
    assert not (tmp_path / "b" / "index.json").exists()
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert "unexpected" not in error
    complaint = error.splitlines()[-1]
    assert complaint.startswith("snapshotter: ")
    assert len(complaint) < LONGEST_COMPLAINT
    return code, complaint


def image_of(blob: bytes, plain: bytes, media_type: str = OCI_LAYER) -> Image:
    """An image whose layer is `blob` and should unpack to `plain`."""
    image = Image(plain)
    image.document["layers"] = [image.add(blob, media_type)]
    return image


def rewrite(image: Image, change: Callable[[dict[str, Any]], object]) -> Image:
    """The image with another configuration."""
    config = json.loads(image.blobs[image.document["config"]["digest"]])
    change(config)
    image.document["config"] = image.add(json.dumps(config).encode(), OCI_CONFIG)
    return image


@pytest.mark.parametrize("what", list(spoilt()))
def test_tar_that_is_none_is_refused(what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(Image(spoilt()[what]).lay_out(tmp_path / "a"), tmp_path, capsys)[0] == FormatError.exit_code


def packed(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)


SKIPPABLE = b"\x50\x2a\x4d\x18\x04\0\0\0abcd"


@pytest.mark.parametrize(
    "blob",
    [
        packed(PLAIN[:700]) + packed(PLAIN[700:]),
        packed(b"") + packed(PLAIN),
        zstd.compress(PLAIN),
        zstd.compress(PLAIN[:999]) + zstd.compress(PLAIN[999:]),
        SKIPPABLE + zstd.compress(PLAIN) + SKIPPABLE,
        PLAIN,
    ],
    ids=["two members", "an empty member first", "zstd", "two frames", "frames to be skipped", "plain"],
)
def test_whatever_a_layer_is_packed_with_the_image_is_the_same(
    blob: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(Image(PLAIN).lay_out(tmp_path / "usual"), f"oci:{tmp_path}/b:usual") == 0
    assert run(image_of(blob, PLAIN).lay_out(tmp_path / "odd"), f"oci:{tmp_path}/b:odd") == 0
    usual, odd = (line.partition("@")[2] for line in capsys.readouterr().out.splitlines())
    assert usual == odd


@pytest.mark.parametrize(
    "blob",
    [
        packed(PLAIN)[:-12],
        packed(PLAIN)[:-5],
        packed(PLAIN)[:-8] + bytes(8),
        packed(PLAIN) + b"rubbish behind it",
        packed(PLAIN[:999]) + zstd.compress(PLAIN[999:]),
        zstd.compress(PLAIN)[:-3],
        zstd.compress(PLAIN) + b"rubbish",
        zstd.compress(PLAIN[:999]) + packed(PLAIN[999:]),
        b"\x1f\x8b" + bytes(20),
        b"\x28\xb5\x2f\xfd" + bytes(range(20)),
    ],
    ids=lambda blob: sha256(blob)[7:13],
)
def test_packing_that_is_damaged_is_refused(blob: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, complaint = refused(image_of(blob, PLAIN).lay_out(tmp_path / "a"), tmp_path, capsys)
    assert code == FormatError.exit_code
    assert "damaged or cut off" in complaint


@pytest.mark.parametrize("kind", ["zip", "members of zeros"])
def test_bytes_that_unpack_to_something_else_are_refused(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blob = b"PK\x03\x04" + bytes(4000) if kind == "zip" else packed(PLAIN) + packed(bytes(1024))
    code, complaint = refused(image_of(blob, PLAIN).lay_out(tmp_path / "a"), tmp_path, capsys)
    assert code == IntegrityError.exit_code
    assert "config says" in complaint


@pytest.mark.parametrize(
    "media_type",
    [
        NONDISTRIBUTABLE,
        "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        OCI_LAYER + "+encrypted",
        "application/vnd.oci.image.layer.v1.tar+xz",
        "application/vnd.oci.empty.v1+json",
    ],
)
def test_layer_of_another_kind_is_refused_by_its_name(
    media_type: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, complaint = refused(image_of(packed(PLAIN), PLAIN, media_type).lay_out(tmp_path / "a"), tmp_path, capsys)
    assert code == FormatError.exit_code
    assert media_type in complaint


@pytest.mark.parametrize(
    "change",
    [
        lambda config: config.pop("rootfs"),
        lambda config: config.update(rootfs=None),
        lambda config: config.update(rootfs={"type": "layers"}),
        lambda config: config["rootfs"].update(diff_ids=None),
        lambda config: config["rootfs"].update(diff_ids=[7]),
        lambda config: config["rootfs"].update(diff_ids=[]),
        lambda config: config["rootfs"]["diff_ids"].append(sha256(b"")),
        lambda config: config.update(os=["linux"]),
    ],
    ids=["no rootfs", "null", "no ids", "ids null", "a number", "none", "too many", "os"],
)
def test_configuration_that_does_not_fit_is_refused(
    change: Callable[[dict[str, Any]], object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = rewrite(Image(PLAIN), change).lay_out(tmp_path / "a")
    assert refused(source, tmp_path, capsys)[0] == FormatError.exit_code


@pytest.mark.parametrize("raw", [b"", b"null", b"[]", b"{", b"[" * 100_000, b'"\\ud800"', b"\xff\xfe"])
def test_documents_that_are_no_json_objects_are_refused(
    raw: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = Image(PLAIN)
    image.document["config"] = image.add(raw, OCI_CONFIG)
    assert refused(image.lay_out(tmp_path / "a"), tmp_path, capsys)[0] == FormatError.exit_code
    layout = Image(PLAIN)
    descriptor = layout.add(raw, OCI_MANIFEST)
    (tmp_path / "c").mkdir()
    layout.manifest = lambda: descriptor  # type: ignore[method-assign]
    assert refused(layout.lay_out(tmp_path / "c"), tmp_path, capsys)[0] == FormatError.exit_code


@pytest.mark.parametrize("plain", [b"", END, END * 10], ids=["nothing", "an end alone", "many ends"])
def test_layer_without_entries_is_a_layer(plain: bytes, tmp_path: Path) -> None:
    source = Image(PLAIN, plain, PLAIN).lay_out(tmp_path / "a")
    assert run(source, f"oci:{tmp_path}/b:new") == 0
    layout = Layout(tmp_path / "b")
    layers = layout.top()["layers"]
    assert [listing(gzip.decompress(layout.blob(one["digest"])), OURS) for one in layers] == [
        listing(PLAIN),
        [],
        listing(PLAIN),
    ]


@pytest.mark.parametrize(
    "change",
    [
        lambda _config: None,
        lambda config: config["rootfs"].pop("diff_ids"),
        lambda c: c["rootfs"].update(diff_ids=None),
    ],
    ids=["an empty list", "as docker writes it", "as Go writes it"],
)
def test_image_without_layers_is_an_image_without_layers(
    change: Callable[[dict[str, Any]], object], tmp_path: Path
) -> None:
    assert run(rewrite(Image(), change).lay_out(tmp_path / "a"), f"oci:{tmp_path}/b:new") == 0
    layout = Layout(tmp_path / "b")
    assert layout.top()["layers"] == []
    assert layout.config(layout.top())["rootfs"]["diff_ids"] == []


def test_as_many_layers_as_a_container_can_have_are_converted(tmp_path: Path) -> None:
    tars = [ustar(b"last", data=b"%d\n" % number) + END for number in range(127)]
    assert run(Image(*tars).lay_out(tmp_path / "a"), f"oci:{tmp_path}/b:new") == 0
    layout = Layout(tmp_path / "b")
    top = layout.top()
    assert len(top["layers"]) == len(layout.config(top)["rootfs"]["diff_ids"]) == 127
    contents = [listing(gzip.decompress(layout.blob(one["digest"])), OURS)[0][-1] for one in top["layers"]]
    assert contents == [b"%d\n" % number for number in range(127)]


def swapped(image: Image) -> None:
    """Two layers of one size change places in the store."""
    one, other = (layer["digest"] for layer in image.document["layers"])
    image.blobs[one], image.blobs[other] = image.blobs[other], image.blobs[one]


def other_size(image: Image) -> None:
    image.document["layers"][0]["size"] += 1


def no_digest(image: Image) -> None:
    image.document["layers"][0]["digest"] = "sha256:abc"


@pytest.mark.parametrize(
    ("spoil", "kind"), [(swapped, IntegrityError), (other_size, IntegrityError), (no_digest, FormatError)]
)
def test_blob_that_is_not_what_the_manifest_says_is_refused(
    spoil: Callable[[Image], None], kind: type[SnapshotterError], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = Image(PLAIN, tar(entry("a", b"eno\n" * 300), entry("b", b"owt")))
    spoil(image)
    assert refused(image.lay_out(tmp_path / "a"), tmp_path, capsys)[0] == kind.exit_code
