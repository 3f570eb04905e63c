"""What the benchmarks of converting convert: a Debian of two layers, and one layer of two gigabytes."""

import hashlib
import io
import random
import tarfile
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from integration.images.oci import Image, packed
from integration.images.packages import PackageTree

# A base system, and what one adds to it for building software.
GROUPS = (
    (
        "apt",
        "bash",
        "coreutils",
        "dash",
        "diffutils",
        "findutils",
        "grep",
        "gzip",
        "hostname",
        "login",
        "python3",
        "sed",
    ),
    ("gcc", "libc6-dev"),
)
LARGE_FILES = 40
LARGE = 30 << 20
SMALL_FILES = 25_000
SMALL_MOST = 64 << 10
IN_EACH_FOLDER = 500


def debian_image(folder: Path) -> Image:
    """Two layers of Debian's packages, about 320 MB as tar. Packed once into `folder`; the packages come by apt."""
    with tempfile.TemporaryDirectory() as place:
        tree = PackageTree(Path(place))
        layers = [partial(tree.install, group) for group in GROUPS]
        return packed(folder, Path(__file__).read_text(), layers, {"Cmd": ["bash"]})


def bulky_image(folder: Path) -> Image:
    """One layer of 2 GB in many small files and some large ones, half of which cannot be compressed."""
    return packed(folder, hashlib.sha256(Path(__file__).read_bytes()).hexdigest(), (_bulky,), {"Cmd": ["none"]})


def _bulky(tar: tarfile.TarFile) -> None:
    for number, (name, content) in enumerate(_bulk()):
        if number % IN_EACH_FOLDER == 0:
            place = tarfile.TarInfo(name.partition("/")[0])
            place.type, place.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(place)
        info = tarfile.TarInfo(name)
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))


def _bulk() -> Iterator[tuple[str, bytes]]:
    """Name and content: large files spread over the small ones, every second one noise, the others repetitive."""
    dice = random.Random(2)
    between = SMALL_FILES // LARGE_FILES
    for number in range(SMALL_FILES):
        size = LARGE if number % between == 0 else dice.randrange(SMALL_MOST)
        noise = dice.randbytes(size if number % 2 else min(size, 997))
        yield f"folder-{number // IN_EACH_FOLDER:03}/{number}", (noise * (size // max(len(noise), 1) + 1))[:size]
