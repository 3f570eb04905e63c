"""Metadata images mounted for real: one mount a layer, whoever asks, and nothing of a killed process stays."""

import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from integration.harness.leftovers import loop_devices_of
from snapshotter.errors import FormatError, PlaneError, StoreError
from snapshotter.plane.erofs.backing import Backing
from snapshotter.plane.erofs.mounting import ErofsMounts
from snapshotter.plane.mounts import MS_RDONLY, detach, mount, mounts_on
from tests.plane.conftest import PATIENCE_S, Place

TOP = Path(__file__).parents[2]


# --- ensure


def test_a_layer_has_one_mount_however_often_it_is_asked_for(place: Place) -> None:
    mounts, images = place.mounts(), place.images("a", "b")
    assert mounts.mounted(1) is None
    for _ in range(3):
        for number, image in images.items():
            point = mounts.ensure(number, image)
            assert point == place.directory / str(number) == mounts.mounted(number)
            assert os.listdir(point) == [image.stem]
    assert place.standing() == {b"1": ["erofs"], b"2": ["erofs"]}
    assert mounts.numbers() == {1, 2}


def test_eight_threads_at_once_get_one_mount_a_layer(place: Place) -> None:
    mounts, images = place.mounts(), place.images(*"abcde")
    together = threading.Barrier(8)

    def all_of_them(first: int) -> None:
        together.wait(PATIENCE_S)
        for step in range(len(images)):
            number = (first + step) % len(images) + 1
            assert os.listdir(mounts.ensure(number, images[number])) == [images[number].stem]

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(all_of_them, range(8)))
    assert place.asked == {place.directory / str(number): 1 for number in images}
    assert place.standing() == {b"%d" % number: ["erofs"] for number in images}


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (lambda image: image.write_bytes(image.read_bytes()[:-1]), FormatError),
        (lambda image: image.write_bytes(image.read_bytes()[:-1] + b"x"), FormatError),
        (lambda image: image.write_bytes(b""), FormatError),
        (lambda image: image.unlink(), FormatError),
        (lambda image: (image.unlink(), image.mkdir()), StoreError),
    ],
    ids=["torn", "damaged", "empty", "gone", "unreadable"],
)
def test_a_damaged_image_is_not_given_to_the_kernel(
    place: Place, damage: Callable[[Path], object], error: type[Exception]
) -> None:
    mounts, image = place.mounts(), place.image("a")
    damage(image)
    with pytest.raises(error, match=r"a\.erofs: "):
        mounts.ensure(1, image)
    assert not place.directory.exists()
    assert (mounts.numbers(), place.asked) == (set(), {})


def test_a_refusal_of_the_kernel_is_told_and_leaves_nothing(place: Place) -> None:
    def refuse(source: str, *_: object) -> None:
        raise OSError(errno.ENOTBLK, os.strerror(errno.ENOTBLK))

    mounts = ErofsMounts(place.directory, place.how, refuse)
    with pytest.raises(PlaneError, match=rf"cannot mount {place.image('a')} on .*/e/1: Block device required"):
        mounts.ensure(1, place.image("a"))
    assert os.listdir(place.directory) == []
    assert mounts.mounted(1) is None
    place.wait_for_loop_devices_to_go()


def test_a_layer_unmounted_by_hand_is_mounted_again(place: Place) -> None:
    mounts, image = place.mounts(), place.image("a")
    point = mounts.ensure(1, image)
    detach(point)
    assert mounts.mounted(1) is None
    assert os.listdir(mounts.ensure(1, image)) == ["a"]
    place.put("1")
    assert mounts.mounted(1) is None
    assert os.listdir(mounts.ensure(1, image)) == ["a"]
    assert place.standing() == {b"1": ["erofs"]}


# --- bring_back


def test_the_right_mounts_are_adopted_and_not_mounted_again(place: Place) -> None:
    images = place.images("a", "b", "c")
    first = place.mounts()
    for number in (1, 2):
        first.ensure(number, images[number])
    devices = [os.stat(place.directory / str(number)).st_dev for number in (1, 2)]
    again = place.mounts()
    assert again.bring_back(images) == {1, 2} == again.numbers()
    assert [os.stat(again.ensure(number, images[number])).st_dev for number in (1, 2)] == devices
    assert sum(place.asked.values()) == 2
    assert os.listdir(again.ensure(3, images[3])) == ["c"]


def test_a_root_behind_a_link_is_the_same_root(place: Place) -> None:
    place.image("a")
    (place.folder / "link").symlink_to(place.folder)
    through = ErofsMounts(place.folder / "link/e", place.how)
    through.ensure(1, place.folder / "link/images/a.erofs")
    assert place.mounts().bring_back({1: place.image("a")}) == {1}
    assert through.bring_back({1: place.folder / "link/images/a.erofs"}) == {1}


def test_everything_but_the_wanted_is_cleared_away(place: Place) -> None:
    images = place.images("a", "b", "c", "d", "e", "f")
    place.put("1", image=images[1])  # right
    place.put("2", image=images[1])  # another layer's image
    place.put("3", image=images[3])  # right, with something on it
    place.put("3")
    place.put("4")  # something below what would be right
    place.put("4", image=images[4])
    place.put("5", image=images[5])  # twice
    place.put("5", image=images[5])
    place.put("05", image=images[5])  # no number's name
    place.put("6/in/side")
    place.put("6/in")
    place.put("7", image=images[1])  # nobody's
    (place.directory / "8").mkdir()  # left by a process killed before it mounted
    mounts = place.mounts()
    assert mounts.bring_back(images) == {1, 3, 5}
    assert place.standing() == {b"1": ["erofs"], b"3": ["erofs"], b"5": ["erofs"]}
    # What is no mount point and not empty is nothing of ours: it is named in the log, and stays.
    assert sorted(os.listdir(place.directory)) == ["1", "3", "5", "6"]
    assert {number: os.listdir(mounts.ensure(number, image)) for number, image in images.items()} == {
        number: [image.stem] for number, image in images.items()
    }


def test_mounts_inside_a_wanted_one_go_and_it_stays(place: Place) -> None:
    place.put("1", image=place.image("a"))
    mount("foreign", place.directory / "1/a", "tmpfs", 0, "size=64k")
    (place.directory / "1/a/deeper").mkdir()
    mount("foreign", place.directory / "1/a/deeper", "tmpfs", 0, "size=64k")
    assert place.mounts().bring_back({1: place.image("a")}) == {1}
    assert place.standing() == {b"1": ["erofs"]}


def test_a_part_of_an_image_is_not_the_image(place: Place) -> None:
    place.put("2", image=place.image("a"))
    (place.directory / "1").mkdir()
    bind = 4096  # MS_BIND
    mount(str(place.directory / "2/a"), place.directory / "1", "none", bind, "")
    assert place.mounts().bring_back({1: place.image("a"), 2: place.image("a")}) == {2}


def test_a_loop_device_over_a_file_that_was_written_again_is_not_adopted(loop_place: Place) -> None:
    image = loop_place.image("a")
    loop_place.mounts().ensure(1, image)
    content = image.read_bytes()
    image.unlink()
    image.write_bytes(content)
    assert loop_place.mounts().bring_back({1: image}) == set()
    assert loop_place.standing() == {}


def test_mounts_of_the_other_kind_are_adopted_too(place: Place) -> None:
    place.mounts().ensure(1, place.image("a"))
    (other,) = set(Backing) - {place.how}
    assert ErofsMounts(place.directory, other).bring_back({1: place.image("a")}) == {1}


def test_where_nothing_was_nothing_is_made(place: Place) -> None:
    assert place.mounts().bring_back({}) == set()
    place.mounts().drop_all()
    assert not place.directory.exists()


# --- drop


def test_an_overlay_keeps_a_layer_that_is_dropped(place: Place) -> None:
    mounts = place.mounts()
    points = [mounts.ensure(number, image) for number, image in place.images("a", "b").items()]
    merged = place.folder / "merged"
    merged.mkdir()
    mount("overlay", merged, "overlay", MS_RDONLY, f"lowerdir={points[0]}:{points[1]}")
    mounts.drop(1)
    mounts.drop(2)
    mounts.drop(2)
    for image in place.images("a", "b").values():
        image.unlink()
    assert (place.standing(), os.listdir(place.directory), mounts.numbers()) == ({}, [], set())
    assert sorted(os.listdir(merged)) == ["a", "b"]
    assert [(merged / name / "empty").read_bytes() for name in "ab"] == [b"", b""]
    assert len(loop_devices_of(place.folder)) == (2 if place.how is Backing.LOOP else 0)
    detach(merged)
    place.wait_for_loop_devices_to_go()


def test_loop_devices_go_with_the_mounts(place: Place) -> None:
    mounts = place.mounts()
    for number, image in place.images("a", "b", "c").items():
        mounts.ensure(number, image)
    assert len(loop_devices_of(place.folder)) == (3 if place.how is Backing.LOOP else 0)
    mounts.drop(1)
    mounts.drop_all()
    assert not place.directory.exists()
    assert mounts.numbers() == set()
    place.wait_for_loop_devices_to_go()


def test_a_mount_that_cannot_be_detached_is_told_and_does_not_keep_the_others(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("1", "2", "3"):
        place.put(name)

    def refuse(target: Path) -> None:
        if target.name == "2":
            raise PlaneError(f"cannot unmount {target}: Operation not permitted")
        detach(target)

    with monkeypatch.context() as patch:
        patch.setattr("snapshotter.plane.erofs.mounting.detach", refuse)
        assert place.mounts().bring_back({}) == set()
        assert "e/2: Operation not permitted" in caplog.text
        with pytest.raises(PlaneError, match="e/2: Operation not permitted"):
            place.mounts().drop_all()
    assert place.standing() == {b"2": ["tmpfs"]}
    assert os.listdir(place.directory / "2") == []


def test_what_is_no_mount_and_not_empty_is_left_alone(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    (place.directory / "1/thing").mkdir(parents=True)
    place.mounts().drop_all()
    assert f"cannot remove {place.directory}/1: Directory not empty" in caplog.text


def test_drop_all_needs_no_knowledge_of_what_was_mounted(place: Place) -> None:
    place.put("1", image=place.image("a"))
    place.put("2")
    place.mounts().drop_all()
    assert not place.directory.exists()


# --- a process that is killed

KILLED = """
import os, signal, sys
from pathlib import Path
from snapshotter.plane.erofs.backing import Backing
from snapshotter.plane.erofs.mounting import ErofsMounts
from snapshotter.plane.mounts import call_mount

def step(*mounting):
    if when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    call_mount(*mounting)
    os.kill(os.getpid(), signal.SIGKILL)

directory, how, when, image = sys.argv[1:]
ErofsMounts(Path(directory), Backing(how), step).ensure(1, Path(image))
"""


@pytest.mark.parametrize(("when", "adopted"), [("before", set()), ("after", {1})])
def test_what_a_killed_process_left_is_adopted_or_cleared_away(place: Place, when: str, adopted: set[int]) -> None:
    """Killed between the making of the directory (and of the loop device) and the mount, or after it."""
    image = place.image("a")
    command = [sys.executable, "-c", KILLED, str(place.directory), place.how, when, str(image)]
    assert subprocess.run(command, cwd=TOP, check=False).returncode == -signal.SIGKILL
    assert os.listdir(place.directory) == ["1"]
    if when == "before":
        place.wait_for_loop_devices_to_go()
    mounts = place.mounts()
    assert mounts.bring_back({1: image}) == adopted
    assert os.listdir(place.directory) == (["1"] if adopted else [])
    assert os.listdir(mounts.ensure(1, image)) == ["a"]
    assert len(mounts_on(place.directory / "1")) == 1
    assert mounts.bring_back({}) == set()
    assert os.listdir(place.directory) == []
    place.wait_for_loop_devices_to_go()
