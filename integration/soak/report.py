"""What a soak has come to: faults, what is left, and whether what daemon and keeper hold is flat."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

from rich.table import Table

from integration.soak.plan import KINDS
from integration.soak.scenario import QUOTA, Findings
from integration.soak.watcher import Sample

WITHIN = 0.05
GRAIN = {"RSS, MB": 1.0, "other descriptors": 1.0, "keeper: descriptors": 1.0, "threads": 1.0}
"""What is judged, and by how much a mean may grow whatever its size: one buffer more, one connection more.

It becomes less where fewer images happened to be there at a time.

Files of the cache that are open are not: their number is bounded, and below that follows the number of cached files, which is
as many as fit at that time.
"""

SETTLES_S = 600.0
"""In a shorter run the middle third is still warming up: nothing is judged by it."""

SAME_AGE_S = (3.0, 10.0)
"""Daemons that are killed are compared at this age."""


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of one node: means of the middle and the last third, and the most ever. `flat`: None if not judged."""

    node: str
    what: str
    middle: float
    last: float
    most: float
    flat: bool | None


def rows(findings: Findings) -> Iterator[Row]:
    """Every figure of every node that was seen often enough."""
    seconds = findings.plan.seconds
    for node, watcher in findings.watchers.items():
        samples = watcher.samples
        if KINDS[node].killed:
            youngest, oldest = SAME_AGE_S
            samples = [one for one in samples if youngest <= one.age_s <= oldest]
        middle, last = (_between(samples, seconds * n / 3, seconds * (n + 1) / 3) for n in (1, 2))
        if not middle or not last:
            continue
        for what in last[-1].figures:
            before, after = (fmean(one.figures[what] for one in third) for third in (middle, last))
            most = max(one.figures[what] for one in samples)
            yield Row(node, what, before, after, most, _flat(what, before, after) if seconds >= SETTLES_S else None)


def _between(samples: Sequence[Sample], begin: float, end: float) -> list[Sample]:
    return [one for one in samples if begin <= one.at < end]


def _flat(what: str, middle: float, last: float) -> bool | None:
    grain = next((grain for word, grain in GRAIN.items() if what.endswith(word)), None)
    return None if grain is None else last - middle <= max(WITHIN * middle, grain)


def complaints(findings: Findings) -> list[str]:
    """Everything that should not be, a line each; none if all is well."""
    wrong = [*findings.ledger.faults]
    wrong += [f"{node}: {line}" for node, lines in findings.left.items() for line in lines]
    for row in rows(findings):
        if row.flat is False:
            wrong.append(f"{row.node}: {row.what}: {row.middle:.1f} in the middle third, {row.last:.1f} in the last")
    return wrong


def table(findings: Findings) -> Table:
    """All figures for people."""
    made = Table("node", "what", "middle third", "last third", "change", "most", "flat")
    for row in rows(findings):
        change = f"{row.last / row.middle - 1:+.1%}" if row.middle else ""
        verdict = {True: "[green]yes[/]", False: "[red]no[/]", None: ""}[row.flat]
        made.add_row(row.node, row.what, f"{row.middle:.1f}", f"{row.last:.1f}", change, f"{row.most:.1f}", verdict)
    return made


def summary(findings: Findings) -> list[str]:
    """What happened, a line each."""
    counts = findings.ledger.counts
    lines = [f"{number:>14,}  {what}" for what, number in sorted(counts.items()) if not what.startswith("refused")]
    lines += [f"{findings.outages:>14,}  outages", f"{findings.failed_requests:>14,}  requests that failed on purpose"]
    lines += [f"{value:>14.2f}  {what}" for what, value in sorted(findings.ledger.worsts.items())]
    lines += [f"{QUOTA / 1e6:>14.1f}  quota of the cache, MB"]
    return lines + [f"{number:>14,}  {what}" for what, number in sorted(counts.items()) if what.startswith("refused")]
