"""The same input and options give the same digests: in another run, another process, another place, with more threads."""

import os
import random
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.doubles.registry import LoopbackRegistry
from tests.format.tars import entry, folder, hard_link, symlink, tar
from tests.image.converting import run
from tests.image.images import Image

FORMS: Mapping[str, tuple[str, ...]] = {
    "gzip": (),
    "zstd": ("--zstdchunked",),
    "shared": ("--min-chunk-size", "20000"),
    "external": ("--external-toc", "--min-chunk-size", "9000"),
}
SMALL_CHUNKS = ("--chunk-size", "8KiB")
PREFETCHED = "/bin/sh\n/files/2*\n/large\n"

pytestmark = pytest.mark.usefixtures("scratch")


def image() -> Image:
    """Two layers of which threads take many pieces each, of very different sizes, so that they end out of order."""
    dice = random.Random(5)
    files = [entry(f"files/{number}", dice.randbytes(dice.choice((0, 9, 700, 70_000)))) for number in range(120)]
    lower = tar(folder("usr"), folder("usr/bin"), entry("usr/bin/dash", b"#" * 90_000), symlink("bin", "usr/bin"))
    upper = tar(
        folder("files"), *files, entry("large", bytes(900_000)), symlink("usr/bin/sh", "dash"), hard_link("l", "large")
    )
    return Image(lower, upper)


@pytest.mark.parametrize("form", list(FORMS))
def test_result_depends_on_nothing_but_input_and_options(
    form: str, registry: LoopbackRegistry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = tmp_path / "names"
    names.write_text(PREFETCHED)
    options = (*FORMS[form], *SMALL_CHUNKS, "--prefetch-list", str(names))
    source = image().lay_out(tmp_path / "a")
    for number, threads in enumerate(("1", "2", "7", "7")):
        assert run(source, f"oci:{tmp_path}/{number}:new", *options, "--parallelism", threads) == 0
    assert run(image().push(registry), registry.reference(":new"), *options) == 0
    digests = [line.rpartition("@")[2] for line in capsys.readouterr().out.splitlines()]
    # Sets and dictionaries of another process may be in another order.
    command = [sys.executable, "-m", "snapshotter", "image", "convert", source, f"oci:{tmp_path}/b:new", *options]
    env = {**os.environ, "PYTHONHASHSEED": "12345", "TZ": "Asia/Tokyo", "LC_ALL": "C"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    digests.append(done.stdout.strip().rpartition("@")[2])
    assert len(digests) == 6
    assert len(set(digests)) == 1
