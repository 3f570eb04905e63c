"""The page of limits: `snapshotter/format/limits.py`, and what it names in other rooms, as Markdown."""

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from snapshotter.format import limits
from snapshotter.format.limits import ELSEWHERE, Sender

COUNTS = frozenset({
    "TOC_ENTRIES", "INFLATE_GZIP", "INFLATE_ZSTD", "ZSTD_WINDOW_LOG", "ID_MAX", "DEVICE_MAJOR", "DEVICE_MINOR", "LAYERS_MAX",
    "INDEX_DEPTH", "_INDEX_DEPTH", "KEPT", "HOPS_MAX", "NAME_MAX", "WORKERS", "HOSTS_MAX", "_URL_MAX", "HOSTS_KEPT",
    "CONNECTIONS_MAX", "PROGRAM_MAX",
})  # fmt: skip
"""Limits that are no bytes."""

UNITS = ("KiB", "MiB", "GiB", "TiB")

INTRODUCTION = """# Limits

Generated from `snapshotter/format/limits.py` by `make docs`; a test compares it.

What images, registries and clients send is bounded, so that none of them takes the node's memory, disk or time. No limit is a
setting: each is far from what an honest image needs.
"""

CHAPTERS = {
    Sender.REGISTRY: (
        "What registries and token servers answer",
        "An answer beyond a limit is an error of that registry: the next mirror is asked, or the layer is pulled the ordinary way.",
    ),
    Sender.NODE: (
        "What all images together may take of the node",
        "Beyond it others wait, or go a slower way. Settings beside these are in [configuration.md](configuration.md).",
    ),
    Sender.CLIENT: ("What clients of the sockets may ask", "A call beyond a limit is refused, or ended."),
    Sender.SITE: (
        "What is read of the site's own files and programs",
        "Beyond a limit they are an error that names the file.",
    ),
    Sender.CONVERTER: (
        "What `image convert` and `image pull` read",
        "Beyond a limit the command ends with an error.",
    ),
}


def limits_page() -> str:
    """Every limit with its value and its meaning."""
    own = [
        "## What a layer may ask",
        "",
        "A layer beyond one of these is not lazy, with the reason `toc-invalid`, `not-a-lazy-format` or `over-a-limit`: containerd pulls it the ordinary way.",
        "A member that does not keep to them when it is read is an I/O error for the file.",
        "",
        *_table((name, getattr(limits, name), text) for name, text in _documented(Path(limits.__file__))),
    ]
    lines = [INTRODUCTION, *own]
    for sender, (title, beyond) in CHAPTERS.items():
        rows = [
            (f"{one.module}.{one.name}", _value(one.module, one.name), one.bounds)
            for one in ELSEWHERE
            if one.sender is sender
        ]
        lines += ["", f"## {title}", "", beyond, "", *_table(rows)]
    return "\n".join(lines) + "\n"


def _value(module: str, name: str) -> Any:
    return getattr(importlib.import_module(f"snapshotter.{module}"), name)


def _table(rows: Any) -> Iterator[str]:
    yield "| limit | name | what it bounds |"
    yield "|---|---|---|"
    for name, value, text in rows:
        yield f"| {_shown(name.rpartition('.')[2], value)} | `{name}` | {' '.join(text.split())} |"


def _shown(name: str, value: float) -> str:
    if name.endswith("_S"):
        return f"{value:g} s"
    if name in COUNTS or value < 1024 or value % 1024:
        return f"{value:,}".replace(",", " ")
    for unit in UNITS:
        value /= 1024
        if value < 1024 or value % 1024 or unit == UNITS[-1]:
            return f"{value:g} {unit}"
    raise RuntimeError(f"{name} is too large for a unit")


def _documented(path: Path) -> Iterator[tuple[str, str]]:
    """Each integer of a module, and the text below it; two that share one text share it."""
    waiting: list[str] = []
    for node in ast.parse(path.read_bytes()).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            waiting.append(node.targets[0].id)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            for name in waiting:
                if isinstance(getattr(limits, name), int) and name not in {"KIB", "MIB", "GIB", "TIB"}:
                    yield name, str(node.value.value)
            waiting = []
