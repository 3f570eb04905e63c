"""`make bench`: the figures, each a ratio or a bound measured in one run on this machine; name some to run only those.

It prints and judges; it fails only when something cannot be measured.
"""

import argparse
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from integration.bench import asking, converting, large, optimizing, pulling, reading, sharing, starting, taking_over
from integration.bench.figure import Figure
from integration.harness.node import running_registry
from integration.harness.scratch import termination_unwinds

FIGURES = {
    "listing": reading.listing,
    "opening": reading.opening,
    "once": reading.once,
    "sequential": reading.sequential,
    "next-container": starting.next_container,
    "next-container-cold": starting.next_container_cold,
    "walking": asking.walking,
    "fetching": asking.fetching,
    "copies": sharing.copies,
    "processor": asking.processor,
    "update": sharing.update,
    "cold-start": starting.cold_start,
    "round-trips": pulling.round_trips,
    "pause": taking_over.pause,
    "pause-standby": taking_over.pause_with_standby,
    "restart": taking_over.restart,
    "entries": large.entries,
    "filling": large.filling,
    "image": large.image,
    "convert": converting.estargz,
    "convert-zstd": converting.zstd_chunked,
    "convert-memory": converting.memory,
    "optimized": optimizing.first_files,
    "fuse-sequential": reading.fuse_sequential,
    "fuse-listing": reading.fuse_listing,
    "fuse-opening": reading.fuse_opening,
    "fuse-entries": large.fuse_entries,
}
INTERRUPTED = 130


def main(argv: Sequence[str]) -> int:
    """Measure and print; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m integration.bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of: {', '.join(FIGURES)}")
    names = parser.parse_args(argv).names or list(FIGURES)
    if unknown := [name for name in names if name not in FIGURES]:
        parser.error(f"no figure is called {unknown[0]!r}; there are {', '.join(FIGURES)}")
    console = Console(stderr=True)
    figures = []
    try:
        with termination_unwinds(), running_registry() as registry:
            for name in names:
                with console.status(f"measuring {name}"):
                    figures.append(FIGURES[name](registry))
                console.print(f"{name}: {figures[-1].measured} (asked {figures[-1].asked})", highlight=False)
    except KeyboardInterrupt:
        return INTERRUPTED
    Console().print(_table(figures))
    return 0


def _table(figures: Sequence[Figure]) -> Table:
    table = Table("what", "asked", "measured", "", "detail")
    for figure in figures:
        verdict = {True: "[green]yes[/]", False: "[red]no[/]", None: ""}[figure.met]
        table.add_row(figure.what, figure.asked, figure.measured, verdict, figure.detail)
    return table


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
