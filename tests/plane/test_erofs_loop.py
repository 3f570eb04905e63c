"""Loop devices: read-only, gone with their last user, and found while others look for one."""

import errno
import fcntl
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from integration.harness.leftovers import loop_devices_of
from snapshotter.plane.erofs.backing import Backing
from snapshotter.plane.erofs.loop import loop_device
from snapshotter.plane.erofs.mounting import ErofsMounts
from tests.plane.conftest import Place


def open_files() -> list[str]:
    """What this process's descriptors point to."""
    links: list[str] = []
    for descriptor in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            links.append(os.readlink(f"/proc/self/fd/{descriptor}"))
    return links


def test_a_loop_device_that_nobody_mounted_is_gone_at_once(loop_place: Place) -> None:
    with loop_device(loop_place.image("a")) as device:
        assert loop_devices_of(loop_place.folder) == [device]
        assert Path("/sys/block", Path(device).name, "ro").read_text() == "1\n"
        # Autoclear comes with the configuration, not after it.
        assert Path("/sys/block", Path(device).name, "loop/autoclear").read_text() == "1\n"
    loop_place.wait_for_loop_devices_to_go()


def test_who_comes_second_to_a_free_device_takes_the_next(loop_place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which device is free is another process's answer as well: it may be configured before us."""
    real, refusals = fcntl.ioctl, [errno.EBUSY, errno.ENXIO]

    def ioctl(fd: int, request: int, argument: bytes = b"") -> object:
        if argument and refusals:
            raise OSError(refusals.pop(), "taken")
        return real(fd, request, argument) if argument else real(fd, request)

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    with loop_device(loop_place.image("a")) as device:
        assert loop_devices_of(loop_place.folder) == [device]
    assert refusals == []


def test_where_every_device_is_taken_it_says_so(loop_place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    real = fcntl.ioctl

    def ioctl(fd: int, request: int, argument: bytes = b"") -> object:
        if argument:
            raise OSError(errno.EBUSY, "taken")
        return real(fd, request)

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    image = loop_place.image("a")
    with pytest.raises(OSError, match=r"busy.*/dev/loop-control"), loop_device(image):
        pass
    # Other descriptors of the process come and go: those of collected objects of earlier tests, for instance.
    assert [link for link in open_files() if link == str(image) or link.startswith("/dev/loop")] == []


def test_many_at_once_find_one_each(loop_place: Place) -> None:
    image = loop_place.image("a")
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            each = [ErofsMounts(loop_place.folder / f"e{number}", Backing.LOOP) for number in range(8)]
            points = list(pool.map(lambda one: one.ensure(1, image), each))
            assert [os.listdir(point) for point in points] == [["a"]] * len(each)
            list(pool.map(ErofsMounts.drop_all, each))
