"""How results look: tables and sizes for people, JSON for programs, progress on standard error."""

# ruff: noqa: PLC0415 (imported where it is needed: no other command waits for gRPC)

import json
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console
from rich.table import Table
from rich.text import Text

from snapshotter.cli.printing import printable

if TYPE_CHECKING:
    from google.protobuf.message import Message

_LONG_HEX = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{52}\b")
_WORD_BEGINS = re.compile(r"(?<=[a-z])(?=[A-Z])")

UNBOUNDED_WIDTH = 10_000
"""Width where no terminal is: programs that read lines want a row on one line."""


class Advance(Protocol):
    """Tells a progress bar where the work is, in bytes."""

    def __call__(self, done: int, total: int, /) -> None:
        """Move the bar."""


def console() -> Console:
    """Return a console as wide as the terminal or COLUMNS, unbounded where neither is."""
    bounded = sys.stdout.isatty() or os.environ.get("COLUMNS")
    return Console(
        width=None if bounded else UNBOUNDED_WIDTH, highlight=False, markup=False, emoji=False, soft_wrap=False
    )


def emit(made: Table) -> None:
    """Print a table; where it is read by a program, no line ends in blanks."""
    target = console()
    if target.is_terminal:
        target.print(made)
        return
    with target.capture() as captured:
        target.print(made)
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))


def table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    """Return a plain table; the columns named in `right` hold numbers. The last column gives way when it is narrow."""
    made = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        last = column == columns[-1]
        made.add_column(
            column,
            justify="right" if column in right else "left",
            no_wrap=not last,
            overflow="fold" if last else None,  # type: ignore[arg-type]
        )
    return made


def human(size: int) -> str:
    """Return `size` bytes in at most nine characters: `0 B`, `999 B`, `1.2 MiB`, `1023 GiB`."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1023.5 or unit == "TiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" or value >= 99.95 else f"{value:.1f} {unit}"


def share(part: int, whole: int) -> str:
    """Return `part` of `whole` in percent; 100 % only if nothing is missing, 0 % only if nothing is there."""
    if whole <= 0:
        return "-"
    percent = 100 * part / whole
    return f"{min(99, max(1, round(percent))) if 0 < part < whole else round(percent)}%"


def short(digest: str) -> str:
    """Return the first twelve digits of a digest, as other container tools show it."""
    return printable(digest.partition(":")[2] or digest)[:12]


def brief(text: str) -> str:
    """Return a sentence or path with every digest and container id in it cut to twelve digits; --json has them whole."""
    return _LONG_HEX.sub(r"\1", text)


def cell(text: str, style: str = "") -> Text:
    """Return `text` made safe for a terminal, as one table cell."""
    return Text(printable(text), style=style)


def ago(ns: int, now_ns: int | None = None) -> str:
    """Return how long ago the Unix time `ns` was, in the largest whole unit; `never` for 0."""
    if ns == 0:
        return "never"
    seconds = max(0, (now_ns if now_ns is not None else time.time_ns()) - ns) // 10**9
    for unit, length_s in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length_s:
            return f"{seconds // length_s} {unit}"
    return f"{seconds} s"


def print_json(value: Any) -> None:
    """Print `value` as JSON in ASCII, so that no terminal or pipe can spoil it."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def plain(message: "Message") -> dict[str, Any]:
    """Return a protobuf message as JSON's types: every field is there, sizes are ints, enums lower-case words."""
    values: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.enum_type is not None:
            # By protobuf's custom the values of an enum begin with its name.
            prefix = _WORD_BEGINS.sub("_", field.enum_type.name).upper() + "_"
            values[field.name] = field.enum_type.values_by_number[value].name.removeprefix(prefix).lower()
        else:
            values[field.name] = _plain_value(value)
    return values


def _plain_value(value: Any) -> Any:
    if isinstance(value, str | int | float | bool):
        return value
    if hasattr(value, "DESCRIPTOR"):
        return plain(value)
    if isinstance(value, Mapping):
        return {str(key): _plain_value(item) for key, item in sorted(value.items())}
    return [_plain_value(item) for item in value]


@contextmanager
def progress(title: str) -> Iterator[Advance]:
    """Show a bar on standard error while the block runs, if that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda _done, _total: None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=max(total, done))
