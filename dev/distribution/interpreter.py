"""The interpreter of the tree: the executable and the standard library of the Python that builds it.

Packages lie in the standard library's own directory. It is the one directory that every start of this interpreter
has on its path, whatever the flags and whatever `site` adds: Debian's is compiled into the executable.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

OLDEST = (3, 11)

# What a daemon never imports. The last line is what Debian adds for its own packages.
LEFT_OUT = shutil.ignore_patterns(
    *("test", "tests", "idlelib", "tkinter", "turtledemo", "turtle.py", "lib2to3", "ensurepip", "distutils", "venv"),
    *("pydoc_data", "curses", "__phello__", "__pycache__", "config-*", "site-packages", "lib-dynload", "*.exe"),
    *("dist-packages", "sitecustomize.py", "EXTERNALLY-MANAGED", "_distutils_system_mod.py"),
)
# Extension modules that would bring a library along for nothing, some of them (readline, dbm) under licences that
# ask more of whoever passes them on; and those for testing Python itself.
EXTENSIONS_LEFT_OUT = (
    *("_curses", "_dbm", "_gdbm", "readline", "_tkinter", "nis", "ossaudiodev", "_crypt", "_uuid"),
    *("_test", "_ctypes_test", "_xxtest", "xxlimited"),
)

_FACTS = """
import json, os, ssl, sys, sysconfig
paths = ssl.get_default_verify_paths()
print(json.dumps({
    "version": list(sys.version_info[:3]), "executable": os.path.realpath(sys._base_executable), "banner": sys.version,
    "library": sysconfig.get_path("stdlib"),
    "extensions": sysconfig.get_path("platstdlib", vars={"platbase": sys.base_exec_prefix}) + "/lib-dynload",
    "library_directory": sys.platlibdir, "cafile": paths.openssl_cafile, "capath": paths.openssl_capath,
}))
"""


@dataclass(frozen=True, slots=True)
class Interpreter:
    """A CPython on this machine; `cafile` and `capath` are where its OpenSSL looks for certificates."""

    version: tuple[int, ...]
    banner: str
    executable: Path
    library: Path
    extensions: Path
    library_directory: str
    cafile: str
    capath: str

    @property
    def library_place(self) -> Path:
        """The standard library's place in a tree, where `bin/python3` looks for it."""
        return Path(self.library_directory, f"python{self.version[0]}.{self.version[1]}")


def look_at(python: str) -> Interpreter:
    """Ask the command `python`, a virtual environment's too, what it is.

    Raises:
        SystemExit: it is too old or does not run.
    """
    try:
        answer = subprocess.run([python, "-I", "-c", _FACTS], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(f"{python} does not run ({error}): name a Python with DIST_PYTHON=…") from None
    facts = json.loads(answer.stdout)
    if tuple(facts["version"]) < OLDEST:
        raise SystemExit(f"{python} is Python {facts['banner']}: name 3.11 or a later one with DIST_PYTHON=…")
    return Interpreter(
        version=tuple(facts["version"]),
        banner=facts["banner"],
        executable=Path(facts["executable"]),
        library=Path(facts["library"]),
        extensions=Path(facts["extensions"]),
        library_directory=facts["library_directory"],
        cafile=facts["cafile"],
        capath=facts["capath"],
    )


def copy_interpreter(interpreter: Interpreter, tree: Path) -> None:
    """Copy executable, standard library and extension modules into an empty `tree`."""
    (tree / "bin").mkdir(parents=True)
    shutil.copy2(interpreter.executable, tree / "bin" / "python3")
    library = tree / interpreter.library_place
    # Links out of the directory (Debian's) become what they name.
    shutil.copytree(interpreter.library, library, ignore=LEFT_OUT, ignore_dangling_symlinks=True)
    extensions = library / "lib-dynload"
    extensions.mkdir()
    for module in sorted(interpreter.extensions.glob("*.so")):
        if not module.name.startswith(EXTENSIONS_LEFT_OUT):
            shutil.copy2(module, extensions)


def compile_all(tree: Path, folders: Iterable[Path]) -> None:
    """Write the bytecode of every module below `folders`, as the interpreter of `tree` takes it without a look at its date.

    The names in tracebacks are corrected as a module is loaded, so none of this machine's is compiled in.
    """
    python = tree / "bin" / "python3"
    # Not isolated: -I would ignore the seed, which makes the order in sets, and so the files, the same each time.
    options: list[str | Path] = ["-q", "-f", "--invalidation-mode", "unchecked-hash", "-s", tree]
    subprocess.run(
        [python, "-S", "-P", "-s", "-m", "compileall", *options, *folders],
        env={"PYTHONHASHSEED": "0", "PATH": os.defpath},
        check=True,
    )
