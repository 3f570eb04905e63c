"""The erofs plane as the service uses it: which paths an overlay gets, and what becomes of a layer without a mount."""

import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapshotter.errors import FormatError, NotLazy, PlaneError
from snapshotter.plane.erofs.plane import IMAGE_WAIT_S, RETRY_AFTER_S
from snapshotter.request import LowerLayer
from snapshotter.service.mounts import room_for_lower
from tests.plane.erofs_world import COMPOSED, ROOM, World
from tests.plane.test_plane import SESSION, request

ON_DISK = 2, 3, 4, 5
"""Layers whose images are there from the beginning."""


@pytest.fixture
def world(tmp_path: Path) -> World:
    run = tmp_path / "run"
    run.mkdir()
    made = World(run, tmp_path / "root")
    made.images.have(*ON_DISK)
    return made


@pytest.fixture
def short(tmp_path: Path) -> Iterator[World]:
    """A world whose run directory has a path of 20 bytes, the longest that is allowed."""
    with tempfile.TemporaryDirectory(prefix="ed-----", dir="/tmp") as run:
        assert len(run) == 20
        yield World(Path(run), tmp_path / "root")


# --- composed chains


def test_layers_come_topmost_first_and_contents_behind_double_colons(world: World) -> None:
    lower = world.plane.lowerdirs([LowerLayer(12, 3), LowerLayer(11, 2)], extraction=False, room=ROOM)
    assert lower.paths == (world.e(3), world.e(2), *world.data)
    assert lower.options == COMPOSED
    contents = "::".join(world.link(name) for name in ("objects", "gate", "late", "fail"))
    assert ":".join(lower.paths) == f"{world.e(3)}:{world.e(2)}::{contents}"


def test_links_lead_to_contents_and_into_the_fuse_mount_of_this_session(world: World) -> None:
    expected = {
        "objects": str(world.root / "objects"),
        "gate": f"../fuse/{SESSION}/gate",
        "late": str(world.root / "late"),
        "fail": f"../fuse/{SESSION}/fail",
    }
    assert {name: os.readlink(world.link(name)) for name in expected} == expected


def test_mounts_answered_by_an_earlier_process_ask_the_gate_of_this_session(world: World) -> None:
    world.started(SESSION + 1)
    assert os.readlink(world.link("gate")) == f"../fuse/{SESSION + 1}/gate"
    assert os.readlink(world.link("fail")) == f"../fuse/{SESSION + 1}/fail"


def test_links_to_contents_stay_when_snapshots_go(world: World) -> None:
    world.paths(LowerLayer(12, 3), LowerLayer(11, None))
    world.plane.forget_snapshots((), below=1000)
    assert sorted(os.listdir(world.run / "l")) == ["empty", "fail", "gate", "late", "objects"]


def test_ordinary_layers_stand_between_lazy_ones(world: World) -> None:
    paths = world.paths(LowerLayer(13, None), LowerLayer(12, 3), LowerLayer(11, None), LowerLayer(10, 2))
    assert paths == (world.link(13), world.e(3), world.link(11), world.e(2), *world.data)
    assert os.readlink(world.link(11)) == str(world.fs(11))


def test_of_equal_layers_only_the_topmost_stays(world: World) -> None:
    chain = [LowerLayer(14, 3), LowerLayer(13, 5), LowerLayer(12, 3), LowerLayer(11, None), LowerLayer(10, 5)]
    assert world.paths(*chain) == (world.e(3), world.e(5), world.link(11), *world.data)


def test_a_chain_without_lazy_layers_gets_no_data_layers(world: World) -> None:
    lower = world.plane.lowerdirs([LowerLayer(12, None), LowerLayer(11, None)], extraction=False, room=ROOM)
    assert (lower.paths, lower.options) == ((world.link(12), world.link(11)), ())


def test_below_an_extraction_layers_are_whole_by_themselves(world: World) -> None:
    chain = [LowerLayer(12, 3), LowerLayer(11, None), LowerLayer(10, 2)]
    lower = world.plane.lowerdirs(chain, extraction=True, room=ROOM)
    assert (lower.paths, lower.options) == ((world.link(12), world.link(11), world.link(10)), ())
    assert os.readlink(world.link(12)) == f"../fuse/{SESSION}/layers/3"
    assert world.mounts.tried == {}


def test_a_chain_that_does_not_fit_is_served_through_fuse_as_a_whole(world: World) -> None:
    chain = [LowerLayer(12, 3), LowerLayer(11, None), LowerLayer(10, 2)]
    composed = (*COMPOSED, "lowerdir=" + ":".join(world.paths(*chain)))
    size = len(",".join(composed))
    assert world.paths(*chain, room=size) == (world.e(3), world.link(11), world.e(2), *world.data)
    lower = world.plane.lowerdirs(chain, extraction=False, room=size - 1)
    assert (lower.paths, lower.options) == ((world.link(12), world.link(11), world.link(10)), COMPOSED)
    assert os.readlink(world.link(12)) == f"../fuse/{SESSION}/layers/3"


@pytest.mark.parametrize("between", [False, True])
def test_128_layers_fit_one_page_of_mount_options(short: World, between: bool) -> None:
    snapshot = Path("/var/lib/estargz/snapshots/99999")
    room = room_for_lower(upper=snapshot / "fs", work=snapshot / "work")
    chain = [LowerLayer(99_000 + n, None if between and n % 2 else 99_000 + n) for n in range(128)]
    short.images.have(*(layer.layer_number for layer in chain if layer.layer_number is not None))
    paths = short.paths(*chain, room=room)
    assert paths[-8:] == short.data
    assert len(paths) == 128 + 8


# --- views


def test_a_view_of_one_lazy_layer_is_composed(world: World) -> None:
    kind, source, options = world.plane.view_mount(LowerLayer(12, 3))
    assert (kind, source) == ("overlay", "overlay")
    assert options == (*COMPOSED, "lowerdir=" + ":".join((world.e(3), *world.data)))


def test_a_view_of_a_layer_that_has_no_mount_is_that_of_the_fuse_plane(world: World) -> None:
    world.mounts.faults[3] = [PlaneError("the kernel refused")]
    for layer in (LowerLayer(12, 3), LowerLayer(11, None)):
        expected = (f"lowerdir={world.link(layer.snapshot_id)}:{world.link('empty')}",)
        assert world.plane.view_mount(layer) == ("overlay", "overlay", expected)
    assert os.readlink(world.link(12)) == f"../fuse/{SESSION}/layers/3"


# --- mounts, and what keeps a layer from having one


def test_an_attached_layer_is_mounted_at_once(world: World) -> None:
    attached = world.plane.attach(request(7))
    assert attached.number == 7
    assert world.plane.describe(7) == attached
    assert world.mounts.standing == {7: world.root / "7.erofs"}
    assert (world.images.written, world.waits) == ([7], [IMAGE_WAIT_S])


def test_a_layer_that_cannot_be_lazy_is_not_mounted(world: World) -> None:
    with pytest.raises(NotLazy):
        world.plane.attach(request(-1))
    assert (world.mounts.tried, world.plane.failures(), world.waits) == ({}, {}, [])


def test_a_layer_that_is_mounted_is_not_mounted_again(world: World) -> None:
    world.plane.attach(request(7))
    for _ in range(3):
        world.paths(LowerLayer(12, 7))
    assert (world.mounts.tried, world.images.written, world.images.begun) == ({7: 1}, [7], [])


def test_a_layer_without_a_mount_is_served_through_fuse_among_the_others(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.mounts.faults[3] = [PlaneError("cannot mount it: no loop device")]
    chain = [LowerLayer(12, 4), LowerLayer(11, 3), LowerLayer(10, 2)]
    for _ in range(3):
        assert world.paths(*chain) == (world.e(4), world.link(11), world.e(2), *world.data)
    assert os.readlink(world.link(11)) == f"../fuse/{SESSION}/layers/3"
    assert world.plane.failures() == {3: "cannot mount it: no loop device"}
    assert world.mounts.tried[3] == 1
    assert caplog.text.count("no loop device") == 1


def test_a_chain_in_which_no_lazy_layer_has_a_mount_gets_no_data_layers(world: World) -> None:
    world.mounts.faults[3] = [PlaneError("the kernel refused")]
    lower = world.plane.lowerdirs([LowerLayer(12, 3), LowerLayer(11, None)], extraction=False, room=ROOM)
    assert (lower.paths, lower.options) == ((world.link(12), world.link(11)), COMPOSED)


def test_a_failed_mount_is_tried_again_after_a_while(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.mounts.faults[3] = [PlaneError("the kernel refused")] * 2
    layer = LowerLayer(12, 3)
    assert world.paths(layer) == (world.link(12),)
    world.now += RETRY_AFTER_S - 1
    assert world.paths(layer) == (world.link(12),)
    assert world.mounts.tried[3] == 1
    world.now += 1
    assert world.paths(layer) == (world.link(12),)
    assert world.mounts.tried[3] == 2
    assert caplog.text.count("the kernel refused") == 1
    world.now += RETRY_AFTER_S
    assert world.paths(layer) == (world.e(3), *world.data)
    assert world.plane.failures() == {}


def test_a_layer_whose_image_cannot_be_written_is_served_through_fuse(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.images.faults[7] = PlaneError("the disk is full")
    assert world.plane.attach(request(7)).number == 7
    for _ in range(3):
        assert world.paths(LowerLayer(12, 7), LowerLayer(11, 2)) == (world.link(12), world.e(2), *world.data)
    assert world.plane.failures() == {7: "the disk is full"}
    assert world.mounts.tried == {2: 1}
    assert caplog.text.count("has no EROFS mount") == 1
    del world.images.faults[7]
    world.now += RETRY_AFTER_S
    assert world.paths(LowerLayer(12, 7)) == (world.link(12),)
    world.images.finish()
    world.now += RETRY_AFTER_S
    assert world.paths(LowerLayer(12, 7)) == (world.e(7), *world.data)
    assert world.plane.failures() == {}


def test_an_image_that_cannot_be_written_in_the_background_is_said_at_the_next_use(world: World) -> None:
    world.images.faults[7] = PlaneError("the disk is full")
    assert world.paths(LowerLayer(12, 7)) == (world.link(12),)
    assert world.plane.failures() == {}
    world.images.finish()
    assert world.paths(LowerLayer(12, 7)) == (world.link(12),)
    assert world.plane.failures() == {7: "the disk is full"}


def test_a_layer_whose_image_takes_longer_than_a_pull_waits_is_served_through_fuse_until_it_is_there(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.slow = True
    with caplog.at_level(logging.INFO):
        assert world.plane.attach(request(7)).number == 7
    assert f"layer 7 is served through FUSE for now: no answer within {IMAGE_WAIT_S:g} s" in caplog.text
    for _ in range(2):
        lower = world.plane.lowerdirs([LowerLayer(12, 7)], extraction=False, room=ROOM)
        assert (lower.paths, lower.options) == ((world.link(12),), COMPOSED)
    assert os.readlink(world.link(12)) == f"../fuse/{SESSION}/layers/7"
    # That it is not there yet is no failure: nobody has to let a while go by.
    assert (world.mounts.tried, world.plane.failures()) == ({}, {})
    world.images.finish()
    assert world.paths(LowerLayer(12, 7)) == (world.e(7), *world.data)
    assert world.waits == [IMAGE_WAIT_S]


def test_a_missing_image_is_begun_and_not_waited_for(world: World) -> None:
    chain = [LowerLayer(12, 7), LowerLayer(11, 2)]
    assert world.paths(*chain) == (world.link(12), world.e(2), *world.data)
    assert world.plane.view_mount(LowerLayer(12, 7))[2] == (f"lowerdir={world.link(12)}:{world.link('empty')}",)
    assert set(world.images.begun) == {(7, False)}
    world.images.finish()
    assert world.paths(*chain) == (world.e(7), world.e(2), *world.data)
    assert (world.waits, world.plane.failures()) == ([], {})


def test_a_layer_that_was_not_brought_back_keeps_nobody_from_his_other_layers(world: World) -> None:
    world.images.unknown.add(3)
    assert world.paths(LowerLayer(12, 3), LowerLayer(11, 2)) == (world.link(12), world.e(2), *world.data)
    assert "layer 3" in world.plane.failures()[3]


def test_a_damaged_image_is_written_again_and_its_layer_goes_through_fuse_meanwhile(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.mounts.faults[3] = [FormatError("the image does not have the hash that it carries")]
    assert world.paths(LowerLayer(12, 3)) == (world.link(12),)
    assert (world.images.begun, world.mounts.tried, world.plane.failures()) == ([(3, True)], {3: 1}, {})
    assert "layer 3: the image does not have the hash that it carries; it is written again" in caplog.text
    world.images.finish()
    assert world.paths(LowerLayer(12, 3)) == (world.e(3), *world.data)
    assert (world.images.begun, world.images.written, world.mounts.tried) == ([], [3], {3: 2})
    assert world.waits == []


def test_a_damaged_image_that_cannot_be_written_again_leaves_its_layer_to_fuse(world: World) -> None:
    world.mounts.faults[3] = [FormatError("damaged")] * 2
    world.images.faults[3] = PlaneError("the disk is full")
    assert world.paths(LowerLayer(12, 3)) == (world.link(12),)
    world.images.finish()
    for _ in range(3):
        assert world.paths(LowerLayer(12, 3)) == (world.link(12),)
    assert (world.mounts.tried, world.plane.failures()) == ({3: 2}, {3: "the disk is full"})


def test_a_layer_that_contradicts_what_the_kernel_was_told_is_not_mounted(world: World) -> None:
    world.disputed.add(3)
    assert world.paths(LowerLayer(12, 3), LowerLayer(11, 2)) == (world.link(12), world.e(2), *world.data)
    assert "another size" in world.plane.failures()[3]
    assert (world.mounts.tried, world.images.begun) == ({2: 1}, [])


def test_a_layer_that_stands_is_not_judged_again_by_what_the_gate_told_later(world: World) -> None:
    world.paths(LowerLayer(12, 3))
    world.disputed.add(3)
    assert world.paths(LowerLayer(12, 3)) == (world.e(3), *world.data)


def test_use_of_layers_is_passed_on(world: World) -> None:
    world.plane.touch([3, 5])
    assert world.room.touched == [3, 5]


# --- the end of a layer, and a start


def test_release_takes_the_mount_away_and_forgets_why_there_was_none(world: World) -> None:
    world.plane.attach(request(7))
    world.mounts.faults[8] = [PlaneError("the kernel refused")]
    world.plane.attach(request(8))
    for number in (7, 8):
        world.plane.release(number)
    assert (world.room.attached, world.invalidated, world.mounts.dropped) == ({}, [b"7", b"8"], [7, 8])
    assert (world.mounts.standing, world.plane.failures()) == ({}, {})


def test_a_mount_that_the_kernel_does_not_give_up_fails_no_release(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.plane.attach(request(7))
    world.mounts.stuck[7] = PlaneError("cannot unmount it: Device or resource busy")
    world.plane.release(7)
    assert (world.room.attached, world.invalidated) == ({}, [b"7"])
    assert "layer 7 stays mounted until the next start: cannot unmount it: Device or resource busy" in caplog.text
    world.plane.bring_back([2])
    assert set(world.mounts.standing) == {2}


def test_a_start_mounts_what_has_an_image_and_begins_those_that_are_missing(world: World) -> None:
    world.mounts.faults[3] = [FormatError("damaged")]
    world.plane.bring_back([2, 3, 7])
    assert (set(world.mounts.standing), world.images.begun) == ({2}, [(3, True), (7, False)])
    chain = [LowerLayer(12, 7), LowerLayer(11, 3), LowerLayer(10, 2)]
    world.images.finish()
    assert world.paths(*chain) == (world.e(7), world.e(3), world.e(2), *world.data)
    assert (world.waits, world.plane.failures()) == ([], {})


def test_a_start_keeps_the_mounts_that_stand_and_takes_others_away(world: World) -> None:
    for number in (2, 3):
        world.mounts.standing[number] = world.images.image_path(number)
    world.mounts.standing[9] = world.root / "of a layer that is gone"
    world.plane.bring_back([2, 3])
    assert world.mounts.standing == {number: world.images.image_path(number) for number in (2, 3)}
    assert world.mounts.tried == {}


def test_one_layer_that_cannot_be_mounted_keeps_the_others_from_nothing_at_a_start(world: World) -> None:
    world.mounts.faults[2] = [PlaneError("the kernel refused")]
    world.plane.bring_back([2, 3])
    assert (set(world.mounts.standing), world.plane.failures()) == ({3}, {2: "the kernel refused"})
