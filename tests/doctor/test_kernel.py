import os
from dataclasses import replace

import pytest

from snapshotter.doctor import kernel
from snapshotter.doctor.findings import Answer, Verdict
from tests.doctor.world import World, look, the_one, verdicts


def asked(world: World, name: str, **other: object) -> list[Answer]:
    return look(kernel.checks(world.subject(**other)), name)


def test_a_kernel_with_everything_is_in_order(world: World) -> None:
    os.mknod(world.top / "dev/fuse", 0o666 | 0o020000, os.makedev(1, 3))  # null's number: it can be opened anywhere
    for name in ("version", "/dev/fuse", "file systems", "FUSE timeouts", "container"):
        assert the_one(asked(world, name)).verdict is Verdict.OK


@pytest.mark.parametrize(
    ("plane", "verdict"), [("auto", Verdict.NOTE), ("fuse", Verdict.NOTE), ("erofs", Verdict.FAULT)]
)
def test_an_old_kernel_matters_to_those_who_want_the_erofs_plane(world: World, plane: str, verdict: Verdict) -> None:
    world.write("proc/sys/kernel/osrelease", "5.15.0-91-generic\n")
    world.config = replace(world.config, plane=plane)
    answer = the_one(asked(world, "version"))
    assert answer.verdict is verdict
    assert "5.15.0" in answer.found


def test_without_the_device_there_is_advice_for_machine_and_container(world: World) -> None:
    answer = the_one(asked(world, "/dev/fuse"))
    assert answer.verdict is Verdict.FAULT
    assert "modprobe fuse" in answer.advice
    assert "--device" in answer.advice


def test_a_device_without_a_driver_is_told(world: World) -> None:
    os.mknod(world.top / "dev/fuse", 0o666 | 0o020000, os.makedev(240, 77))  # a number for local use, which nobody has
    assert the_one(asked(world, "/dev/fuse")).verdict is Verdict.FAULT


@pytest.mark.parametrize("missing", ["fuse", "overlay"])
def test_a_kernel_without_what_both_planes_need_is_a_fault(world: World, missing: str) -> None:
    path = world.proc / "filesystems"
    path.write_text(path.read_text().replace(missing, "other"))
    answers = asked(world, "file systems")
    assert verdicts(answers)[missing] is Verdict.FAULT
    assert f"modprobe {missing}" in answers[0].advice


def test_a_module_on_disk_counts(world: World) -> None:
    (world.proc / "filesystems").write_text("nodev\tfuse\n")
    world.write("lib/modules/6.12.1/modules.dep", "kernel/fs/erofs/erofs.ko.xz: kernel/lib/lz4.ko.xz\n")
    world.write("lib/modules/6.12.1/modules.builtin", "kernel/fs/overlayfs/overlay.ko\n")
    answer = the_one(asked(world, "file systems"))
    assert answer.verdict is Verdict.OK
    assert "erofs (a module" in answer.found
    assert "overlay (a module" in answer.found


@pytest.mark.parametrize(("release", "verdict"), [("6.12.0", Verdict.NOTE), ("6.8.0", Verdict.FAULT)])
def test_loop_devices_matter_where_images_are_mounted_through_them(
    world: World, release: str, verdict: Verdict
) -> None:
    (world.top / "dev/loop-control").unlink()
    world.write("proc/sys/kernel/osrelease", release)
    world.config = replace(world.config, plane="erofs")
    assert verdicts(asked(world, "file systems"), "all")["loop"] is verdict


def test_a_request_timeout_of_fuse_is_a_warning(world: World) -> None:
    world.write("proc/sys/fs/fuse/max_request_timeout", "60\n")
    answer = the_one(asked(world, "FUSE timeouts"))
    assert answer.verdict is Verdict.WARNING
    assert "fs.fuse.max_request_timeout=0" in answer.advice


def test_a_user_namespace_is_a_fault_and_a_container_worth_knowing(world: World) -> None:
    world.write(".dockerenv", "")
    assert the_one(asked(world, "container")).verdict is Verdict.NOTE
    world.write("proc/self/uid_map", "0 100000 65536\n")
    assert the_one(asked(world, "container")).verdict is Verdict.FAULT
