"""`snapshotter status`: how the daemon is."""

# ruff: noqa: PLC0415 (imported where it is needed: no other command waits for gRPC)

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from snapshotter.cli import show
from snapshotter.cli.connection import daemon
from snapshotter.cli.options import daemon_options, timeout_option

if TYPE_CHECKING:
    from snapshotter.api import control_pb2 as pb

KINDS_SHOWN = 4


@click.command()
@timeout_option
@daemon_options
def status(*, config_path: Path | None, address: Path | None, timeout_s: float, as_json: bool) -> None:
    """Show how the daemon is: its plane, what it serves, what it fetched, and what needs a look."""
    with daemon(config_path, address) as stub:
        from snapshotter.api import control_pb2 as pb

        answer = stub.Status(pb.StatusRequest(), timeout=timeout_s)
    if as_json:
        show.print_json(show.plain(answer))
        return
    console = show.console()
    table = show.table("", "")
    table.show_header = False
    for name, text in _lines(answer):
        table.add_row(show.cell(name, "bold"), show.cell(text))
    show.emit(table)
    for problem in answer.problems:
        console.print(show.cell(f"! {problem}", "yellow"))


def _lines(answer: "pb.StatusResponse") -> list[tuple[str, str]]:
    size = show.human
    limit = f"of {size(answer.cache_quota)}" if answer.cache_quota else "without a quota"
    lines = [
        ("daemon", f"{answer.version}, pid {answer.pid}, up {show.ago(answer.started_at_ns, time.time_ns())}"),
        ("plane", f"{answer.plane}: {answer.plane_reason}"),
        ("socket", answer.address),
        ("root", answer.root),
        ("mount", f"{answer.mountpoint} ({_history(answer)})"),
        ("snapshots", str(answer.snapshots)),
        ("lazy layers", str(answer.layers_lazy) + (f", {answer.layers_failed} failed" if answer.layers_failed else "")),
        (
            "fetched",
            ", ".join(
                f"{size(fetched)} {why}"
                for fetched, why in (
                    (answer.fetched_demand, "on demand"),
                    (answer.fetched_prefetch, "prefetched"),
                    (answer.fetched_background, "in background"),
                )
            ),
        ),
        ("FUSE requests", _requests(dict(answer.fuse_requests))),
        ("cache", f"{size(answer.cache_used)} {limit}, {size(answer.cache_free)} free"),
    ]
    if answer.read_errors or answer.integrity_failures:
        lines.append(("errors", f"{answer.read_errors} reads, {answer.integrity_failures} wrong digests"))
    return lines


def _history(answer: "pb.StatusResponse") -> str:
    """How the FUSE connection came to this daemon, and who would keep it if it ended."""
    taken = {0: "mounted by this daemon", 1: "taken over once"}.get(
        answer.take_overs, f"taken over {answer.take_overs} times"
    )
    return f"session {answer.session}, {taken}, keeper {answer.keeper_pid or 'missing'}"


def _requests(counts: dict[str, int]) -> str:
    """The total, and the kinds that came most often."""
    most = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:KINDS_SHOWN]
    kinds = ", ".join(f"{count} {kind}" for kind, count in most)
    return f"{sum(counts.values())}" + (f" ({kinds})" if kinds else "")
