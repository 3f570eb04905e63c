"""Shared libraries: which the tree needs, and how its files find them without a word in the environment.

LD_LIBRARY_PATH would reach the credential helpers that the daemon starts; a RUNPATH relative to each file reaches nobody.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

# The C library and its parts come with the node's loader and cannot be carried along.
_C_LIBRARY = re.compile(r"(ld-linux[\w-]*|lib(c|m|dl|rt|pthread|util|resolv|anl|mvec|thread_db|nss_\w+))\.so\.\d+")
_FOUND = re.compile(r"^\s+(\S+) => (\S+) \(0x", re.MULTILINE)
_MISSING = re.compile(r"^\s+(\S+) => not found", re.MULTILINE)
_WANTED = re.compile(r"\*UND\*.*\(?GLIBC_(\d+)\.(\d+)(?:\.\d+)?\)?")


def elf_files(tree: Path) -> Iterator[Path]:
    """Executables and shared objects below `tree`, in order."""
    for path in sorted(tree.rglob("*")):
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                if file.read(4) == b"\x7fELF":
                    yield path


def bundle_libraries(tree: Path, place: Path) -> list[Path]:
    """Copy into `tree / place` what the files of `tree` need beyond the C library; return where it came from.

    Raises:
        SystemExit: a library is missing on this machine, or could not be found from inside the tree afterwards.
    """
    files = list(elf_files(tree))
    sources = _outside(files, tree)
    folder = tree / place
    folder.mkdir(exist_ok=True)
    for name, source in sorted(sources.items()):
        shutil.copyfile(source.resolve(), folder / name)
        (folder / name).chmod(0o755)
        files.append(folder / name)
    for path in files:
        _without_debug_sections(path)
        _find_beside(path, folder, set(sources))
    stray = _outside(files, tree)
    if stray:
        raise SystemExit(f"libraries outside the tree would be taken: {stray}")
    return [source.resolve() for _, source in sorted(sources.items())]


def glibc_wanted(tree: Path) -> tuple[int, int]:
    """The newest version of the C library's symbols that a file of `tree` asks for."""
    listing = subprocess.run(
        ["objdump", "-T", *elf_files(tree)], capture_output=True, text=True, check=True, env={"PATH": os.defpath}
    ).stdout
    return max((int(match[1]), int(match[2])) for match in _WANTED.finditer(listing))


def loader(program: Path) -> str:
    """The path of the dynamic loader that the kernel starts `program` with: the node's."""
    return _patchelf("--print-interpreter", program).strip()


def _outside(files: list[Path], tree: Path) -> dict[str, Path]:
    """Libraries that `files` need, are not the C library's, and lie elsewhere."""
    return {
        name: path
        for name, path in _resolved(files).items()
        if not _C_LIBRARY.fullmatch(name) and tree not in path.parents
    }


def _resolved(files: list[Path]) -> dict[str, Path]:
    """What the loader takes for each name that `files` need, directly or not."""
    listing = subprocess.run(
        ["ldd", *files], capture_output=True, text=True, check=False, env={"PATH": os.defpath}
    ).stdout
    missing = sorted(set(_MISSING.findall(listing)))
    if missing:
        raise SystemExit(f"shared libraries are missing on this machine: {', '.join(missing)}")
    return {name: Path(path) for name, path in _FOUND.findall(listing)}


def _find_beside(path: Path, folder: Path, bundled: set[str]) -> None:
    """Point the RUNPATH at the bundled libraries if the file needs one, and at nothing of this machine."""
    before = [entry for entry in _patchelf("--print-rpath", path).strip().split(":") if entry]
    after = [entry for entry in before if entry.startswith("$ORIGIN")]
    if bundled & set(_patchelf("--print-needed", path).split()):
        relative = os.path.relpath(folder, path.parent)
        after.append("$ORIGIN" if relative == "." else f"$ORIGIN/{relative}")
    if after and after != before:
        _patchelf("--set-rpath", ":".join(after), path)
    elif before and not after:
        _patchelf("--remove-rpath", path)


def _without_debug_sections(path: Path) -> None:
    sections = subprocess.run(["readelf", "-SW", path], capture_output=True, text=True, check=True).stdout
    if ".debug_info" in sections:
        subprocess.run(["strip", "--strip-debug", path], check=True)


def _patchelf(*words: str | Path) -> str:
    return subprocess.run(["patchelf", *words], capture_output=True, text=True, check=True).stdout
