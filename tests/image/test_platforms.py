"""Several platforms at once, and what a signal leaves of a conversion."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from integration.harness.process import wait_for
from snapshotter.errors import ConfigError, FormatError
from tests.doubles.registry import LoopbackRegistry
from tests.format.tars import entry, tar
from tests.image.converting import LOWER, UPPER, index_of, run
from tests.image.images import OCI_INDEX, OCI_MANIFEST, Image, Layout, sha256, write_layout
from tests.image.pulls import push_index

pytestmark = pytest.mark.usefixtures("scratch")


def three(path: Path) -> str:
    return index_of(
        path,
        amd64=Image(LOWER),
        arm64=Image(UPPER, architecture="arm64"),
        s390x=Image(tar(entry("z", b"1")), architecture="s390x"),
    )


def test_platforms_that_are_named_make_an_index_of_these(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    platforms = ("--platform", "linux/s390x", "--platform", "linux/arm64", "--platform", "linux/s390x")
    assert run(three(tmp_path / "a"), f"oci:{tmp_path}/b:new", "--json", *platforms) == 0
    result = json.loads(capsys.readouterr().out)
    assert [one["platform"] for one in result["images"]] == ["linux/s390x", "linux/arm64"]
    layout = Layout(tmp_path / "b")
    index = layout.top()
    assert (index["mediaType"], result["media_type"]) == (OCI_INDEX, OCI_INDEX)
    assert [one["platform"]["architecture"] for one in index["manifests"]] == ["s390x", "arm64"]
    manifest = json.loads(layout.blob(index["manifests"][1]["digest"]))
    assert layout.config(manifest)["architecture"] == "arm64"


def test_one_platform_makes_one_image(tmp_path: Path) -> None:
    assert run(three(tmp_path / "a"), f"oci:{tmp_path}/b:new", "--platform", "linux/arm64") == 0
    assert Layout(tmp_path / "b").top()["mediaType"] == OCI_MANIFEST


def test_platform_that_is_not_there_converts_none_of_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = ("--platform", "linux/arm64", "--platform", "linux/riscv64")
    assert run(three(tmp_path / "a"), f"oci:{tmp_path}/b:new", *wanted) == FormatError.exit_code
    assert "riscv64" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_platforms_and_all_of_them_exclude_each_other(tmp_path: Path) -> None:
    arguments = (three(tmp_path / "a"), f"oci:{tmp_path}/b:new", "--all-platforms", "--platform", "linux/arm64")
    assert run(*arguments) == ConfigError.exit_code


def test_single_image_is_not_taken_for_all_platforms_that_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = ("--platform", "linux/amd64", "--platform", "linux/arm64")
    assert run(Image(LOWER).lay_out(tmp_path / "a"), f"oci:{tmp_path}/b:new", *wanted) == FormatError.exit_code
    assert "the image is for linux/amd64, not for linux/arm64;" in capsys.readouterr().err


def arm(path: Path, *listed: tuple[str, Image]) -> str:
    """A layout with an index that has an image for each of these variants; their configurations name none."""
    children = [
        {**one.manifest(), "platform": {"os": "linux", "architecture": "arm", "variant": variant}}
        for variant, one in listed
    ]
    raw = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": children}).encode()
    blobs = {sha256(raw): raw}
    for _, one in listed:
        blobs |= one.blobs
    write_layout(path, [{"mediaType": OCI_INDEX, "digest": sha256(raw), "size": len(raw)}], blobs, "v1")
    return f"oci:{path}:v1"


def test_index_says_what_the_source_said_where_configurations_lack_the_variant(tmp_path: Path) -> None:
    source = arm(tmp_path / "a", ("v5", Image(LOWER, architecture="arm")), ("v7", Image(UPPER, architecture="arm")))
    assert run(source, f"oci:{tmp_path}/b:new", "--all-platforms") == 0
    assert [one["platform"]["variant"] for one in Layout(tmp_path / "b").top()["manifests"]] == ["v5", "v7"]
    assert run(source, f"oci:{tmp_path}/c:new", "--platform", "linux/arm/v5") == 0
    assert run(source, f"oci:{tmp_path}/c:other", "--platform", "linux/arm/v7") == 0
    made = [Layout(tmp_path / "c").top(name)["layers"] for name in ("new", "other")]
    assert made[0] != made[1]


def test_image_that_is_listed_for_two_platforms_stays_that(tmp_path: Path) -> None:
    one = Image(LOWER, architecture="arm")
    assert run(arm(tmp_path / "a", ("v6", one), ("v7", one)), f"oci:{tmp_path}/b:new", "--all-platforms") == 0
    listed = Layout(tmp_path / "b").top()["manifests"]
    assert [line["platform"]["variant"] for line in listed] == ["v6", "v7"]
    assert listed[0]["digest"] == listed[1]["digest"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_ends_a_conversion_and_leaves_nothing_of_it(
    number: signal.Signals, registry: LoopbackRegistry, tmp_path: Path, scratch: Path
) -> None:
    # Incompressible, and slow at this level: it is being compressed when the signal comes. The second image never comes.
    big = tar(*(entry(f"f{part}", os.urandom(1 << 20)) for part in range(24)))
    second = Image(UPPER, architecture="arm64")
    push_index(registry, {"amd64": Image(big), "arm64": second})
    last = second.document["layers"][0]["digest"]
    registry.script(last, "stall@9*", method="GET")
    source = registry.reference(":v1")
    command = [sys.executable, "-m", "snapshotter", "image", "convert", source, f"oci:{tmp_path}/b:new"]
    options = ["--all-platforms", "--level", "12", "--parallelism", "1", "--scratch", str(scratch)]
    with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_for(
                lambda: any(scratch.glob("convert-*/1/blob")) or any(last in one.path for one in registry.requests),
                "the work on the first image",
                60,
            )
            process.send_signal(number)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, out) == (130, "")
    assert "interrupted" in err
    assert "Traceback" not in err
    assert not (tmp_path / "b" / "index.json").exists()
    assert list(scratch.iterdir()) == []
