"""Which plane runs, from the daemon's mouth; without a daemon, found by trying both in a corner of the real directories."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from snapshotter.api import control_pb2 as pb
from snapshotter.doctor.examination import Once
from snapshotter.doctor.findings import Answer, Check, Group, fault, note, ok, skipped
from snapshotter.doctor.mount_table import existing
from snapshotter.doctor.subject import Listener, Subject, who_listens
from snapshotter.errors import PlaneError, SnapshotterError
from snapshotter.plane.erofs.probing import clear_trial, probe
from snapshotter.plane.fuse.kernel import open_connection
from snapshotter.plane.mounts import detach_all
from snapshotter.plane.probe import choose_plane, read_facts

CORNER: Final = ".doctor-"
"""Beginning of the names of directories in which a trial runs; the number of its process follows.

Nothing of the daemon is in there: a trial holds no lock of it, and on a full disk deletes none of its cache.
"""


def checks(subject: Subject, status: Once[pb.StatusResponse]) -> list[Check]:
    """The check of the planes."""
    return [Check(Group.KERNEL, "plane", lambda: _plane(subject, status))]


def _plane(subject: Subject, status: Once[pb.StatusResponse]) -> Iterator[Answer]:
    listener = who_listens(subject.address)
    if listener is Listener.DENIED:
        yield skipped("the daemon may be asked by root alone", "run this command as root (sudo)")
    elif listener is not Listener.NOBODY:
        try:
            answer = status.get()
        except SnapshotterError as error:
            yield skipped(f"a daemon is there and does not say: {error}")
            return
        yield _told(answer.plane, answer.plane_reason)
    elif subject.uid != 0:
        yield skipped("mounting takes root", "run this command as root (sudo)")
    else:
        yield from _tried(subject)


def _told(plane: str, reason: str) -> Answer:
    text = f"the daemon runs the {plane} plane: {reason}"
    return ok(text) if plane == "erofs" else note(text)


def _tried(subject: Subject) -> Iterator[Answer]:
    config = subject.config
    with _corner(config.root) as root, _corner(config.run_dir) as run_dir:
        answer = _try(subject, root, run_dir)
    # What is said of the corner holds for the directory that the admin knows.
    found = answer.found.replace(str(root), str(config.root)).replace(str(run_dir), str(config.run_dir))
    yield replace(answer, found=found)


def _try(subject: Subject, root: Path, run_dir: Path) -> Answer:
    try:
        _try_fuse(run_dir)
    except PlaneError as error:
        return fault(f"a FUSE mount does not come about: {error}", "without FUSE no plane runs; see /dev/fuse above")
    wanted = subject.config.plane
    try:
        facts = read_facts(subject.machine.proc, Path("/dev/fuse"))
        choice = choose_plane(wanted, facts, lambda: probe(root, run_dir))
    except PlaneError as error:
        return fault(str(error), 'mend it as it says, or set plane to "auto"')
    text = f"tried: the {choice.plane} plane would run: {choice.reason}"
    return ok(text) if choice.plane == "erofs" else note(text)


def _try_fuse(run_dir: Path) -> None:
    """Mount a connection and see the kernel's first message on it.

    Raises:
        PlaneError: the kernel refused.
    """
    point = run_dir / "fuse"
    try:
        os.close(open_connection(point).fd)
    finally:
        detach_all(point)
        with suppress(OSError):
            point.rmdir()


@contextmanager
def _corner(configured: Path) -> Iterator[Path]:
    """A new directory in `configured`, or in what exists above it: the same file system, and nobody else's."""
    above = existing(configured)
    _sweep(above)
    made = Path(tempfile.mkdtemp(prefix=f"{CORNER}{os.getpid()}-", dir=above))
    try:
        yield made
    finally:
        _clear(made)


def _sweep(above: Path) -> None:
    """Take away the corners of trials that were killed."""
    for left in above.glob(f"{CORNER}*"):
        pid = left.name.removeprefix(CORNER).partition("-")[0]
        if pid.isdecimal() and not Path(f"/proc/{pid}").exists():
            _clear(left)


def _clear(corner: Path) -> None:
    with suppress(PlaneError):
        detach_all(corner / "fuse")
    clear_trial(corner, corner)
    for path in (corner / "fuse", corner / "erofs", corner):
        with suppress(OSError):
            path.rmdir()
