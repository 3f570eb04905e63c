"""A release as it is unpacked: `tree/`, the scripts that install and remove it, and what they put beside it."""

import hashlib
import os
import platform
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from dev.distribution.interpreter import Interpreter, compile_all
from dev.distribution.libraries import glibc_wanted, loader

# What the Go and container world calls them, and so the names of archives.
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_SOURCE_LEFT_OUT = shutil.ignore_patterns("__pycache__")
_KEY = re.compile(r"^(?:# )?(\w+ = )", re.MULTILINE)
_COMMENT = "# Take the # away from a key to change it; as it stands here it is the default of version {version}.\n"
_DOCUMENTS = ("README.md", "CHANGELOG.md", "LICENSE")


@dataclass(frozen=True, slots=True)
class Release:
    """A staged release; `epoch` is the time that all its files bear, in seconds since 1970."""

    folder: Path
    epoch: int


def stage(top: Path, runtime: Path, interpreter: Interpreter, into: Path) -> Release:
    """Put the release of the checkout `top` together in `into`, in place of the one before."""
    version = _version(top)
    machine = platform.machine()
    name = f"estargz-snapshotter-{version}-linux-{_ARCHITECTURES.get(machine, machine)}"
    for stale in into.glob("estargz-snapshotter-*"):
        shutil.rmtree(stale)
    folder = into / name
    tree = folder / "tree"
    shutil.copytree(runtime, tree)
    library = tree / interpreter.library_place
    shutil.copytree(top / "snapshotter", library / "snapshotter", ignore=_SOURCE_LEFT_OUT)
    compile_all(tree, [library / "snapshotter"])
    _write_launcher(top / "deploy" / "install" / "snapshotter.sh", tree, interpreter)
    shutil.copyfile(top / "LICENSE", tree / "share" / "licenses" / "estargz-snapshotter.txt")
    _copy_documents(top, folder)
    _write_generated(tree, folder, version)
    for path in folder.rglob("*"):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644)
    major, minor = glibc_wanted(tree)
    facts = {
        "version": version,
        "id": f"{version}-{_fingerprint(tree)}",
        "machine": machine,
        "glibc": f"{major}.{minor}",
        "loader": loader(tree / "bin" / "python3"),
    }
    (folder / "release").write_text("".join(f"{key}={value}\n" for key, value in facts.items()))
    epoch = _epoch(top)
    for path in [folder, *folder.rglob("*")]:
        os.utime(path, (epoch, epoch), follow_symlinks=False)
    return Release(folder, epoch)


def _version(top: Path) -> str:
    match = re.search(r'^__version__ = "([^"]+)"$', (top / "snapshotter" / "__init__.py").read_text(), re.MULTILINE)
    if match is None:
        raise SystemExit("snapshotter/__init__.py does not say __version__ = …")
    return match[1]


def _write_launcher(source: Path, tree: Path, interpreter: Interpreter) -> None:
    """The launcher, told where the bundled OpenSSL looks for certificates."""
    text = source.read_text()
    for name, value in {"@CAFILE@": interpreter.cafile, "@CAPATH@": interpreter.capath}.items():
        text = text.replace(name, value)
    launcher = tree / "bin" / "snapshotter"
    launcher.write_text(text)
    launcher.chmod(0o755)


def _copy_documents(top: Path, folder: Path) -> None:
    for name in ("install.sh", "uninstall.sh"):
        shutil.copy(top / "deploy" / "install" / name, folder / name)
        (folder / name).chmod(0o755)
    share = folder / "share"
    shutil.copytree(top / "deploy", share / "deploy", ignore=shutil.ignore_patterns("install", "__pycache__"))
    share.joinpath("systemd").mkdir()
    for unit in sorted((top / "deploy" / "systemd").iterdir()):
        shutil.copyfile(unit, share / "systemd" / unit.name)
    shutil.rmtree(share / "deploy" / "systemd")
    for name in _DOCUMENTS:
        shutil.copyfile(top / name, folder / name)
    if (top / "docs").is_dir():
        shutil.copytree(top / "docs", folder / "docs", ignore=shutil.ignore_patterns("*.py", "__pycache__"))


def _write_generated(tree: Path, folder: Path, version: str) -> None:
    """What the program says about itself; that it can say so also proves the tree."""
    share = folder / "share"
    launcher = tree / "bin" / "snapshotter"
    path = {"PATH": os.defpath}
    default = subprocess.run([launcher, "config", "default"], capture_output=True, text=True, check=True, env=path)
    # An upgrade brings its own defaults: only what an admin wrote counts for good.
    config = share / "config.toml"
    config.write_text(_COMMENT.format(version=version) + _KEY.sub(r"#\1", default.stdout))
    subprocess.run([launcher, "config", "check", config], capture_output=True, check=True, env=path)
    ask = {**path, "_SNAPSHOTTER_COMPLETE": "bash_source"}
    completion = subprocess.run([launcher], capture_output=True, check=True, env=ask)
    (share / "completion.bash").write_bytes(completion.stdout)


def _fingerprint(tree: Path) -> str:
    """Twelve hexadecimal digits that differ when any name, mode or byte does."""
    whole = hashlib.sha256()
    for path in sorted(tree.rglob("*")):
        whole.update(f"{path.relative_to(tree)}\0{path.lstat().st_mode:o}\0".encode())
        if path.is_symlink():
            whole.update(os.readlink(path).encode())
        elif path.is_file():
            whole.update(hashlib.sha256(path.read_bytes()).digest())
    return whole.hexdigest()[:12]


def _epoch(top: Path) -> int:
    """SOURCE_DATE_EPOCH, else the time of the last commit, else (an unpacked source archive) that of the version.

    Source: https://reproducible-builds.org/specs/source-date-epoch/.
    """
    given = os.environ.get("SOURCE_DATE_EPOCH")
    if given:
        return int(given)
    if (top / ".git").exists() and shutil.which("git"):
        asked = subprocess.run(
            ["git", "-C", top, "log", "-1", "--format=%ct"], capture_output=True, text=True, check=False
        )
        if asked.returncode == 0 and asked.stdout.strip():
            return int(asked.stdout)
    return int((top / "snapshotter" / "__init__.py").stat().st_mtime)
