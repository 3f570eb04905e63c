"""The picture of `snapshotter top`: two answers of the daemon become lines that fit a terminal."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from snapshotter.cli import show
from snapshotter.cli.printing import printable

if TYPE_CHECKING:
    from snapshotter.api import control_pb2 as pb

KINDS = ("demand", "prefetch", "background")
WIDE = 110
"""Columns from which there is room for an image's name."""
NARROW = 72
"""Columns up to which there is none for the process's name and the layer."""
LEAST_FILE = 12
AWAY_SHOWN = 3
LEAST_ROWS = 3
LABEL_WIDTH = 10


@dataclass(frozen=True, slots=True)
class Rates:
    """What happened between two answers, per second: bytes by what asked for them, and requests of FUSE."""

    demand: float
    prefetch: float
    background: float
    fuse: float


def rates(earlier: "pb.ActivityResponse", later: "pb.ActivityResponse") -> Rates | None:
    """Return what happened between two answers; None if there is no telling: the daemon was started anew between them."""
    seconds = (later.clock_ns - earlier.clock_ns) / 1e9
    if seconds <= 0 or earlier.started_at_ns != later.started_at_ns:
        return None
    asked = sum(later.fuse_requests.values()) - sum(earlier.fuse_requests.values())
    return Rates(
        (later.fetched_demand - earlier.fetched_demand) / seconds,
        (later.fetched_prefetch - earlier.fetched_prefetch) / seconds,
        (later.fetched_background - earlier.fetched_background) / seconds,
        asked / seconds,
    )


def as_json(answer: "pb.ActivityResponse", measured: Rates | None) -> dict[str, Any]:
    """Return the picture for programs; `rates` are bytes and requests per second, null when not known."""
    plain = show.plain(answer)
    plain["rates"] = measured and {kind: round(getattr(measured, kind), 1) for kind in (*KINDS, "fuse")}
    return plain


def picture(
    answer: "pb.ActivityResponse", measured: Rates | None, width: int, height: int | None, trouble: str = ""
) -> RenderableType:
    """Return what a terminal of that size shows, or all of it if `height` is None.

    `trouble` is said first: why there is no newer answer.
    """
    lines = [*_head(answer, measured)]
    lines += [
        _line(f"! registry {host.host} failed last: {host.failure}", "yellow") for host in answer.away[:AWAY_SHOWN]
    ]
    if len(answer.away) > AWAY_SHOWN:
        lines.append(_line(f"! and {len(answer.away) - AWAY_SHOWN} more registries failed last", "yellow"))
    if trouble:
        lines.insert(0, _line(f"! {trouble}", "red"))
    seen = [wait for wait in answer.waits if wait.pid]
    notes = [*_notes(answer)]
    room = len(seen) if height is None else max(LEAST_ROWS, height - len(lines) - len(notes) - 2)
    if len(seen) > room:
        notes.insert(0, _line(f"… and {len(seen) - room + 1} more", "dim"))
        seen = seen[: room - 1]
    body: list[RenderableType] = [Text(""), _table(seen, width)] if seen else [Text("")]
    return Group(*lines, *body, *notes)


def _head(answer: "pb.ActivityResponse", measured: Rates | None) -> Iterator[Text]:
    up = show.ago(answer.started_at_ns, time.time_ns())
    yield _labelled("daemon", f"{answer.plane} plane, up {up}, {answer.layers_lazy} lazy layers")
    speeds = [f"{kind} {_per_second(getattr(measured, kind, None))}" for kind in KINDS]
    yield _labelled("fetching", "   ".join(speeds))
    under_way = [f"{kind} {getattr(answer, f'fetching_{kind}')}" for kind in KINDS]
    asked = "-" if measured is None else f"{measured.fuse:.0f}"
    yield _labelled("requests", "   ".join((*under_way, f"FUSE {asked}/s")))
    limit = f" of {show.human(answer.cache_quota)}" if answer.cache_quota else ""
    yield _labelled("cache", f"{show.human(answer.cache_used)}{limit}")
    if answer.reads_waiting or answer.lookups_waiting:
        reads, opens = answer.reads_waiting, answer.lookups_waiting
        waiting = f"{reads} read{'s' * (reads != 1)}, {opens} open{'s' * (opens != 1)}"
        yield _labelled("waiting", f"{waiting}; the longest {_seconds(answer.longest_wait_ns)}")
    else:
        yield _labelled("waiting", "nobody waits")


def _notes(answer: "pb.ActivityResponse") -> Iterator[Text]:
    """What must be said of waits that have no row."""
    unseen = sum(not wait.pid for wait in answer.waits)
    if unseen and answer.processes_seen:
        files = "1 file is" if unseen == 1 else f"{unseen} files are"
        yield _line(f"{files} on the way and nobody is seen to wait: read ahead, or the reader has gone", "dim")
    elif unseen:
        yield _line(f"who waits for {unseen} files is not known: /proc does not answer in time", "yellow")


def _per_second(speed: float | None) -> str:
    return "-" if speed is None else f"{show.human(round(speed))}/s"


def _seconds(ns: int) -> str:
    return f"{ns / 1e9:.1f} s" if ns < 100e9 else f"{ns // 10**9} s"


def _labelled(name: str, text: str) -> Text:
    return Text.assemble((name.ljust(LABEL_WIDTH), "bold"), printable(text), no_wrap=True, overflow="ellipsis")


def _line(text: str, style: str) -> Text:
    return Text(printable(text), style=style, no_wrap=True, overflow="ellipsis")


def _table(waits: "list[pb.Wait]", width: int) -> Table:
    names = [_container(wait) for wait in waits]
    files = [_file(wait) for wait in waits]
    wide, narrow = width >= WIDE, width < NARROW
    columns = {"WAITS": 7, "CONTAINER": _widest([*names, "CONTAINER"], 40 if wide else 15)}
    columns["PID"] = _widest([str(wait.pid) for wait in waits] + ["PID"], 7)
    if not narrow:
        columns["PROCESS"] = _widest([wait.process for wait in waits] + ["PROCESS"], 15 if wide else 10)
    columns |= {"FOR": 4, "FILE": 0}
    if not narrow:
        columns["LAYER"] = 12
    if wide:
        columns["IMAGE"] = _widest([wait.image for wait in waits] + ["IMAGE"], width // 4)
    left = width - sum(columns.values()) - len(columns) + 1
    columns["FILE"] = _widest([*files, "FILE"], max(LEAST_FILE, left))
    columns["CONTAINER"] = _widest([*names, "CONTAINER"], columns["CONTAINER"] + max(0, left - columns["FILE"]))
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    for title, size in columns.items():
        table.add_column(title, width=size, no_wrap=True, justify="right" if title in ("WAITS", "PID") else "left")
    for wait, name, file in zip(waits, names, files, strict=True):
        row = {
            "WAITS": _seconds(wait.waited_ns),
            "CONTAINER": name,
            "PID": str(wait.pid),
            "PROCESS": printable(wait.process),
            "FOR": "open" if show.plain(wait)["kind"] == "lookup" else "read",
            "FILE": file,
            "LAYER": show.short(wait.layer),
            "IMAGE": printable(wait.image),
        }
        table.add_row(*(Text(_end_of(row[title], size)) for title, size in columns.items()))
    return table


def _widest(texts: list[str], most: int) -> int:
    return min(max(map(cell_len, texts)), most)


def _container(wait: "pb.Wait") -> str:
    """How people call a container: as Kubernetes does, else its id, cut short if it is a digest's length."""
    if wait.container_name:
        return printable(wait.container_name)
    return show.brief(printable(wait.container)) or "-"


def _file(wait: "pb.Wait") -> str:
    return printable(wait.path) + ("" if wait.path_seen else " (or equal file)")


def _end_of(text: str, width: int) -> str:
    """Return the end of a text that is too long, which tells more than its beginning."""
    if cell_len(text) <= width:
        return text
    while text and cell_len(text) >= width:
        text = text[1:]
    return f"…{text}"
