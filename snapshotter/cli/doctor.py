"""`snapshotter doctor`: the node, from kernel to registry, and what to do about what is found."""

# ruff: noqa: PLC0415 (imported where it is needed: no other command waits for gRPC)

import os
import sys
import textwrap
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from snapshotter.cli import show
from snapshotter.cli.connection import daemon
from snapshotter.cli.options import AbsolutePath, daemon_options
from snapshotter.cli.printing import printable
from snapshotter.config import Config, load
from snapshotter.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from snapshotter.api import control_pb2 as pb
    from snapshotter.doctor.findings import Finding

NAME_WIDTH = 17
WIDEST = 120
DO_INDENT = " " * 6
MARKS = {"ok": "✓", "note": "·", "warning": "!", "fault": "✗", "skipped": "–"}
PLAIN_MARKS = {"ok": "+", "note": ".", "warning": "!", "fault": "x", "skipped": "-"}
MEANINGS = """\b
Marks, and what they are on a terminal that has them not:
  ✓ +  as it should be
  · .  worth knowing
  ! !  it works, but not well; counts with --strict
  ✗ x  must be mended
  – -  not looked at
"""
STYLES = {"ok": "green", "note": "", "warning": "yellow", "fault": "bold red", "skipped": "dim"}


@click.command(epilog=MEANINGS)
@click.option(
    "--image",
    "images",
    multiple=True,
    metavar="REF",
    help="Image whose registry is asked: reachability, credentials, ranges. Repeatable; otherwise three of the daemon's.",
)
@click.option(
    "--containerd",
    "containerd",
    type=AbsolutePath(),
    metavar="SOCKET",
    help="containerd's socket; otherwise the configured one, or where distributions put it.",
)
@click.option("--strict", is_flag=True, help="Warnings count as well for the exit code.")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0.1),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="How long each check may take.",
)
@daemon_options
def doctor(
    *,
    config_path: Path | None,
    address: Path | None,
    containerd: Path | None,
    images: tuple[str, ...],
    strict: bool,
    timeout_s: float,
    as_json: bool,
) -> int:
    """Check the node from kernel to registry, and say what to do.

    Nothing stays changed. Without a daemon both planes are tried in directories of their own; beside a daemon that runs, it is
    asked. Works for every user; what takes root is skipped without.

    Exit code 0 if nothing must be mended, 4 otherwise.
    """
    from snapshotter.doctor.findings import exit_code
    from snapshotter.doctor.subject import Subject
    from snapshotter.doctor.whole import examination

    config, config_fault = Config(), ""
    try:
        config = load(config_path)
    except ConfigError as error:
        config_fault = str(error)
    socket = address or config.socket
    subject = Subject(
        config=config,
        config_path=config_path,
        config_fault=config_fault,
        address=socket,
        containerd=containerd or _if_there(config.containerd.address),
        images=images,
        timeout_s=timeout_s,
        daemon=_Daemon(socket, timeout_s),
        uid=os.geteuid(),
    )
    findings = examination(subject)
    seen = _as_json(findings) if as_json else _for_people(findings)
    return exit_code(seen, strict=strict)


class _Daemon:
    """Our daemon, as the examination asks it."""

    def __init__(self, socket: Path, timeout_s: float) -> None:
        self._socket = socket
        # It gives up before the check is given up, so that its own words are shown.
        self._timeout_s = timeout_s * 0.8

    def status(self) -> "pb.StatusResponse":
        """How it is."""
        with daemon(None, self._socket) as stub:
            from snapshotter.api import control_pb2 as pb

            answer: pb.StatusResponse = stub.Status(pb.StatusRequest(), timeout=self._timeout_s)
            return answer

    def images(self, most: int) -> list[str]:
        """The first images that have layers of it."""
        with daemon(None, self._socket) as stub:
            from snapshotter.api import control_pb2 as pb

            names: dict[str, None] = {}
            answer = stub.Layers(pb.LayersRequest(), timeout=self._timeout_s)
            for message in answer:
                names.update(dict.fromkeys(layer.image for layer in message.layers if layer.image))
                if len(names) >= most:
                    answer.cancel()
                    break
            return list(names)[:most]


def _if_there(address: Path) -> Path | None:
    try:
        return address if address.exists() else None
    except OSError:
        return address


def _as_json(findings: "Iterable[Finding]") -> "list[Finding]":
    seen = list(findings)
    rows = [
        {
            "group": str(one.group),
            "about": one.about,
            "name": one.name,
            "status": str(one.verdict),
            "found": one.found,
            "do": one.advice,
        }
        for one in seen
    ]
    counts = Counter(str(one.verdict) for one in seen)
    show.print_json({"findings": rows, "summary": {verdict: counts[verdict] for verdict in MARKS}})
    return seen


def _for_people(findings: "Iterable[Finding]") -> "list[Finding]":
    """Print each finding as it comes, below the name of its group."""
    console = show.console()
    marks = MARKS if _can_show("".join(MARKS.values())) else PLAIN_MARKS
    seen: list[Finding] = []
    place = ("", "")
    for one in findings:
        if (one.group, one.about) != place:
            if one.group != place[0]:
                console.print(("\n" if seen else "") + one.group.capitalize(), style="bold")
            if one.about:
                console.print(show.cell(f"  {one.about}"))
            place = (one.group, one.about)
        _print(console, marks[one.verdict], one)
        seen.append(one)
    console.print()
    console.print(_summary(seen))
    return seen


def _can_show(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def _print(console: "Console", mark: str, finding: "Finding") -> None:
    from rich.text import Text

    width = min(console.width, WIDEST) if console.width != show.UNBOUNDED_WIDTH else show.UNBOUNDED_WIDTH
    indent = " " * (NAME_WIDTH + 5)
    name = printable(finding.name)
    head = f"  {mark} {name:<{NAME_WIDTH}} "
    style = STYLES[finding.verdict]
    first = indent
    if len(name) > NAME_WIDTH:
        console.print(Text(head.rstrip(), style=style))
    else:
        first = head
    for number, line in enumerate(_wrapped(show.brief(finding.found), first, indent, width)):
        text = Text(line)
        if number == 0 and first is head:
            text.stylize(style, 0, len(head))
        console.print(text)
    if finding.advice:
        # Far to the left: paths and commands in it are to be copied, and should not be broken.
        for line in _wrapped(finding.advice, f"{DO_INDENT}do: ", f"{DO_INDENT}    ", width):
            console.print(Text(line, style="bold"))


def _wrapped(text: str, first: str, later: str, width: int) -> list[str]:
    clean = printable(" ".join(text.split()))
    lines = textwrap.wrap(clean, width, initial_indent=first, subsequent_indent=later, break_on_hyphens=False)
    return [line.rstrip() for line in lines]


def _summary(findings: "list[Finding]") -> str:
    counts = Counter(str(one.verdict) for one in findings)
    faults, warnings = counts["fault"], counts["warning"]
    words = [
        f"{faults} to be mended" if faults else "nothing to be mended",
        f"{warnings} warning{'s' * (warnings != 1)}" if warnings else "no warnings",
        f"{counts['ok']} in order",
        f"{counts['note']} to know",
        f"{counts['skipped']} not looked at",
    ]
    return ", ".join(words)
