"""The node's clock: certificates and tokens are good for a while only, by whoever's clock looks at them."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import snapshotter
from snapshotter.doctor.examination import Once
from snapshotter.doctor.findings import Answer, Check, Group, fault, note, ok, warning
from snapshotter.doctor.reach import Knock
from snapshotter.doctor.subject import Subject
from snapshotter.errors import SnapshotterError

SKEW_MAX_S: Final = 60.0
"""Token servers commonly let a clock be wrong by so much."""
DAY_S: Final = 86400.0
SET_IT: Final = "set it: timedatectl set-ntp true, or start chrony"


def checks(subject: Subject) -> list[Check]:
    """The check that needs no network."""
    return [Check(Group.CLOCK, "clock", lambda: _since_built(subject))]


def check_against(host: str, knocked: Once[Knock], subject: Subject) -> Check:
    """The comparison with the clock of the registry `host`."""
    return Check(Group.CLOCK, "skew", lambda: _against(host, knocked, subject))


def _since_built(subject: Subject) -> Iterator[Answer]:
    now = subject.machine.now()
    built = Path(snapshotter.__file__).stat().st_mtime
    said = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    if now < built - DAY_S:
        made = time.strftime("%Y-%m-%d", time.gmtime(built))
        yield fault(f"it is {said} here, before this program was made ({made}): no certificate is valid yet", SET_IT)
    else:
        yield ok(said)


def _against(host: str, knocked: Once[Knock], subject: Subject) -> Iterator[Answer]:
    try:
        answer = knocked.get()
    except SnapshotterError:
        yield note(f"{host} does not answer: its clock is not known")
        return
    if answer.date is None:
        yield note(f"{host} does not say what time it is")
        return
    skew_s = subject.machine.now() - answer.date
    if abs(skew_s) > SKEW_MAX_S:
        which = "ahead of" if skew_s > 0 else "behind"
        yield warning(
            f"this node's clock is {abs(skew_s):.0f} s {which} that of {host}: tokens and certificates may be refused",
            SET_IT,
        )
    else:
        yield ok(f"{abs(skew_s):.0f} s between this node and {host}")
