"""The part of the tree that is not ours: interpreter, packages, libraries. Built once for the same inputs, then kept."""

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

from dev.distribution.interpreter import Interpreter, compile_all, copy_interpreter
from dev.distribution.libraries import bundle_libraries
from dev.distribution.licences import gather_licences

LIBRARIES = Path("lib")
# Of packages: what they are tested with, typed with and compiled from, and what installers note.
_NOT_SHIPPED = ("*.pyi", "*.pyx", "*.pxd", "*.pxi", "*.c", "*.h", "py.typed")
_NOT_SHIPPED_FOLDERS = ("tests", "_tests", "__pycache__", "bin")
# The modules whose words decide what the runtime is.
_MADE_BY = ("interpreter", "libraries", "licences", "runtime")
_NOTES = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json")


def runtime_tree(interpreter: Interpreter, pins: str, build: Path) -> Path:
    """Return the tree, which nobody may change; build it below `build` if the one there is of other inputs.

    Inputs are the pins, this code, and every file of this machine that was copied.
    """
    tree, record = build / "runtime", build / "runtime.json"
    key = _key(interpreter, pins)
    if record.is_file() and tree.is_dir():
        made = json.loads(record.read_text())
        if made["key"] == key and all(_look(Path(path)) == seen for path, seen in made["sources"].items()):
            return tree
    record.unlink(missing_ok=True)
    shutil.rmtree(tree, ignore_errors=True)
    sources = _build(interpreter, pins, tree, build)
    record.write_text(json.dumps({"key": key, "sources": {str(path): _look(path) for path in sources}}))
    return tree


def _build(interpreter: Interpreter, pins: str, tree: Path, build: Path) -> list[Path]:
    print(f"dist: building the runtime with Python {interpreter.banner.split()[0]} ({interpreter.executable})")
    copy_interpreter(interpreter, tree)
    library = tree / interpreter.library_place
    _install_packages(interpreter, pins, library, build)
    sources = bundle_libraries(tree, LIBRARIES)
    without = gather_licences(tree, library, [interpreter.executable, *sources])
    if without:
        print(f"dist: no licence text known on this machine for {', '.join(without)}: add it before you pass this on")
    for note in _NOTES:
        for path in library.glob(f"*.dist-info/{note}"):
            path.unlink()
    compile_all(tree, [library])
    return [interpreter.executable, *sources]


def _install_packages(interpreter: Interpreter, pins: str, library: Path, build: Path) -> None:
    """Put the packages of `pins` into the standard library's directory; pip compares each download with its hash."""
    environment, folder, wanted = build / "venv", build / "packages", build / "requirements.txt"
    for path in (environment, folder):
        shutil.rmtree(path, ignore_errors=True)
    subprocess.run([interpreter.executable, "-m", "venv", environment], check=True)
    wanted.write_text(pins)
    pip: list[str | Path] = [environment / "bin" / "python", "-m", "pip", "--quiet", "--disable-pip-version-check"]
    # Debugging information would name the directory of this build, and so change what is left when it is taken away.
    flags = {"CFLAGS": f"{os.environ.get('CFLAGS', '')} -g0"}
    subprocess.run(
        [*pip, "install", "--no-deps", "--no-compile", "--require-hashes", "--target", folder, "-r", wanted],
        env={**os.environ, **flags},
        check=True,
    )
    _trim(folder)
    for path in sorted(folder.iterdir()):
        if (library / path.name).exists():
            raise SystemExit(f"the package file {path.name} would hide a module of the standard library")
        shutil.move(path, library / path.name)
    shutil.rmtree(environment)
    shutil.rmtree(folder)


def _trim(folder: Path) -> None:
    for pattern in _NOT_SHIPPED:
        for path in folder.rglob(pattern):
            path.unlink()
    for name in _NOT_SHIPPED_FOLDERS:
        for path in sorted(folder.rglob(name)):
            if path.is_dir():
                shutil.rmtree(path)


def _key(interpreter: Interpreter, pins: str) -> str:
    texts = [Path(__file__).with_name(f"{name}.py").read_bytes() for name in _MADE_BY]
    return hashlib.sha256(b"\0".join([interpreter.banner.encode(), pins.encode(), *texts])).hexdigest()


def _look(path: Path) -> list[int]:
    """What changes when somebody replaces a file."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return []
    return [status.st_size, status.st_mtime_ns]
