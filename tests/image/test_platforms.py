"""Several platforms at once, and what a signal leaves of a conversion."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from snapshotter.errors import ConfigError, FormatError
from tests.format.tars import entry, tar
from tests.image.converting import LOWER, UPPER, index_of, run
from tests.image.images import OCI_INDEX, OCI_MANIFEST, Image, Layout

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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_ends_a_conversion_and_leaves_nothing_of_it(number: signal.Signals, tmp_path: Path) -> None:
    # Incompressible, and slow at this level: it is under way when the signal comes.
    big = tar(*(entry(f"f{part}", os.urandom(1 << 20)) for part in range(24)))
    source = Image(big).lay_out(tmp_path / "a")
    scratch = tmp_path / "scratch"
    command = [sys.executable, "-m", "snapshotter", "image", "convert", source, f"oci:{tmp_path}/b:new"]
    options = ["--level", "12", "--parallelism", "1", "--scratch", str(scratch)]
    with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            while not any(scratch.glob("convert-*/1/blob")):
                assert process.poll() is None
            process.send_signal(number)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, out) == (130, "")
    assert "interrupted" in err
    assert "Traceback" not in err
    assert not (tmp_path / "b" / "index.json").exists()
    assert list(scratch.iterdir()) == []
