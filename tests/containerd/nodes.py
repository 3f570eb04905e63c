"""A containerd's configuration in a folder, for tests that change it."""

import shutil
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from snapshotter.containerd.finding import Found
from snapshotter.containerd.introspection import Version
from snapshotter.containerd.lines import Wanted
from snapshotter.containerd.site import file_version

SOCKET, ROOT = Path("/run/estargz/snapshotter.sock"), Path("/var/lib/estargz")
V16, V17, V21 = Version(1, 6, 20), Version(1, 7, 20), Version(2, 1, 4)
PROGRAM = shutil.which("containerd")
needs_containerd = pytest.mark.skipif(PROGRAM is None, reason="no containerd on this machine")


def node(folder: Path, text: str | None, version: Version = V16, *, checked: bool = False) -> Found:
    """A containerd whose file is `config.toml` in `folder`; `checked`: by the real program, which is of 1.x."""
    main = folder / "config.toml"
    if text is not None:
        main.write_bytes(text.replace("/nowhere", str(folder)).encode())
    binary = Path(PROGRAM) if checked and PROGRAM else None
    return Found(Path("/run/containerd/containerd.sock"), version, None, binary, main, "containerd")


def wanted(found: Found, name: str = "estargz", *, transfer: bool = False) -> Wanted:
    return Wanted(name, SOCKET, ROOT, found.version, file_version(found), transfer)


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Everything in a folder: names and bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def parsed_text(data: bytes | None) -> dict[str, object]:
    return tomllib.loads((data or b"").decode())


def with_program(found: Found, folder: Path) -> Found:
    """`found` with a program that prints its file and its imports merged as containerd 2 does."""
    program = folder / "program"
    program.write_text(
        f"#!{sys.executable}\nimport sys, json\nfrom pathlib import Path\n"
        f"sys.path.insert(0, {str(Path(__file__).parents[2])!r})\n"
        "from tests.containerd.main_files import merged\n"
        "def show(name, table):\n"
        "    if name: print('[' + '.'.join(map(json.dumps, name)) + ']')\n"
        "    for k, v in table.items():\n        if not isinstance(v, dict): print(json.dumps(k), '=', json.dumps(v))\n"
        "    for k, v in table.items():\n        if isinstance(v, dict): show([*name, k], v)\n"
        "show([], merged(Path(sys.argv[2])))\n"
    )
    program.chmod(0o755)
    return replace(found, binary=program)
