"""Which plane runs, and why."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from snapshotter.errors import PlaneError
from snapshotter.plane.erofs.backing import Backing
from snapshotter.plane.erofs.probing import Probe
from snapshotter.plane.probe import KernelFacts, PlaneChoice, choose_plane, read_facts

HERE = KernelFacts("6.12.0", has_fuse=True, request_timeouts_s=())


def works() -> Probe:
    return Probe(works=True, backing=Backing.LOOP, reason="loop devices are used")


def fails() -> Probe:
    return Probe(works=False, backing=None, reason="this kernel has no EROFS")


def not_asked() -> Probe:
    pytest.fail("the probe was run")


def test_auto_takes_the_erofs_plane_where_it_works_and_says_how() -> None:
    assert choose_plane("auto", HERE, works) == PlaneChoice(
        "erofs", "loop devices are used; kernel 6.12.0", (), Backing.LOOP
    )


def test_auto_takes_the_fuse_plane_else_and_says_why_it_is_not_the_other() -> None:
    assert choose_plane("auto", HERE, fails) == PlaneChoice(
        "fuse", "the erofs plane cannot run here: this kernel has no EROFS; kernel 6.12.0", (), None
    )


def test_fuse_is_taken_without_trying_the_other() -> None:
    assert choose_plane("fuse", HERE, not_asked) == PlaneChoice("fuse", "configured; kernel 6.12.0", (), None)


def test_erofs_is_taken_where_it_works() -> None:
    choice = choose_plane("erofs", HERE, works)
    assert choice == PlaneChoice("erofs", "configured; loop devices are used; kernel 6.12.0", (), Backing.LOOP)


def test_erofs_is_refused_else_with_what_is_missing_and_what_to_do() -> None:
    with pytest.raises(PlaneError, match=r'this kernel has no EROFS; kernel 6\.12\.0\. Or set plane to "auto"'):
        choose_plane("erofs", HERE, fails)


@pytest.mark.parametrize("wanted", ["auto", "fuse", "erofs"])
def test_machine_without_fuse_is_refused_with_what_to_do(wanted: str) -> None:
    with pytest.raises(PlaneError, match=r"both planes need: .*modprobe fuse"):
        choose_plane(wanted, KernelFacts("6.1.0", has_fuse=False, request_timeouts_s=()), not_asked)


def test_the_choice_alone_loads_nothing_that_mounts() -> None:
    code = "import sys, snapshotter.plane.probe; print([name for name in sys.modules if 'erofs' in name])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_request_timeouts_of_the_kernel_are_warned_of(tmp_path: Path) -> None:
    folder = tmp_path / "sys/fs/fuse"
    folder.mkdir(parents=True)
    (folder / "default_request_timeout").write_text("0\n")
    (folder / "max_request_timeout").write_text("120\n")
    facts = read_facts(tmp_path, Path("/dev/null"))
    assert facts == KernelFacts(os.uname().release, has_fuse=True, request_timeouts_s=(("max_request_timeout", 120),))
    (warning,) = choose_plane("auto", facts, fails).warnings
    assert "fs.fuse.max_request_timeout is 120 s" in warning


def test_kernel_without_these_sysctls_is_not_warned_of(tmp_path: Path) -> None:
    facts = read_facts(tmp_path, tmp_path / "fuse")
    assert facts == KernelFacts(os.uname().release, has_fuse=False, request_timeouts_s=())
