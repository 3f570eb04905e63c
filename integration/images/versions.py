"""Versions of one image: many files in one layer, of which each version changes a few, scattered over all of it."""

import random
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path

from integration.images.oci import Image, packed

IN_EACH_FOLDER = 100
RUN = {"Cmd": ["/bin/busybox", "sleep", "2147483647"]}


@dataclass(frozen=True, slots=True)
class Series:
    """`files` of `smallest` to `largest` bytes; every version has `changed` of them as no other version has them."""

    files: int
    smallest: int
    largest: int
    changed: int

    def image(self, folder: Path, version: int) -> Image:
        """One version, of a layer with a static busybox and one with the files; packed once into `folder`."""
        layers = (_write_busybox, partial(self._write, version))
        return packed(folder, f"{Path(__file__).read_text()} {self} {version}", layers, RUN)

    def changing(self) -> list[str]:
        """Names of the files that each version has for itself."""
        return sorted(_name(number) for number in self._scattered())

    def contents(self, version: int) -> Iterator[tuple[str, bytes]]:
        """Name and content of every file; a content is about half as large when it is compressed."""
        scattered = self._scattered()
        for number in range(self.files):
            source = random.Random(f"{number} {version if number in scattered else ''}")
            yield _name(number), source.randbytes(source.randint(self.smallest, self.largest) // 2).hex().encode()

    def _scattered(self) -> set[int]:
        return set(random.Random(self.changed).sample(range(self.files), self.changed))

    def _write(self, version: int, tar: tarfile.TarFile) -> None:
        folders = {"files"} | {f"files/{number // IN_EACH_FOLDER:03}" for number in range(self.files)}
        for name in sorted(folders):
            tar.addfile(_folder(name))
        for name, content in self.contents(version):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, BytesIO(content))


def busybox() -> Path:
    """The static busybox that every version has."""
    return Path(shutil.which("busybox") or "/bin/busybox")


def _write_busybox(tar: tarfile.TarFile) -> None:
    for name in ("bin", "dev", "proc", "sys"):
        tar.addfile(_folder(name))
    info = tarfile.TarInfo("bin/busybox")
    info.mode, info.size = 0o755, busybox().stat().st_size
    with busybox().open("rb") as content:
        tar.addfile(info, content)


def _folder(name: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.mode = tarfile.DIRTYPE, 0o755
    return info


def _name(number: int) -> str:
    return f"files/{number // IN_EACH_FOLDER:03}/{number:05}.txt"
