"""Where the configuration of a containerd is written: not every distribution leaves that to the admin.

    containerd     the admin's file, and a drop-in beside it
    k3s, RKE2      the file is written anew at each start. On containerd 2 it imports a directory, where a drop-in is enough; before,
                   a template replaces the whole file
    k0s            writes its file too, and merges what lies in /etc/k0s/containerd.d into it
    MicroK8s       writes its file from a template beside it, which is the admin's
    docker         writes the file of its own containerd, and pulls without asking it

Source: docs of k3s (advanced, "Configuring containerd"), k0s (runtime), MicroK8s (configure containerd).
"""

import fnmatch
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snapshotter.containerd import editing, files
from snapshotter.containerd.finding import DEFAULT_CONFIG, Found
from snapshotter.containerd.lines import file_version_of
from snapshotter.errors import ConfigError, ContainerdUnfit

DROP_IN_NAME = "estargz-snapshotter.toml"

RESTART = {
    "k3s": "systemctl restart k3s (on an agent: k3s-agent)",
    "rke2": "systemctl restart rke2-server (on an agent: rke2-agent)",
    "k0s": "systemctl restart k0sworker (on a controller: k0scontroller)",
    "microk8s": "snap restart microk8s.daemon-containerd",
}


@dataclass(frozen=True, slots=True)
class Site:
    """Where to write.

    `main` is the file that is edited, or that imports; `seed` the file that it starts as a copy of where it does not exist
    yet. `drop_in` is None where all goes into `main`; `imported` says that something takes the drop-in up by itself.
    `checkable`: containerd's own program can show what it makes of `main`. `refusal`, if it is not empty, says why nothing can
    be written there.
    """

    main: Path
    drop_in: Path | None
    imported: bool
    restart: str
    seed: Path | None = None
    checkable: bool = True
    refusal: str = ""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A file of a configuration as it is."""

    path: Path
    text: str
    tables: Mapping[str, Any]


def site_of(found: Found) -> Site:
    """Where the configuration of `found` is written.

    Raises:
        ContainerdUnfit: nowhere (docker's).
        ConfigError: in a file that is not TOML.
    """
    main = found.config_path or DEFAULT_CONFIG
    restart = RESTART.get(found.flavour, "systemctl restart containerd")
    if found.flavour == "docker":
        raise ContainerdUnfit(
            f"{found.address} is the containerd that dockerd starts for itself: dockerd writes its configuration and pulls "
            "images by itself, so that no snapshotter can make them lazy. Run a containerd of its own (the package "
            "containerd or containerd.io), and name its socket with --containerd"
        )
    if found.flavour in ("k3s", "rke2"):
        return _rancher(found, main, restart)
    if found.flavour == "k0s" and b"k0s_managed=true" in (files.read(main) or b""):
        return Site(main, main.parent / "containerd.d" / DROP_IN_NAME, True, restart, checkable=False)
    template = main.parent / "containerd-template.toml"
    if found.flavour == "microk8s" and template.exists():
        return Site(template, None, False, restart)
    imported = _imported_directory(main)
    return Site(main, (imported or main.parent / "conf.d") / DROP_IN_NAME, imported is not None, restart)


def _rancher(found: Found, main: Path, restart: str) -> Site:
    rendered = files.read(main)
    if rendered is None:
        raise ConfigError(f"{main} is not there: start {found.flavour} once, which writes it")
    merges = version_in(load_text(main, rendered)) >= 3  # what it writes for containerd 2
    imported = _imported_directory(main)
    if merges and imported is not None:
        return Site(main, imported / DROP_IN_NAME, True, restart)
    template = main.parent / ("config-v3.toml.tmpl" if merges else "config.toml.tmpl")
    refusal = ""
    if b"{{" in (files.read(template) or b""):
        refusal = (
            f"{template} is a template of yours; nothing was changed. Add what `snapshotter config containerd` prints to it: "
            "a table that the template or its base has already must be changed there, TOML lets it stand only once"
        )
    return Site(template, None, False, restart, seed=main, refusal=refusal)


def load_text(path: Path, data: bytes) -> Mapping[str, Any]:
    """The tables of a file. Raises ConfigError with file and line."""
    return editing.read(text_of(path, data), str(path))


def text_of(path: Path, data: bytes) -> str:
    """The text of a file. Raises ConfigError."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start}; mend it first, nothing was changed") from None


def version_in(tables: Mapping[str, Any]) -> int:
    """The version of a file; one that says none is of version 1."""
    version = tables.get("version", 1)
    return version if isinstance(version, int) and version > 0 else 1


def file_version(found: Found) -> int:
    """The version whose words the file of `found` uses; of the one that would be written where there is none."""
    data = files.read(found.config_path) if found.config_path else None
    if data is None:
        return file_version_of(found.version)
    return min(version_in(load_text(found.config_path or DEFAULT_CONFIG, data)), 3)


def loaded(main: Path) -> list[Loaded]:
    """The files that containerd merges, in its order: what comes later wins.

    Source: containerd cmd/containerd/server/config, LoadConfig and resolveImports.
    """
    pending = [main]
    seen: list[Loaded] = []
    while pending:
        path = pending.pop(0)
        data = files.read(path)
        if data is None or path in {one.path for one in seen}:
            continue
        tables = load_text(path, data)
        seen.append(Loaded(path, text_of(path, data), tables))
        pending += _imports(path, tables)
    return seen


def covers(pattern: str, path: Path) -> bool:
    """Whether an entry of `imports` takes up `path`."""
    return Path(pattern).parent == path.parent and fnmatch.fnmatchcase(path.name, Path(pattern).name)


def _imports(parent: Path, tables: Mapping[str, Any]) -> list[Path]:
    found: list[Path] = []
    for entry in tables.get("imports", []):
        pattern = parent.parent / str(entry)
        # Go's pattern lets a star stand for no slash, and sorts; a name that is not there keeps containerd from starting.
        found += sorted(pattern.parent.glob(pattern.name)) if "*" in pattern.name else [pattern]
    return found


def _imported_directory(main: Path) -> Path | None:
    """A directory of which `main` imports every file that ends in .toml."""
    data = files.read(main)
    if data is None:
        return None
    try:
        imports = tomllib.loads(text_of(main, data)).get("imports", [])
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{main}: not valid TOML: {error}; mend it first, nothing was changed") from None
    for entry in imports:
        pattern = Path(str(entry))
        is_pattern = "*" in pattern.name and "*" not in str(pattern.parent) and pattern.is_absolute()
        if is_pattern and covers(str(pattern), pattern.parent / DROP_IN_NAME):
            return pattern.parent
    return None
