"""What is left of a container that containerd lost sight of."""

import subprocess
import uuid
from pathlib import Path

from snapshotter.image.optimize.remnants import clear_remnants, roots_in

MOUNTINFO = rb"""
30 1 8:1 / / rw - ext4 /dev/root rw
31 30 0:50 / /run/containerd/io.containerd.runtime.v2.task/ns/name/rootfs rw,relatime - overlay overlay rw,lowerdir=/a
32 30 0:51 / /with\040blank/ns/name/rootfs rw shared:5 - overlay overlay rw
33 30 0:52 / /run/ns/name/rootfs/below rw - tmpfs tmpfs rw
34 30 0:53 / /run/ns/other-name/rootfs rw - overlay overlay rw
35 30 0:54 / /run/other/name/rootfs rw - overlay overlay rw

broken
"""


def test_roots_are_found_by_namespace_and_name() -> None:
    assert roots_in(MOUNTINFO, "ns", "name") == [
        b"/run/containerd/io.containerd.runtime.v2.task/ns/name/rootfs",
        b"/with blank/ns/name/rootfs",
    ]


def test_root_of_that_name_is_unmounted_and_no_other(tmp_path: Path) -> None:
    name, other = f"sample-{uuid.uuid4()}", f"sample-{uuid.uuid4()}"
    places = [tmp_path / "state" / "ns" / one / "rootfs" for one in (name, other)]
    try:
        for place in places:
            place.mkdir(parents=True)
            subprocess.run(["mount", "-t", "tmpfs", "none", place], check=True)
        clear_remnants("ns", name)
        assert [place.is_mount() for place in places] == [False, True]
    finally:
        for place in places:
            subprocess.run(["umount", place], check=False, stderr=subprocess.DEVNULL)


def test_nothing_that_is_there_is_no_error() -> None:
    clear_remnants("no-such-namespace", f"sample-{uuid.uuid4()}")
