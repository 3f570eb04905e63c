"""Which plane runs, and why."""

import os
from pathlib import Path

import pytest

from snapshotter.errors import PlaneError
from snapshotter.plane.probe import KernelFacts, choose_plane, read_facts

HERE = KernelFacts("6.1.0", has_fuse=True, request_timeouts_s=())


@pytest.mark.parametrize("wanted", ["auto", "fuse"])
def test_fuse_is_chosen_with_a_reason_that_names_the_kernel(wanted: str) -> None:
    choice = choose_plane(wanted, HERE)
    assert choice.plane == "fuse"
    assert "6.1.0" in choice.reason
    assert choice.warnings == ()


def test_erofs_is_refused_with_what_to_do() -> None:
    with pytest.raises(PlaneError, match='set plane to "auto" or "fuse"'):
        choose_plane("erofs", HERE)


def test_machine_without_fuse_is_refused_with_what_to_do() -> None:
    with pytest.raises(PlaneError, match="modprobe fuse"):
        choose_plane("auto", KernelFacts("6.1.0", has_fuse=False, request_timeouts_s=()))


def test_request_timeouts_of_the_kernel_are_warned_of(tmp_path: Path) -> None:
    folder = tmp_path / "sys/fs/fuse"
    folder.mkdir(parents=True)
    (folder / "default_request_timeout").write_text("0\n")
    (folder / "max_request_timeout").write_text("120\n")
    facts = read_facts(tmp_path, Path("/dev/null"))
    assert facts == KernelFacts(os.uname().release, has_fuse=True, request_timeouts_s=(("max_request_timeout", 120),))
    (warning,) = choose_plane("auto", facts).warnings
    assert "fs.fuse.max_request_timeout is 120 s" in warning


def test_kernel_without_these_sysctls_is_not_warned_of(tmp_path: Path) -> None:
    facts = read_facts(tmp_path, tmp_path / "fuse")
    assert facts == KernelFacts(os.uname().release, has_fuse=False, request_timeouts_s=())
