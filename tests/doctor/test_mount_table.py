from pathlib import Path

import pytest

from snapshotter.doctor.mount_table import existing, place_of
from tests.doctor.world import World


def table(world: World, *lines: str) -> Path:
    return world.write("table", "".join(f"{line}\n" for line in lines))


@pytest.mark.parametrize(
    ("fields", "propagation"),
    [("shared:3 ", "shared"), ("shared:3 master:1 ", "shared and slave"), ("master:1 ", "slave"), ("", "private")],
)
def test_the_place_is_the_deepest_mount_and_the_last_of_a_stack(world: World, fields: str, propagation: str) -> None:
    path = table(
        world,
        "1 0 8:1 / / rw shared:1 - ext4 /dev/sda rw",
        f"2 1 8:2 / {world.top} rw - xfs /dev/sdb rw",
        f"3 2 8:3 / {world.top} rw {fields}- btrfs /dev/sdc rw",
        f"4 2 8:4 / {world.top}x rw - nfs4 server:/ rw",
    )
    place = place_of(world.root, path)
    assert place is not None
    assert (place.mount.fs_type, place.propagation) == ("btrfs", propagation)


@pytest.mark.parametrize(("fs_type", "remote"), [("nfs4", True), ("fuse.sshfs", True), ("ceph", True), ("xfs", False)])
def test_network_file_systems_are_known(world: World, fs_type: str, remote: bool) -> None:
    place = place_of(world.root, table(world, f"1 0 8:1 / / rw - {fs_type} x rw"))
    assert place is not None
    assert place.is_remote is remote


def test_what_does_not_exist_is_looked_for_above(world: World) -> None:
    assert existing(world.root / "a/b/c") == world.root
