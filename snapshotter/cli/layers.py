"""`snapshotter layers`: every layer, how much of it is here, or why it is not lazy."""

# ruff: noqa: PLC0415 (imported where it is needed: no other command waits for gRPC)

from itertools import groupby
from pathlib import Path

import click

from snapshotter.cli import show
from snapshotter.cli.connection import daemon
from snapshotter.cli.options import daemon_options, timeout_option

STATES = """\b
States:
  lazy      mounted; content comes when it is needed
  complete  mounted, and everything is on this node
  failed    recorded as lazy, but it could not be mounted again
  ordinary  unpacked by containerd; the last column says why
"""

STYLES = {"complete": "green", "failed": "red", "ordinary": "yellow"}


@click.command(epilog=STATES)
@timeout_option
@daemon_options
def layers(*, config_path: Path | None, address: Path | None, timeout_s: float, as_json: bool) -> None:
    """Show every layer of every image: size, how much of it is here, state, and why it is not lazy."""
    with daemon(config_path, address) as stub:
        from snapshotter.api import control_pb2 as pb

        answers = stub.Layers(pb.LayersRequest(), timeout=timeout_s)
        rows = [show.plain(layer) for answer in answers for layer in answer.layers]
    if as_json:
        show.print_json(rows)
        return
    console = show.console()
    if not rows:
        console.print("No image has been pulled through this daemon.")
    for image, of_image in groupby(rows, key=lambda row: row["image"]):
        table = show.table("  LAYER", "SIZE", "HERE", "STATE", "WHY", right=("SIZE", "HERE"))
        for column, width in zip(table.columns, (14, 8, 4, 8), strict=False):
            column.min_width = width  # the tables of several images stand in line
        above = ""
        for row in of_image:
            why = show.brief(": ".join(filter(None, (row["reason"], row["detail"]))))
            table.add_row(
                "  " + show.short(row["digest"]),
                show.human(row["size"]) if row["size"] or row["number"] else "-",
                show.share(row["present"], row["size"]),
                show.cell(row["state"], STYLES.get(row["state"], "")),
                show.cell("as above" if why and why == above else why),
            )
            above = why
        console.print(show.cell(image or "(image unknown)", "bold"))
        show.emit(table)
