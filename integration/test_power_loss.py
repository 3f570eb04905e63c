"""The power goes at moments that nobody chose: after the next boot nothing unverified can be read, and nothing told is lost.

The daemon's root lies on a disk with a volatile cache. Its file is cloned at random moments, without any sync, while images
come and go and containers read; what a clone holds is what a power loss would have left. See power_loss/volatile_disk.py
for what becomes of writes that no flush covered, and power_loss/tearing.py for what is torn besides.
"""

import random
from collections import Counter

import pytest

from integration.harness.registry import Registry
from integration.power_loss.disks import FileSystem, reflinks_missing
from integration.power_loss.images import push
from integration.power_loss.losing import Result, lose_power

IMAGES = 6
MOMENTS = 4
MOMENTS_LONG = 14
# The metadata of a file may be on the disk long before its bytes.
HARSH = FileSystem("ext4", "data=writeback,commit=300")
SYSTEMS = (FileSystem("ext4"), HARSH, FileSystem("xfs"), FileSystem("btrfs"))


@pytest.fixture(scope="module")
def power_images(registry: Registry) -> int:
    """So many images power:0 and so on."""
    with registry.client() as client:
        push(client, IMAGES)
    return IMAGES


def survived(
    registry: Registry, images: int, system: FileSystem, moments: int, planes: tuple[str, ...]
) -> list[Result]:
    """Results of power losses on one file system, all without a fault."""
    for reason in (reflinks_missing(), system.missing()):
        if reason:
            pytest.skip(reason)
    seed = random.SystemRandom().getrandbits(32)
    print(f"{system.kind} {system.options}, seed {seed}")
    results = lose_power(registry, images, system, moments, seed=seed, planes=planes)
    for result in results:
        print(f"  keep {result.loss.cut.keep}, {result.loss.writes}: {dict(result.counts)}")
        for fault in result.faults:
            print(f"    {fault}")
        print(result.log, end="")
    assert [fault for result in results for fault in result.faults] == []
    return results


def test_nothing_unverified_is_read_and_no_snapshot_is_lost(registry: Registry, power_images: int, erofs: str) -> None:
    results = survived(registry, power_images, HARSH, MOMENTS, (erofs, erofs, "fuse"))
    assert len(results) == MOMENTS


@pytest.mark.long
@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: f"{system.kind}-{system.options or 'usual'}")
def test_every_file_system_at_many_moments(
    registry: Registry, power_images: int, erofs: str, system: FileSystem
) -> None:
    results = survived(registry, power_images, system, MOMENTS_LONG, (erofs, erofs, "fuse"))
    seen: Counter[str] = sum((result.counts for result in results), Counter())
    assert all(seen[what] for what in ("snapshots", "objects", "chunks", "unproven", "read", "unreadable while away"))
