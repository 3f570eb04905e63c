"""How a pull looks while it runs: a row for each layer in a terminal, elsewhere a line for each as it ends."""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from snapshotter.cli.printing import printable
from snapshotter.cli.show import brief, cell, human, share, short
from snapshotter.image.pull.pulling import Pulled
from snapshotter.image.pull.rows import ENDS, LayerRow, LayerState, Watcher

STYLES = {LayerState.LAZY: "green", LayerState.UNPACKED: "yellow", LayerState.PRESENT: "dim"}
FRAMES_PER_S = 8
# Heading, the line that counts what is not shown, and where the cursor stands.
_OTHER_LINES = 3


class Lines:
    """A line on standard error for each layer that has ended."""

    def begin(self, rows: Sequence[LayerRow]) -> None:
        """Nothing to show yet."""

    def ended(self, number: int, count: int, row: LayerRow) -> None:
        """Say what became of a layer."""
        why = ": ".join(filter(None, (row.reason, row.detail)))
        took = f"in {row.seconds(time.monotonic()):.1f} s" if row.state is not LayerState.PRESENT else ""
        wire = f"{human(row.fetched)} fetched" if row.fetched else ""
        said = ", ".join(filter(None, (f"{row.state} {took}".strip(), wire, printable(why))))
        click.echo(f"layer {number}/{count}: {short(row.digest)} {human(row.size)} {said}", err=True)

    def note(self, sentence: str) -> None:
        """Say it."""
        click.echo(f"snapshotter: {printable(sentence)}", err=True)


class Silence:
    """For programs: nothing but what an admin should know."""

    def begin(self, rows: Sequence[LayerRow]) -> None:
        """Nothing to say."""

    def ended(self, number: int, count: int, row: LayerRow) -> None:
        """Nothing to say."""

    def note(self, sentence: str) -> None:
        """Say it."""
        click.echo(f"snapshotter: {printable(sentence)}", err=True)


class Screen:
    """A table that moves."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._rows: Sequence[LayerRow] = ()
        self._notes: list[str] = []

    def begin(self, rows: Sequence[LayerRow]) -> None:
        """Show them from now on."""
        self._rows = rows

    def ended(self, number: int, count: int, row: LayerRow) -> None:
        """The table shows it."""

    def note(self, sentence: str) -> None:
        """Say it below the table."""
        self._notes.append(sentence)

    def frame(self) -> Group:
        """What the terminal shows now; rows that have ended leave first where it is too low for all."""
        room = max(1, self._console.height - _OTHER_LINES - len(self._notes))
        rows = list(self._rows)
        ended = [row for row in rows if row.state in ENDS]
        hidden = set(map(id, ended[: max(0, len(rows) - room)]))
        shown = [row for row in rows if id(row) not in hidden][:room]
        parts: list[Table | Text] = [_table(shown)] if rows else []
        if len(shown) < len(rows):
            parts.append(Text(f"… and {len(rows) - len(shown)} more of {len(rows)}, {len(ended)} done", style="dim"))
        return Group(*parts, *map(cell, self._notes))

    def conclusion(self) -> Group:
        """The whole table, and each reason once in words."""
        rows = self._rows
        counts = ", ".join(f"{count} {state}" for state, count in Counter(str(row.state) for row in rows).items())
        total = Text(f"{len(rows)} layers: {counts}; {human(sum(row.fetched for row in rows))} fetched")
        words = dict.fromkeys((row.reason, brief(row.detail)) for row in self._rows if row.reason)
        reasons = [Text.assemble((f"{reason}: ", "bold"), printable(detail)) for reason, detail in words]
        parts: list[Table | Text] = [_table(rows), total] if rows else []
        return Group(*parts, *reasons, *map(cell, self._notes))


@contextmanager
def watching(*, quiet: bool) -> Iterator[Watcher]:
    """Show a pull while the block runs; `quiet`: a program reads the result."""
    console = Console(stderr=True, markup=False, highlight=False, emoji=False)
    if quiet:
        yield Silence()
        return
    if not console.is_terminal:
        yield Lines()
        return
    screen = Screen(console)
    live = Live(
        get_renderable=screen.frame,
        console=console,
        refresh_per_second=FRAMES_PER_S,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    with live:
        yield screen
    console.print(screen.conclusion())


def as_json(pulled: Pulled) -> dict[str, Any]:
    """What --json prints; sizes are bytes."""
    now_s = time.monotonic()
    return {
        "image": str(pulled.reference),
        "digest": pulled.digest,
        "platform": str(pulled.platform),
        "seconds": round(pulled.seconds, 3),
        "layers": [
            {
                "digest": row.digest,
                "chain_id": row.chain_id,
                "state": str(row.state),
                "reason": row.reason,
                "detail": row.detail,
                "size": row.size,
                "bytes_fetched": row.fetched,
                "seconds": round(row.seconds(now_s), 3),
            }
            for row in pulled.rows
        ],
    }


def _table(rows: Sequence[LayerRow]) -> Table:
    now_s = time.monotonic()
    made = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for name, width in (("LAYER", 12), ("SIZE", 8), ("STATE", 15), ("FETCHED", 8), ("TIME", 7)):
        made.add_column(name, min_width=width, no_wrap=True, justify="left" if name in {"LAYER", "STATE"} else "right")
    made.add_column("WHY NOT LAZY", no_wrap=True, overflow="ellipsis")
    for row in rows:
        state = str(row.state)
        if row.state is LayerState.DOWNLOADING:
            state += f" {share(row.received, row.size)}"
        why = row.reason or (row.detail if row.state is LayerState.PRESENT else "")
        made.add_row(
            short(row.digest),
            human(row.size),
            Text(state, style=STYLES.get(row.state, "")),
            human(row.fetched) if row.fetched else "-",
            f"{row.seconds(now_s):.1f} s" if row.began_s is not None else "-",
            cell(why),
        )
    return made
