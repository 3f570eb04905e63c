"""The trial of the erofs plane: for real, and with each way in which a machine can fail it."""

import errno
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from integration.harness.leftovers import detach_mounts, loop_devices_of, mounts_of
from snapshotter.plane.erofs.backing import Backing
from snapshotter.plane.erofs.probing import Probe, clear_trial, probe
from snapshotter.plane.mounts import MountCall, call_mount, mount
from tests.plane.conftest import Place

TOP = Path(__file__).parents[2]

Refusal = Callable[[str, str, str], int | None]
"""Source, type and options to the errno that the kernel answers, or None where it does what it is asked for."""


class Machine:
    """A root and a run directory, and a kernel that can be told to refuse."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "root"
        self.run_dir = folder / "run"
        self.calls: list[tuple[str, str]] = []
        for directory in (self.root, self.run_dir):
            directory.mkdir()

    def probe(self, call: MountCall = call_mount) -> Probe:
        """What comes out; whatever that is, nothing may be left."""
        found = probe(self.root, self.run_dir, call)
        self.check_that_nothing_is_left()
        return found

    def refused(self, refusal: Refusal) -> str:
        """The reason why it does not work."""

        def call(source: str, target: Path, fs_type: str, flags: int, data: str) -> None:
            self.calls.append((fs_type, data))
            number = refusal(source, fs_type, data)
            if number is not None:
                raise OSError(number, os.strerror(number))
            call_mount(source, target, fs_type, flags, data)

        found = self.probe(call)
        assert (found.works, found.backing) == (False, None)
        return found.reason

    def changed(self, change: Callable[[str], str]) -> str:
        """The reason why it does not work with overlays that are mounted with other options than asked for."""

        def call(source: str, target: Path, fs_type: str, flags: int, data: str) -> None:
            call_mount(source, target, fs_type, flags, change(data))

        found = self.probe(call)
        assert (found.works, found.backing) == (False, None)
        return found.reason

    def check_that_nothing_is_left(self) -> None:
        assert mounts_of(self.root) + mounts_of(self.run_dir) == []
        assert [name for name in os.listdir(self.root) if name != "objects"] == os.listdir(self.run_dir) == []


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path)
    try:
        found = made.probe()
        if not found.works:
            pytest.skip(f"this machine does not run the erofs plane: {found.reason}")
        yield made
    finally:
        detach_mounts(tmp_path)


@pytest.fixture
def on(machine: Machine) -> Iterator[Callable[[str, str], None]]:
    """Puts another file system under the root."""

    def put(fs_type: str, options: str) -> None:
        mount("test", machine.root, fs_type, 0, options)

    yield put
    detach_mounts(machine.root)


# --- what works


@pytest.mark.usefixtures("file_place")
def test_the_real_thing_works_from_files(machine: Machine) -> None:
    assert machine.probe() == Probe(
        True, Backing.FILE, "EROFS images are mounted from files, and overlays take data-only layers"
    )


def test_the_real_thing_works_with_loop_devices(machine: Machine, loop_place: Place) -> None:
    def call(source: str, target: Path, fs_type: str, flags: int, data: str) -> None:
        if source.startswith(str(machine.root)):
            raise OSError(errno.ENOTBLK, "Block device required")
        call_mount(source, target, fs_type, flags, data)

    assert machine.probe(call) == Probe(
        True,
        Backing.LOOP,
        f"file-backed mounts are not supported here (kernel < 6.12, or the file system of {machine.root}), using loop "
        "devices",
    )
    loop_place.wait_for_loop_devices_to_go()
    assert loop_devices_of(machine.root) == []


def test_a_root_on_tmpfs_takes_loop_devices(
    machine: Machine, on: Callable[[str, str], None], loop_place: Place
) -> None:
    on("tmpfs", "size=8m")
    found = probe(machine.root, machine.run_dir)
    assert (found.works, found.backing) == (True, Backing.LOOP), found.reason
    assert os.listdir(machine.root) == os.listdir(machine.run_dir) == []
    loop_place.wait_for_loop_devices_to_go()


def test_what_the_plane_has_in_its_directories_stays(machine: Machine) -> None:
    (machine.root / "erofs").mkdir()
    (machine.root / "erofs/layer.erofs").write_text("a layer's")
    (machine.run_dir / "e/1").mkdir(parents=True)
    assert probe(machine.root, machine.run_dir).works
    assert (machine.root / "erofs/layer.erofs").read_text() == "a layer's"
    assert os.listdir(machine.root / "erofs") == ["layer.erofs"]
    assert os.listdir(machine.run_dir / "e") == ["1"]


# --- what a machine may lack


def test_a_kernel_without_erofs(machine: Machine) -> None:
    reason = machine.refused(lambda _source, fs_type, _data: errno.ENODEV if fs_type == "erofs" else None)
    assert reason == "this kernel has no EROFS (CONFIG_EROFS_FS; modprobe erofs)"
    assert len(machine.calls) == 1


def test_no_right_to_mount(machine: Machine) -> None:
    reason = machine.refused(lambda *_: errno.EPERM)
    assert reason.startswith("EROFS images may not be mounted here (Operation not permitted): it takes CAP_SYS_ADMIN")


def test_neither_files_nor_loop_devices(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("snapshotter.plane.erofs.loop.CONTROL", "/dev/no-loop-control")
    reason = machine.refused(lambda _source, fs_type, _data: errno.ENOTBLK if fs_type == "erofs" else None)
    assert reason == (
        f"file-backed mounts are not supported here (kernel < 6.12, or the file system of {machine.root}), and loop "
        "devices do not work either (/dev/no-loop-control: No such file or directory): modprobe loop; in a container, "
        "pass /dev/loop-control and the loop devices in"
    )


def test_another_refusal_of_files_is_told(machine: Machine) -> None:
    reason = machine.refused(lambda source, fs_type, _data: errno.EINVAL if fs_type == "erofs" else None)
    assert f"the file system of {machine.root}: Invalid argument)" in reason
    assert "loop devices do not work either (Invalid argument)" in reason


def test_a_kernel_without_overlayfs(machine: Machine) -> None:
    reason = machine.refused(lambda _source, fs_type, _data: errno.ENODEV if fs_type == "overlay" else None)
    assert reason == "this kernel has no overlayfs (CONFIG_OVERLAY_FS; modprobe overlay)"


def test_overlayfs_without_data_only_layers(machine: Machine) -> None:
    reason = machine.refused(lambda _source, _type, data: errno.EINVAL if "::" in data else None)
    assert reason == "overlayfs has no data-only layers (kernel < 6.5)"


def test_overlayfs_that_refuses_for_another_reason(machine: Machine) -> None:
    reason = machine.refused(lambda _source, _type, data: errno.ELOOP if "::" in data else None)
    assert reason == "overlayfs refused data-only layers: Too many levels of symbolic links"


def test_a_root_that_cannot_hold_upper_directories(machine: Machine) -> None:
    reason = machine.refused(lambda _source, _type, data: errno.EINVAL if "upperdir=" in data else None)
    assert reason == (
        f"overlayfs does not take an upper directory on the file system of {machine.root} (Invalid argument): put root "
        "on ext4, xfs or btrfs"
    )


def test_a_root_inside_of_an_overlay(machine: Machine, on: Callable[[str, str], None], tmp_path: Path) -> None:
    """As in a container without a volume: no images from files, and no upper directories."""
    for name in ("lower", "upper", "work"):
        (tmp_path / name).mkdir()
    on("overlay", f"lowerdir={tmp_path}/lower,upperdir={tmp_path}/upper,workdir={tmp_path}/work")
    found = probe(machine.root, machine.run_dir)
    assert not found.works
    assert f"overlayfs does not take an upper directory on the file system of {machine.root}" in found.reason


def test_a_root_without_trusted_attributes(machine: Machine, on: Callable[[str, str], None]) -> None:
    on("ramfs", "")
    found = probe(machine.root, machine.run_dir)
    assert not found.works
    assert found.reason == (
        f"the file system of {machine.root} has no trusted extended attributes (Operation not supported), which an "
        "overlay needs: put root on ext4, xfs or btrfs"
    )


def test_content_that_cannot_be_read(machine: Machine) -> None:
    reason = machine.changed(lambda data: data.replace("probe/2", "probe/work"))
    assert reason.startswith("a file could not be read through overlayfs: ")


def test_content_that_is_wrong(machine: Machine) -> None:
    def spoil(data: str) -> str:
        for path in (machine.root / "probe/2").rglob("*"):
            if path.is_file():
                path.write_text("x" * path.stat().st_size)
        return data

    assert machine.changed(spoil) == "a file read through overlayfs does not have the content of its object"


def put_another_layer_in(machine: Machine, data: str) -> str:
    """Options of an ordinary overlay that shows the same file, with a mode of its own."""
    lower = machine.root / "probe/1/d"
    lower.mkdir(exist_ok=True)
    (lower / "f").write_text("what a file of a lazy layer holds\n")
    return data.replace(f"{machine.run_dir}/p/e::", "").replace("::", ":")


def test_attributes_that_are_wrong(machine: Machine) -> None:
    reason = machine.changed(lambda data: put_another_layer_in(machine, data) if "::" in data else data)
    assert reason == "a file seen through overlayfs does not have the attributes of its layer"


def test_metacopy_without_effect(machine: Machine) -> None:
    def whole(data: str) -> str:
        if "upperdir" not in data:
            return data
        return put_another_layer_in(machine, data).replace("metacopy=on", "metacopy=off")

    assert machine.changed(whole) == "overlayfs copies a whole file to change its mode: metacopy=on has no effect"


def test_redirects_without_effect(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Overlayfs refuses `metacopy=on` without redirects, so the answer of rename(2) is put in the place of its own."""

    def rename(path: Path, _target: Path) -> Path:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(path))

    monkeypatch.setattr(Path, "rename", rename)
    assert machine.probe().reason == (
        "overlayfs does not rename directories of layers (Invalid cross-device link): redirect_dir=on has no effect"
    )


# --- room, and what is left


def test_a_full_disk_loses_some_of_the_cache_and_not_the_plane(
    machine: Machine, on: Callable[[str, str], None], loop_place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    on("tmpfs", "size=1m")
    (machine.root / "objects").mkdir()
    with pytest.raises(OSError, match="No space"), (machine.root / "objects/object").open("wb", buffering=0) as cached:
        while True:
            cached.write(bytes(4096))
    found = probe(machine.root, machine.run_dir)
    assert (found.works, found.backing) == (True, Backing.LOOP), found.reason
    assert os.listdir(machine.root / "objects") == []
    assert "for the trial of the erofs plane: No space left on device; " in caplog.text
    loop_place.wait_for_loop_devices_to_go()


def test_a_full_disk_without_a_cache_is_a_reason(machine: Machine, on: Callable[[str, str], None]) -> None:
    on("tmpfs", "size=4k,nr_inodes=4")
    found = probe(machine.root, machine.run_dir)
    assert found.reason == f"no room in {machine.root} for the trial of the erofs plane: No space left on device"
    assert os.listdir(machine.root) == os.listdir(machine.run_dir) == []


def test_a_missing_directory_is_a_reason(machine: Machine) -> None:
    found = probe(machine.root / "missing", machine.run_dir)
    assert not found.works
    assert f"{machine.root}/missing/erofs: No such file or directory" in found.reason


KILLED = """
import os, signal, sys
from pathlib import Path
from snapshotter.plane.erofs.probing import probe
from snapshotter.plane.mounts import call_mount

root, run_dir, last = sys.argv[1:]
left = int(last)

def call(*mounting):
    global left
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    call_mount(*mounting)

probe(Path(root), Path(run_dir), call)
"""


def test_an_upper_directory_without_room_is_no_fault_of_the_file_system(machine: Machine) -> None:
    reason = machine.refused(lambda _source, _type, data: errno.ENOSPC if "upperdir=" in data else None)
    assert reason == f"no room in {machine.root} for the trial of the erofs plane: No space left on device"


@pytest.mark.parametrize("mounts", range(3))
def test_the_next_one_clears_up_after_one_that_was_killed(machine: Machine, mounts: int) -> None:
    command = [sys.executable, "-c", KILLED, str(machine.root), str(machine.run_dir), str(mounts)]
    assert subprocess.run(command, cwd=TOP, check=False).returncode == -signal.SIGKILL
    assert os.listdir(machine.run_dir) == ["p"]
    assert machine.probe().works


@pytest.mark.parametrize("mounts", range(3))
def test_what_a_killed_one_left_is_cleared_where_none_follows(machine: Machine, mounts: int) -> None:
    """As under the fuse plane, which tries nothing."""
    command = [sys.executable, "-c", KILLED, str(machine.root), str(machine.run_dir), str(mounts)]
    assert subprocess.run(command, cwd=TOP, check=False).returncode == -signal.SIGKILL
    # Of two overlays, one after the other, neither is left by who dies over the second.
    assert len(mounts_of(machine.run_dir)) == min(mounts, 1)
    clear_trial(machine.root, machine.run_dir)
    machine.check_that_nothing_is_left()
    # And where nothing is left nothing happens.
    clear_trial(machine.root, machine.run_dir)
    clear_trial(machine.root / "missing", machine.run_dir / "missing")
    machine.check_that_nothing_is_left()


def test_what_cannot_be_taken_away_is_said(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    (machine.run_dir / "p/m/foreign").mkdir(parents=True)
    with caplog.at_level(logging.WARNING):
        assert probe(machine.root, machine.run_dir).works
    assert f"leaves something behind: {machine.run_dir}/p/m: Directory not empty" in caplog.text
    (machine.run_dir / "p/m/foreign").rmdir()
    machine.probe()


def test_nothing_is_left_when_the_probe_itself_breaks(machine: Machine) -> None:
    def call(source: str, target: Path, fs_type: str, flags: int, data: str) -> None:
        call_mount(source, target, fs_type, flags, data)
        if fs_type == "overlay":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        probe(machine.root, machine.run_dir, call)
    machine.check_that_nothing_is_left()
