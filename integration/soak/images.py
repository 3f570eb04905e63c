"""Images whose every byte follows from a file's name, so that a container can tell the truth by itself.

A file is called `<key>-<size>`; `soak.c` makes the content of such a name, here and in the container. Keys that several
images use are the files that they share.
"""

import random
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from integration.harness.registry import RegistryClient
from integration.images.dialects import push_built
from tests.doubles.layers import BuiltLayer, Entry, dir, file, layer, opaque, whiteout

PROGRAM = "/bin/soak"
FOLDER = "/data"
KIB, MIB = 1 << 10, 1 << 20
CHUNK = 512 * KIB
SMALL = (0, 24 * KIB)
LARGE = (2 * MIB, 5 * MIB)
PROGRAMS = 3
LAYERS = 10
_SOURCE = Path(__file__).with_name("soak.c")
_FNV, _PRIME, _WORD = 0xCBF29CE484222325, 0x100000001B3, (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class SoakImage:
    """An image and what a walk of its tree must find: so many files, and the sum of their paths' hashes."""

    name: str
    layers: tuple[BuiltLayer, ...]
    files: int
    total: int

    @property
    def content(self) -> int:
        """Bytes of its files."""
        return sum(len(data) for one in self.layers for data in one.files.values())

    def command(self, seconds: float, seed: int, pace_ms: int) -> list[str]:
        """What a container of it runs for `seconds`."""
        words = [PROGRAM, "run", seconds, seed, pace_ms, FOLDER, self.files, self.total]
        return [str(word) for word in words]


def soak_images() -> list[SoakImage]:
    """Small files; large files; many layers that hide each other's; and one that has something of all the others."""
    dice = random.Random(6)
    shared = _names("shared", 60, SMALL, dice)
    shared_large = _names("shared-large", 2, LARGE, dice)
    levels = [_names(f"level{n}", 16, SMALL, dice) for n in range(LAYERS)]
    mixed = [_names("mixed", 60, SMALL, dice), _names("mixed-large", 1, LARGE, dice)]
    return [
        _image("soak-small:1", [shared, _names("small", 100, SMALL, dice)]),
        _image("soak-large:1", [shared_large, _names("large", 2, LARGE, dice)]),
        _image("soak-layers:1", levels, hiding=True),
        _image("soak-mixed:1", [[*shared, *levels[3]], mixed[0], [*shared_large, *mixed[1]]]),
    ]


def push_soak(client: RegistryClient, images: Iterable[SoakImage]) -> None:
    """Put them into a registry."""
    for image in images:
        push_built(client, image.name, image.layers)


@cache
def soak_program() -> bytes:
    """The compiled program; bytes behind its end make another file of it."""
    with tempfile.TemporaryDirectory() as place:
        made = Path(place, "soak")
        subprocess.run(["gcc", "-O2", "-static", "-s", "-o", made, _SOURCE], check=True)
        return made.read_bytes()


def contents(names: Sequence[str]) -> dict[str, bytes]:
    """What files of these names hold."""
    with tempfile.TemporaryDirectory() as place:
        program = Path(place, "soak")
        program.write_bytes(soak_program())
        program.chmod(0o755)
        made = subprocess.run([program, "contents", *names], capture_output=True, check=True).stdout
    found, at = {}, 0
    for name in names:
        size = _size(name)
        found[name] = made[at : at + size]
        at += size
    return found


def path_hash(path: str) -> int:
    """FNV-1a in 64 bits, as the program sums them up."""
    value = _FNV
    for byte in path.encode():
        value = (value ^ byte) * _PRIME & _WORD
    return value


def _names(word: str, count: int, sizes: tuple[int, int], dice: random.Random) -> list[str]:
    return [f"{word}.{number}-{dice.randint(*sizes)}" for number in range(count)]


def _size(name: str) -> int:
    return int(name.rpartition("-")[2])


def _image(name: str, levels: Sequence[Sequence[str]], *, hiding: bool = False) -> SoakImage:
    """An image of a layer with programs and a layer for each of `levels`; `hiding`: each hides some files below it."""
    built = [layer(*_programs(name))]
    shown: dict[str, None] = {}
    before: list[str] = []
    for number, names in enumerate(levels):
        folder = f"data/{number % 5}"
        entries: list[Entry] = [dir("data"), dir(folder)]
        if hiding and number >= 5:
            # The folder of five layers below begins anew.
            entries.append(opaque(folder))
            shown = {path: None for path in shown if not path.startswith(f"{folder}/")}
        if hiding and before:
            entries.append(dir(before[0].rpartition("/")[0]))
            entries += [whiteout(path) for path in before[:3]]
            shown = {path: None for path in shown if path not in before[:3]}
        truth: Mapping[str, bytes] = contents(names)
        before = [f"{folder}/{one}" for one in names]
        entries += [file(path, truth[one]) for path, one in zip(before, names, strict=True)]
        shown |= dict.fromkeys(before)
        built.append(layer(*entries, chunk_size=CHUNK))
    total = sum(path_hash(f"/{path}") for path in shown) & _WORD
    return SoakImage(name, tuple(built), len(shown), total)


def _programs(name: str) -> list[Entry]:
    program = soak_program()
    folders = [*(dir(one) for one in ("bin", "dev", "etc", "proc", "programs", "sys")), dir("tmp", mode=0o1777)]
    # Those of two images are other files with the same beginning; the first is shared by all.
    endings = [b"", *(f"{name} {number}".encode() for number in range(1, PROGRAMS))]
    others = (file(f"programs/{n}", program + ending, mode=0o755) for n, ending in enumerate(endings))
    return [*folders, file("bin/soak", program + b"first", mode=0o755), *others]
