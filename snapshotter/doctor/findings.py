"""What an examination says: one finding a line, each with what to do about it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from snapshotter.errors import SnapshotterError

MUST_BE_MENDED: Final = 4
"""Exit code of `snapshotter doctor` where something must be mended; `cli/main.py` lists it."""


class Verdict(StrEnum):
    """How a thing is. Only `FAULT`, and `WARNING` for those who are strict, ask for hands."""

    OK = "ok"
    NOTE = "note"
    """As it may be, and worth knowing."""
    WARNING = "warning"
    """It works, but not well, not for long or not for everybody."""
    FAULT = "fault"
    """It must be mended."""
    SKIPPED = "skipped"
    """Not looked at; `found` says why."""


class Group(StrEnum):
    """The parts of a node, in the order in which they build on each other."""

    KERNEL = "kernel"
    INSTALLATION = "installation"
    CONTAINERD = "containerd"
    CLOCK = "clock"
    REGISTRY = "registry"


@dataclass(frozen=True, slots=True)
class Answer:
    """What one look at a thing gave. `name` is empty where the check's own will do; `advice` is empty if nothing is to do."""

    verdict: Verdict
    found: str
    advice: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True)
class Finding:
    """An answer with its place in the examination; `about` is the image or host that it concerns, or empty."""

    group: Group
    about: str
    name: str
    verdict: Verdict
    found: str
    advice: str


@dataclass(frozen=True, slots=True)
class Check:
    """One look. `look` may block and may raise: whoever carries it out bounds both (`examination.py`)."""

    group: Group
    name: str
    look: Callable[[], Iterable[Answer]]
    about: str = ""


def ok(found: str, *, name: str = "") -> Answer:
    """All is well."""
    return Answer(Verdict.OK, found, name=name)


def note(found: str, advice: str = "", *, name: str = "") -> Answer:
    """Worth knowing."""
    return Answer(Verdict.NOTE, found, advice, name)


def warning(found: str, advice: str, *, name: str = "") -> Answer:
    """Not well; `advice` says what to do."""
    return Answer(Verdict.WARNING, found, advice, name)


def fault(found: str, advice: str, *, name: str = "") -> Answer:
    """To be mended; `advice` says how."""
    return Answer(Verdict.FAULT, found, advice, name)


def skipped(why: str, advice: str = "", *, name: str = "") -> Answer:
    """Not looked at."""
    return Answer(Verdict.SKIPPED, why, advice, name)


def of_error(error: SnapshotterError, advice: str, verdict: Verdict = Verdict.FAULT, *, name: str = "") -> Answer:
    """An error of ours as an answer: what it says behind its last semicolon is what to do, else `advice` is."""
    found, _, own = str(error).rpartition("; ")
    return Answer(verdict, found or own, own if found else advice, name)


def exit_code(findings: Iterable[Finding], *, strict: bool) -> int:
    """0, or `MUST_BE_MENDED` if there is a fault (for the `strict`: or a warning)."""
    bad = {Verdict.FAULT, Verdict.WARNING} if strict else {Verdict.FAULT}
    return MUST_BE_MENDED if any(finding.verdict in bad for finding in findings) else 0
