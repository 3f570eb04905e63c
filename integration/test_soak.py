"""Containers read without an end in sight while registry and daemon fail: never a wrong byte, and nothing is left behind."""

import random
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

import pytest

from integration.harness.node import Node
from integration.harness.registry import Registry
from integration.soak.images import FOLDER, contents, path_hash, soak_images, soak_program
from integration.soak.ledger import Ledger
from integration.soak.plan import KINDS, Plan
from integration.soak.report import SETTLES_S, complaints
from integration.soak.scenario import Findings, soak
from integration.soak.watcher import Sample, Watcher

SHORT_S = 15.0
LONG_S = 1800.0
NAMES = ("small-1000", "none-0", "page-4096", "large-300000")
LOOK_S, LONG_LOOK_S = 0.5, 30.0
ENOUGH = 200
"""Actions, each of which is one of many at random."""


def test_two_nodes_whose_daemons_are_killed_show_no_wrong_byte_and_leave_nothing(
    registry: Registry, erofs: str
) -> None:
    findings = soak(registry, Plan(SHORT_S, 1, ("erofs-killed", "fuse-killed")))
    assert complaints(findings) == []
    counts = findings.ledger.counts
    assert all(counts[what] for what in ("containers", "bytes verified")), counts
    assert counts["kills"] + counts["kills of a daemon that starts"] + counts["terminations"], counts
    assert findings.failed_requests


@pytest.mark.long
def test_after_half_an_hour_everything_is_as_it_was_after_ten_minutes(registry: Registry, erofs: str) -> None:
    assert complaints(soak(registry, Plan(LONG_S, 1, tuple(KINDS)))) == []


# The judges themselves


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder with files of `NAMES`, as they should be, and the program beside it."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name, data in contents(NAMES).items():
        (folder / name).write_bytes(data)
    program = tmp_path / "soak"
    program.write_bytes(soak_program())
    program.chmod(0o755)
    return folder


def looked_at(tree: Path) -> tuple[int, list[str]]:
    """The exit code of the program that reads the tree, and its lines, once it has done enough or found something."""
    total = sum(path_hash(f"{tree}/{name}") for name in NAMES) % (1 << 64)
    seconds = LOOK_S
    while True:
        words = ["run", str(seconds), "1", "0", str(tree), str(len(NAMES)), str(total)]
        done = subprocess.run([tree.parent / "soak", *words], capture_output=True, text=True, check=False)
        lines = done.stdout.splitlines()
        if done.returncode or int(lines[-1].split()[1]) >= ENOUGH or seconds > LONG_LOOK_S:
            return done.returncode, lines
        # It goes by the clock, also where it gets no processor.
        seconds *= 2


def flip(tree: Path) -> None:
    with open(tree / "large-300000", "r+b") as file:
        file.seek(123_456)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))


DAMAGES: Mapping[str, tuple[Callable[[Path], object], str]] = {
    "a bit": (flip, "large-300000 @123456: wrong byte"),
    "zeros": (lambda tree: (tree / "page-4096").write_bytes(bytes(4096)), "page-4096 @0: wrong byte"),
    "too short": (lambda tree: (tree / "small-1000").write_bytes(b""), "wrong size"),
    "missing": (lambda tree: (tree / "none-0").unlink(), "other names than there should be"),
    "one more": (
        lambda tree: shutil.copy(tree / "small-1000", tree / "other-1000"),
        "other names than there should be",
    ),
}


def test_program_of_the_soak_finds_nothing_where_nothing_is_wrong(tree: Path) -> None:
    code, (line,) = looked_at(tree)
    word, actions, verified, faults, _, _ = line.split()
    assert (code, word, faults) == (0, "done", "0")
    assert int(actions) >= ENOUGH
    assert int(verified) > sum(int(name.rpartition("-")[2]) for name in NAMES)


@pytest.mark.parametrize("damage", DAMAGES)
def test_program_of_the_soak_finds(tree: Path, damage: str) -> None:
    hurt, expected = DAMAGES[damage]
    hurt(tree)
    code, lines = looked_at(tree)
    assert code == 1
    assert any(line.startswith("fault ") and expected in line for line in lines), lines


def test_images_are_several_times_the_quota_and_every_file_tells_its_size() -> None:
    images = soak_images()
    assert sum(image.content for image in images) > 30 << 20
    paths = [(path, len(data)) for image in images for one in image.layers for path, data in one.files.items()]
    named = [(path, size) for path, size in paths if f"/{path}".startswith(f"{FOLDER}/")]
    assert len(named) > 400
    assert all(path.endswith(f"-{size}") for path, size in named if ".wh." not in path)


def findings_of(figure: Callable[[float], float]) -> Findings:
    """Those of a soak in which nothing happened but that descriptors went so."""
    # It has looked already, and needs no node.
    watcher = Watcher(cast("Node", None), lambda: 1.0, 0.0)
    dice = random.Random(1)
    for at in range(0, int(SETTLES_S), 5):
        noise = dice.uniform(0.8, 1.2)
        watcher.samples.append(Sample(at, at, {"daemon: other descriptors": noise * figure(at / SETTLES_S)}))
    return Findings(Plan(SETTLES_S, 1, ("erofs-calm",)), Ledger(), {"erofs-calm": watcher}, {}, 0, 0)


def test_a_figure_that_wavers_is_flat_and_one_that_grows_is_not() -> None:
    assert complaints(findings_of(lambda _: 200.0)) == []
    (complaint,) = complaints(findings_of(lambda passed: 100.0 + 40.0 * passed))
    assert complaint.startswith("erofs-calm: daemon: other descriptors: ")
