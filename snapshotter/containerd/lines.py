"""The tables that make a containerd of one release line pull lazily, each with what it is for.

    line          keys about pulls                          what kubelet is told about the image file system
    1.6           plugins."io.containerd.grpc.v1.cri"       always <containerd root>/io.containerd.snapshotter.v1.<name>
    1.7           the same                                  the same; from 1.7.16 on exports.root of the proxy plugin
    2.0           plugins."io.containerd.cri.v1.images"     exports.root
    2.1 and later the same (CRI goes back to its own puller), or the transfer service's unpack_config; exports.root

A file of version 2 keeps the old names also on 2.x, which migrates each file by its own version. Source: containerd,
docs/cri/config.md, docs/PLUGINS.md, docs/containerd-2.0.md, docs/transfer.md.
"""

import json
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from snapshotter.containerd.introspection import Version
from snapshotter.containerd.settings import (
    CRI,
    EXPORTS_ROOT_SINCE,
    IMAGES,
    REMOTE_ANNOTATIONS,
    TRANSFER,
    TRANSFER_SINCE,
    UnpackConfig,
    image_file_system,
)
from snapshotter.errors import ConfigError, ContainerdUnfit

OLDEST = Version(1, 6, 0)
FIRST_OF_2 = Version(2, 0, 0)
WIDTH = 80
"""Columns of a terminal."""

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,75}")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a configuration is made for. `file_version` is that of the file whose words it uses (1, 2 or 3).

    `unpack` is what the transfer service unpacks for today, besides us.
    """

    name: str
    socket: Path
    root: Path
    version: Version
    file_version: int
    transfer: bool = False
    containerd_root: Path = Path("/var/lib/containerd")
    unpack: tuple[UnpackConfig, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what no such containerd can do."""
        if self.version < OLDEST:
            raise ContainerdUnfit(f"containerd {self.version} is too old: lazy pulls need 1.6 or later")
        if self.transfer and self.version < TRANSFER_SINCE:
            raise ConfigError(
                f"containerd {self.version} does not pull pods' images through its transfer service (2.1 and later do): "
                "leave --transfer out"
            )

    @property
    def root_is_told(self) -> bool:
        """Whether this containerd tells kubelet the root of our daemon."""
        return self.version >= EXPORTS_ROOT_SINCE

    @property
    def place(self) -> Path:
        """Where kubelet measures free space."""
        return self.root if self.root_is_told else image_file_system(self.containerd_root, self.name)


@dataclass(frozen=True, slots=True)
class Part:
    """Keys of one table and what they are for."""

    table: tuple[str, ...]
    keys: Mapping[str, Any]
    why: str


def file_version_of(version: Version) -> int:
    """The version that a new file of this containerd gets."""
    return 3 if version >= FIRST_OF_2 else 2


def plugin(wanted: Wanted) -> list[Part]:
    """The proxy plugin: the tables that have no older words."""
    proxy = ("proxy_plugins", wanted.name)
    parts = [
        Part(
            proxy,
            {"type": "snapshot", "address": str(wanted.socket)},
            f"The snapshotter {wanted.name}, and the socket at which its daemon listens.",
        )
    ]
    exports: dict[str, str] = {}
    why = []
    if wanted.root_is_told:
        exports["root"] = str(wanted.root)
        why.append("root: the directory whose free space kubelet is to watch.")
    if wanted.transfer:
        exports[REMOTE_ANNOTATIONS] = "true"
        why.append(f"{REMOTE_ANNOTATIONS}: the transfer service says which layers it wants (a string, not a boolean).")
    if exports:
        parts.append(Part((*proxy, "exports"), exports, " ".join(why)))
    return parts


def pulls(wanted: Wanted) -> list[Part]:
    """The keys that make pods use the snapshotter, in the words of the file's version."""
    keys: dict[str, Any] = {"snapshotter": wanted.name}
    why = "snapshotter: pods' images and containers use it."
    if not wanted.transfer:
        keys["disable_snapshot_annotations"] = False
        why += (
            " disable_snapshot_annotations = false: containerd says which layers it wants; without it no pull is lazy."
        )
        if wanted.version >= TRANSFER_SINCE:
            why += (
                " It also makes CRI pull by itself instead of through the transfer service; containerd warns of that."
            )
    parts = [Part(pulls_table(wanted.file_version), keys, why)]
    if wanted.transfer:
        parts.append(_unpacking(wanted))
    return parts


def pulls_table(file_version: int) -> tuple[str, ...]:
    """Where a file of that version keeps the keys about pulls."""
    if file_version >= 3:
        return ("plugins", IMAGES)
    return ("plugins", CRI if file_version == 2 else "cri", "containerd")


def _unpacking(wanted: Wanted) -> Part:
    others = [one for one in wanted.unpack if one.snapshotter != wanted.name]
    others = others or [UnpackConfig("linux", "overlayfs")]
    entries = [{"platform": "linux", "snapshotter": wanted.name, "differ": "walking"}]
    entries += [{"platform": one.platform, "snapshotter": one.snapshotter} for one in others]
    return Part(
        ("plugins", TRANSFER),
        {"unpack_config": entries},
        "Snapshotters for which the transfer service may unpack. The list replaces containerd's own, so that what it "
        "unpacked for before stands here again.",
    )


def document(parts: Sequence[Part], *, version: int | None, heading: Iterable[str] = ()) -> str:
    """A TOML file of these parts with their comments; `version` None writes no version line."""
    blocks = [commented(*heading)] if heading else []
    if version is not None:
        blocks.append(f"version = {version}\n")
    blocks += [commented(part.why) + table(part) for part in parts]
    return "\n".join(blocks)


def table(part: Part) -> str:
    """One part without its comment."""
    name = ".".join(map(_key, part.table))
    plain = {key: value for key, value in part.keys.items() if not _is_tables(value)}
    text = f"[{name}]\n" + textwrap.indent(keys_of(replace(part, keys=plain)), "  ") if plain else ""
    for key, value in part.keys.items():
        if _is_tables(value):
            for entry in value:
                text += f"[[{name}.{_key(key)}]]\n"
                text += "".join(f"  {_key(inner)} = {literal(of)}\n" for inner, of in entry.items())
    return text


def keys_of(part: Part) -> str:
    """The keys of one part, a line each, without the header of their table."""
    return "".join(f"{_key(key)} = {literal(value)}\n" for key, value in part.keys.items())


def literal(value: object) -> str:
    """A string, a boolean or a list of strings as TOML, whose escapes for them are JSON's."""
    return json.dumps(value, ensure_ascii=False)


def commented(*paragraphs: str) -> str:
    """Paragraphs as comment lines that fit a terminal of eighty columns."""
    return "".join(f"# {line}\n" for text in paragraphs for line in wrapped(text).splitlines())


def wrapped(text: str) -> str:
    """A paragraph in lines of `WIDTH`; where it begins as an item of a list, the others stand under its text."""
    indent = "  " if text.startswith("* ") else ""
    return textwrap.fill(text, WIDTH - 2, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def is_plugin_name(name: str) -> bool:
    """Whether a proxy plugin can have this name. Source: containerd plugins' ids, pkg identifiers."""
    return _NAME.fullmatch(name) is not None


def _is_tables(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, Mapping) for one in value)


def _key(name: str) -> str:
    bare = name.isascii() and name.replace("-", "").replace("_", "").isalnum()
    return name if bare else literal(name)
