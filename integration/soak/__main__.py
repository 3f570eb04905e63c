"""`make soak`: containers read for a set time while registry and daemon fail, and every byte is compared with the truth.

It ends with 1 if anything was wrong, is left over, or (after ten minutes and more) has grown.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from integration.harness.node import running_registry
from integration.harness.scratch import termination_unwinds
from integration.soak.plan import KINDS, Plan
from integration.soak.report import complaints, summary, table
from integration.soak.scenario import soak

INTERRUPTED = 130


def main(argv: Sequence[str]) -> int:
    """Soak and print; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m integration.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=1800.0, help="how long (1800)")
    parser.add_argument("--seed", type=int, default=1, help="of everything that is left to chance (1)")
    parser.add_argument("--slots", type=int, default=2, help="containers of a node at a time (2)")
    parser.add_argument("--samples", type=Path, help="a file for all that was seen, as JSON")
    parser.add_argument("nodes", nargs="*", metavar="NODE", help=f"one of: {', '.join(KINDS)}; all of them")
    options = parser.parse_args(argv)
    kinds = tuple(options.nodes) or tuple(KINDS)
    if unknown := [name for name in kinds if name not in KINDS]:
        parser.error(f"no node is called {unknown[0]!r}; there are {', '.join(KINDS)}")
    plan = Plan(options.seconds, options.seed, kinds, slots=options.slots)
    try:
        with termination_unwinds(), running_registry() as registry:
            findings = soak(registry, plan)
    except KeyboardInterrupt:
        return INTERRUPTED
    if options.samples:
        options.samples.write_text(json.dumps({name: seen.rows() for name, seen in findings.watchers.items()}))
    console = Console(width=140)
    console.print(table(findings))
    console.print("\n".join(summary(findings)), highlight=False, markup=False)
    wrong = complaints(findings)
    for line in wrong:
        console.print(f"WRONG: {line}", highlight=False, markup=False)
    console.print(f"{plan.seconds:.0f} s with seed {plan.seed}: {len(wrong)} complaints", highlight=False)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
