"""The fuse plane as the service uses it, over a layer room that remembers what it was asked."""

import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar, TypeVarTuple

import pytest
import trio

from snapshotter.errors import NotFound, NotLazy, Reason
from snapshotter.plane.fuse.inodes import Fixed, Numbers
from snapshotter.plane.fuse.plane import FusePlane
from snapshotter.plane.overlays import overlay_options
from snapshotter.request import AttachedLayer, LayerRequest, LowerLayer

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
SESSION = 4


ANSWER = AttachedLayer(7, "sha256:" + "1" * 64, "sha256:" + "2" * 64, 10, 2, 0, 0, 0o755)


def request(number: int) -> LayerRequest:
    """A request for the layer that gets this number."""
    return LayerRequest(
        namespace="default",
        reference=f"registry.test/app:{number}",
        manifest_digest=None,
        layer_digest=ANSWER.layer_digest,
        image_layers=(),
        toc_digest=None,
        prefetch_size=None,
        skip_verify=False,
        trusted_only=False,
    )


@dataclass
class Room:
    """A layer room that resolves a request, whose tag is a number, to the layer of that number."""

    attached: dict[int, AttachedLayer] = field(default_factory=dict)
    touched: list[int] = field(default_factory=list)

    async def resolve(self, request: LayerRequest) -> AttachedLayer:
        number = int(request.reference.rpartition(":")[2])
        if number < 0:
            raise NotLazy(Reason.NO_ANCHOR, "no anchor")
        self.attached[number] = replace(ANSWER, number=number)
        return self.attached[number]

    async def release(self, number: int) -> None:
        self.attached.pop(number, None)

    def describe(self, number: int) -> AttachedLayer:
        if number not in self.attached:
            raise NotFound(f"layer {number}")
        return self.attached[number]

    def touch(self, numbers: Sequence[int]) -> None:
        self.touched.extend(numbers)


def call(function: Callable[[*Ts], Awaitable[T]], *args: *Ts, timeout_s: float) -> T:
    assert timeout_s > 0
    return trio.run(function, *args)


def too_slow(function: Callable[[*Ts], Awaitable[T]], *args: *Ts, timeout_s: float) -> T:
    raise TimeoutError(f"no answer within {timeout_s:g} s")


@dataclass
class World:
    plane: FusePlane
    room: Room
    run: Path
    invalidated: list[tuple[int, bytes]]


@pytest.fixture
def world(tmp_path: Path) -> World:
    room, invalidated = Room(), list[tuple[int, bytes]]()
    plane = FusePlane(
        tmp_path,
        SESSION,
        room,
        lambda snapshot_id: tmp_path / f"snapshots/{snapshot_id}/fs",
        call,
        30.0,
        lambda inode, name: invalidated.append((inode, name)),
    )
    return World(plane, room, tmp_path, invalidated)


def test_attached_layer_is_described(world: World) -> None:
    assert world.plane.attach(request(7)) == ANSWER
    assert world.plane.describe(7) == ANSWER


def test_layer_that_cannot_be_lazy_says_why(world: World) -> None:
    with pytest.raises(NotLazy) as caught:
        world.plane.attach(request(-1))
    assert caught.value.reason is Reason.NO_ANCHOR


def test_attach_that_takes_too_long_is_not_lazy(tmp_path: Path) -> None:
    plane = FusePlane(tmp_path, SESSION, Room(), lambda _: tmp_path, too_slow, 30.0)
    with pytest.raises(NotLazy) as caught:
        plane.attach(request(1))
    assert caught.value.reason is Reason.TIMEOUT


def test_lower_directories_are_links_topmost_first(world: World) -> None:
    chain = [LowerLayer(12, 3), LowerLayer(11, None), LowerLayer(10, 2)]
    paths = world.plane.lowerdirs(chain, extraction=False, room=4000).paths
    assert paths == tuple(str(world.run / f"l/{i}") for i in (12, 11, 10))
    assert [os.readlink(path) for path in paths] == [
        f"../fuse/{SESSION}/layers/3",
        str(world.run / "snapshots/11/fs"),
        f"../fuse/{SESSION}/layers/2",
    ]


def test_of_equal_layers_only_the_topmost_stays(world: World) -> None:
    chain = [LowerLayer(14, 3), LowerLayer(13, 5), LowerLayer(12, 3), LowerLayer(11, None), LowerLayer(10, None)]
    paths = world.plane.lowerdirs(chain, extraction=True, room=4000).paths
    assert [Path(path).name for path in paths] == ["14", "13", "11", "10"]


def test_overlays_with_a_lazy_layer_take_what_containers_of_the_other_plane_left(world: World) -> None:
    lazy, ordinary = LowerLayer(12, 3), LowerLayer(11, None)
    with_lazy = world.plane.lowerdirs([lazy, ordinary], extraction=False, room=4000)
    assert with_lazy.options == ("metacopy=on", "redirect_dir=on")
    assert world.plane.lowerdirs([ordinary], extraction=False, room=4000).options == ()
    assert world.plane.lowerdirs([lazy, ordinary], extraction=True, room=4000).options == ()


def test_options_that_the_kernel_does_not_know_are_left_out(tmp_path: Path) -> None:
    assert overlay_options(tmp_path) == ()
    (tmp_path / "metacopy").touch()
    assert overlay_options(tmp_path) == ("metacopy=on", "redirect_dir=on")


def test_128_layers_fit_one_page_of_mount_options() -> None:
    longest_run_dir = "/" + "r" * 19
    lower = ":".join(f"{longest_run_dir}/l/{snapshot_id}" for snapshot_id in range(99_000, 99_128))
    state = f"/var/lib/estargz/snapshots/{99_999}"
    assert len(f"index=off,workdir={state}/work,upperdir={state}/fs,lowerdir={lower}") < 4096


def test_view_of_one_layer_is_an_overlay_above_nothing(world: World) -> None:
    kind, source, (option,) = world.plane.view_mount(LowerLayer(12, 3))
    assert (kind, source) == ("overlay", "overlay")
    link, empty = option.removeprefix("lowerdir=").split(":")
    assert os.readlink(link) == f"../fuse/{SESSION}/layers/3"
    assert os.listdir(empty) == []


def test_released_layer_is_forgotten_by_the_room_and_by_the_kernel(world: World) -> None:
    world.plane.attach(request(7))
    world.plane.release(7)
    assert world.room.attached == {}
    assert world.invalidated == [(Numbers(SESSION).of_fixed(Fixed.LAYERS), b"7")]


def test_mounts_answered_by_an_earlier_process_name_this_session(world: World, tmp_path: Path) -> None:
    lower = world.plane.lowerdirs([LowerLayer(12, 3), LowerLayer(11, None)], extraction=False, room=4000)
    lazy, ordinary = lower.paths
    FusePlane(tmp_path, SESSION + 1, Room(), lambda _: tmp_path, call, 30.0)
    assert os.readlink(lazy) == f"../fuse/{SESSION + 1}/layers/3"
    assert os.readlink(ordinary) == str(world.run / "snapshots/11/fs")


def test_use_of_layers_is_passed_on(world: World) -> None:
    world.plane.touch([3, 5])
    assert world.room.touched == [3, 5]


def test_links_of_removed_snapshots_go(world: World) -> None:
    world.plane.lowerdirs([LowerLayer(12, 3), LowerLayer(11, None)], extraction=False, room=4000)
    world.plane.forget_snapshots({12}, below=13)
    assert sorted(os.listdir(world.run / "l")) == ["12", "empty"]
