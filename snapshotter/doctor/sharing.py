"""Whether containerd sees what our daemon mounts: mount namespaces and propagation."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from snapshotter.api import control_pb2 as pb
from snapshotter.doctor.examination import Once
from snapshotter.doctor.findings import Answer, Check, Group, fault, note, ok, skipped, warning
from snapshotter.doctor.mount_table import place_of
from snapshotter.doctor.subject import Listener, Subject, who_listens
from snapshotter.errors import SnapshotterError
from snapshotter.plane.fuse.kernel import FS_TYPE
from snapshotter.plane.mounts import mounts_on

FEW_FILES: Final = 65536
"""Fewer descriptors than this may end while many large files grow at once."""

_LOOK_AT_UNITS: Final = (
    "take PrivateMounts, PrivateTmp, Protect… and the like out of both units; in containers, share the run "
    "directory with mount propagation rshared"
)


def checks(subject: Subject, status: Once[pb.StatusResponse], containerd_pid: Callable[[], int | None]) -> list[Check]:
    """Checks of what the daemon, if there is one, and containerd see of each other."""
    sharing = _Sharing(subject, status, containerd_pid)
    return [
        Check(Group.KERNEL, "mounts seen", sharing.namespaces),
        Check(Group.KERNEL, "propagation", sharing.propagation),
        Check(Group.KERNEL, "open files", sharing.open_files),
    ]


class _Sharing:
    def __init__(
        self, subject: Subject, status: Once[pb.StatusResponse], containerd_pid: Callable[[], int | None]
    ) -> None:
        self._subject = subject
        self._proc = subject.machine.proc
        self._status = status
        self._containerd_pid = containerd_pid

    def namespaces(self) -> Iterator[Answer]:
        pid = self._pid_of_containerd()
        if pid is None:
            yield skipped("the process of containerd is not known")
            return
        theirs = os.readlink(self._proc / str(pid) / "ns/mnt")
        daemon = self._daemon()
        if daemon is None:
            yield self._without_daemon(theirs)
            return
        ours = os.readlink(self._proc / str(daemon.pid) / "ns/mnt")
        if ours == theirs:
            yield ok("the daemon and containerd share their mount namespace")
        elif self._is_seen(daemon, pid):
            yield ok("containerd has a mount namespace of its own, into which the daemon's mounts go on")
        else:
            yield fault(
                f"containerd (pid {pid}) does not see what the daemon (pid {daemon.pid}) mounts: their mount namespaces "
                "differ, so containers would find empty layers",
                _LOOK_AT_UNITS,
            )

    def _without_daemon(self, theirs: str) -> Answer:
        if os.readlink(self._proc / "self/ns/mnt") == theirs:
            return ok("containerd is in the mount namespace of this shell")
        return note(
            "containerd is in another mount namespace than this shell",
            "start the daemon where containerd sees its mounts",
        )

    def _is_seen(self, daemon: pb.StatusResponse, pid: int) -> bool:
        point = Path(daemon.mountpoint)
        own = {
            one.device for one in mounts_on(point, self._proc / str(daemon.pid) / "mountinfo") if one.fs_type == FS_TYPE
        }
        seen = {one.device for one in mounts_on(point, self._proc / str(pid) / "mountinfo")}
        return bool(own & seen)

    def propagation(self) -> Iterator[Answer]:
        run_dir = self._subject.config.run_dir
        place = place_of(run_dir, self._subject.machine.own_mounts)
        if place is None:
            yield skipped(f"the table of mounts has none for {run_dir}")
            return
        where = os.fsdecode(place.mount.mount_point)
        if "shared" in place.propagation:
            yield ok(f"{run_dir} lies on {where}, which is {place.propagation}")
        else:
            yield note(
                f"{run_dir} lies on {where}, which is {place.propagation}: enough where containerd shares this mount "
                "namespace, too little for one in another",
            )

    def open_files(self) -> Iterator[Answer]:
        daemon = self._daemon()
        if daemon is None:
            yield skipped("no daemon answers")
            return
        limits = (self._proc / str(daemon.pid) / "limits").read_text().splitlines()
        hard = next((line.split()[4] for line in limits if line.startswith("Max open files")), "unlimited")
        if hard != "unlimited" and int(hard) < FEW_FILES:
            yield warning(
                f"the daemon may open {hard} files at once, which may end while large files are fetched",
                "set LimitNOFILE=1048576 in the unit, and restart it",
            )
        else:
            yield ok(f"the daemon may open {hard} at once")

    def _daemon(self) -> pb.StatusResponse | None:
        if who_listens(self._subject.address) is not Listener.SOMEBODY:
            return None
        try:
            return self._status.get()
        except SnapshotterError:
            return None

    def _pid_of_containerd(self) -> int | None:
        try:
            return self._containerd_pid()
        except SnapshotterError:
            return None
