"""The flags of EROFS mounts: strict for who looks into them, without effect on overlays made of them."""

import hashlib
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from snapshotter.errors import PlaneError
from snapshotter.format.erofs import write_image
from snapshotter.plane.mounts import mount
from tests.doubles.layers import block, char, dir, file, layer, symlink
from tests.plane.conftest import Place


def used_by_somebody(merged: Path) -> list[object]:
    """What a user gets of programs and devices in a directory `d`."""

    def run(*command: str) -> str:
        # The user changes after the directory: those above may be closed to others.
        done = subprocess.run(command, cwd=merged / "d", user=1234, group=1234, capture_output=True, check=True)
        return done.stdout.decode().strip()

    (merged / "d/null").write_bytes(b"swallowed")
    with open(merged / "d/loop", "rb"):
        pass
    return [run("./user", "-u"), run("./link", "-u"), run("./group", "-g"), run("./plain", "-u"), run("./empty.sh")]


def test_programs_and_devices_work_in_an_overlay_as_if_the_layer_were_unpacked(place: Place) -> None:
    program = Path(shutil.which("id") or "").read_bytes()
    script = b"#!/bin/sh\n"
    flat, contents = place.folder / "flat/d", place.folder / "contents"
    flat.mkdir(parents=True)
    for name, mode, data in (
        ("user", 0o4755, program),
        ("group", 0o2755, program),
        ("plain", 0o755, program),
        ("empty.sh", 0o755, script),
    ):
        (flat / name).write_bytes(data)
        (flat / name).chmod(mode)
        digest = hashlib.sha256(data).hexdigest()
        (contents / "node" / digest[:2]).mkdir(parents=True, exist_ok=True)
        (contents / "node" / digest[:2] / digest).write_bytes(data)
    (flat / "link").symlink_to("user")
    os.mknod(flat / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(flat / "loop", stat.S_IFBLK | 0o600, os.makedev(7, 0))
    built = layer(
        dir("d"),
        file("d/user", program, mode=0o4755),
        file("d/group", program, mode=0o2755),
        file("d/plain", program, mode=0o755),
        file("d/empty.sh", script, mode=0o755),
        symlink("d/link", "user"),
        char("d/null", 1, 3, mode=0o666),
        block("d/loop", 7, 0, mode=0o600),
    )
    (place.folder / "layer.erofs").write_bytes(write_image(built.index(), b"/node"))
    point = place.mounts().ensure(1, place.folder / "layer.erofs")
    seen: list[list[object]] = []
    for lower, options in ((f"{place.folder}/flat:{contents}", ""), (f"{point}::{contents}", ",metacopy=on")):
        merged = place.folder / f"merged{len(seen)}"
        merged.mkdir()
        try:
            mount("overlay", merged, "overlay", 0, f"lowerdir={lower}{options}")
        except PlaneError as error:
            pytest.skip(f"no data-only layers: {error}")
        seen.append(used_by_somebody(merged))
    assert seen[0] == seen[1] == ["0", "0", "0", "1234", ""]


def test_who_looks_into_the_mounts_can_neither_run_programs_nor_open_devices_nor_write(place: Place) -> None:
    built = layer(dir("d"), file("d/program", mode=0o4755), char("d/null", 1, 3))
    (place.folder / "layer.erofs").write_bytes(write_image(built.index(), b"/node"))
    point = place.mounts().ensure(1, place.folder / "layer.erofs")
    with pytest.raises(PermissionError):
        subprocess.run([point / "d/program"], check=False)
    with pytest.raises(PermissionError):
        (point / "d/null").read_bytes()
    with pytest.raises(OSError, match="Read-only"):
        (point / "d/file").touch()
