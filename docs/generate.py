"""Write `configuration.md`, `cli.md` and `limits.md` from the code: `python docs/generate.py [DIRECTORY]`.

What is generated is committed, so that it can be read where the code is; a test asserts that both agree.
"""

import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import click
from limits_page import limits_page

from snapshotter.cli.main import snapshotter
from snapshotter.config import DEFAULT_PATH, Config

HERE = Path(__file__).resolve().parent

WIDTH = 80
"""Columns of the help texts; `--help` in a terminal adapts to it."""


def configuration() -> str:
    """The configuration reference: every key with its type, default and meaning, as Markdown."""
    lines = [
        "# Configuration reference",
        "",
        "Generated from the code by `make docs`; a test compares it.",
        "",
        f"The file is `{DEFAULT_PATH}`, or what `--config` or `$ESTARGZ_CONFIG` names. It is TOML; without a file, or without a key,",
        "the defaults count. Options of `snapshotter serve` outrank it. It is read when the daemon starts: `snapshotter config check`",
        "says before a restart what is wrong with it, an unknown key included, and `snapshotter config default` prints one with every key.",
        "",
        "Sizes are whole numbers of bytes or texts such as `512MiB`, `20GiB` and `1.5GB`. Paths are absolute.",
        "",
        "## Top level",
        "",
        *_keys(Config()),
    ]
    for table in fields(Config):
        value = getattr(Config(), table.name)
        if is_dataclass(value):
            lines += ["", f"## [{table.name}]", "", str(value.__doc__), "", *_keys(value)]
    return "\n".join(lines) + "\n"


def _keys(table: Any) -> Iterator[str]:
    yield "| key | default | meaning |"
    yield "|---|---|---|"
    for key in fields(table):
        value = getattr(table, key.name)
        if is_dataclass(value):
            continue
        kind = key.metadata["kind"]
        default = "unset" if value is None else f"`{kind.show(value)}`"
        yield f"| `{key.name}` | {_cell(default)} | {_cell(key.metadata['doc'])} *{_cell(_may_be(kind))}.* |"


def _may_be(kind: Any) -> str:
    """What a value may be, in the words of the error for one that is not."""
    try:
        kind.read(object())
    except ValueError as error:
        words = str(error)
        return words[:1].upper() + words[1:]
    raise RuntimeError("a kind of key takes anything")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def commands() -> str:
    """The reference of the command line: `--help` of every command, as Markdown."""
    lines = [
        "# Command line reference",
        "",
        "Generated from `--help` by `make docs`; a test compares it.",
    ]
    for path, command, context in _every(snapshotter, ("snapshotter",), None):
        lines += [
            "",
            f"{'#' * (min(len(path), 3) + 1)} {' '.join(path)}",
            "",
            "```text",
            command.get_help(context),
            "```",
        ]
    return "\n".join(lines) + "\n"


def _every(
    command: click.Command, path: tuple[str, ...], parent: click.Context | None
) -> Iterator[tuple[tuple[str, ...], click.Command, click.Context]]:
    context = click.Context(
        command,
        info_name=path[-1],
        parent=parent,
        terminal_width=WIDTH,
        max_content_width=WIDTH,
        help_option_names=["-h", "--help"],
    )
    yield path, command, context
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            if inner is not None:
                yield from _every(inner, (*path, name), context)


PAGES = {"configuration.md": configuration, "cli.md": commands, "limits.md": limits_page}


def generate(target: Path) -> None:
    """Write the pages into the directory `target`."""
    for name, page in PAGES.items():
        (target / name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
