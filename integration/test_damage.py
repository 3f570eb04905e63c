"""Content and metadata that somebody damaged, deleted or evicted: found, had again, and never served wrong."""

import hashlib
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from integration.conftest import ALONE, StartNode
from integration.harness.cri import Container
from integration.harness.leftovers import detach_mounts
from integration.harness.node import Node, node
from integration.harness.process import wait_for
from integration.harness.registry import Registry
from integration.images.trial import FILES_IN_FOLDER, FOLDERS, PROBE, content, expected, large, probe_program

SLEEP = ("/bin/busybox", "sleep", "1000")
FOUND = 11
"""Exit code of `cache verify` that found something."""


@pytest.fixture(scope="module")
def this(registry: Registry, trial_image: str, erofs: str) -> Iterator[Node]:
    """A node for all tests but those that restart the daemon."""
    with node(registry, settings=ALONE, plane=erofs) as made:
        made.sandbox()
        made.pull(trial_image)
        yield made


def started(this: Node) -> Container:
    """A running container whose tools are on the node."""
    box = this.start(this.reference("trial:lazy"), *SLEEP)
    assert box.exec(["/bin/busybox", "sh", "-c", "/bin/probe uid"]).stdout == "0 0\n"
    return box


def read(box: Container, path: str) -> str:
    """What the probe says of a file."""
    return box.exec([PROBE, "read", path]).stdout


def object_of(this: Node, data: bytes) -> Path:
    """Where a small file's content lies, if it does."""
    (place,) = (this.daemon.root / "objects").iterdir()
    name = hashlib.sha256(data).hexdigest()
    return place / "node" / name[:2] / name


def files_in(folder: Path) -> dict[Path, bytes]:
    """Every file of a folder with its bytes, but for those that go while they are looked at."""
    found = {}
    for path in folder.iterdir():
        with suppress(FileNotFoundError):
            found[path] = path.read_bytes()
    return found


def test_object_that_somebody_deleted_is_named_and_fetched_again(this: Node) -> None:
    box, data = started(this), content("damage", 1)
    assert read(box, "/damage/1") == expected(data)
    object_of(this, data).unlink()
    code, found = this.daemon.verify_cache()
    assert (code, found["bad"]) == (FOUND, [])
    assert [file["name"] for file in found["missing"]] == ["sha256:" + hashlib.sha256(data).hexdigest()]
    # The kernel has it still, for whoever has met it; the next one makes it come again.
    assert read(box, "/damage/1") == expected(data)
    assert read(started(this), "/damage/1") == expected(data)
    assert object_of(this, data).read_bytes() == data
    assert this.daemon.verify_cache()[0] == 0


def test_object_whose_bytes_changed_is_found_removed_and_fetched_again(this: Node) -> None:
    data, program = content("damage", 2), probe_program() + b"damage"
    box = started(this)
    assert read(box, "/damage/2") == expected(data)
    assert box.exec(["/damage/program", "uid"]).stdout == "0 0\n"
    for one in (data, program):
        with open(object_of(this, one), "r+b") as damaged:
            damaged.seek(len(one) - 2)
            damaged.write(b"?")
    code, found = this.daemon.verify_cache()
    assert (code, found["missing"]) == (FOUND, [])
    assert {file["name"] for file in found["bad"]} == {
        "sha256:" + hashlib.sha256(one).hexdigest() for one in (data, program)
    }
    other = started(this)
    assert read(other, "/damage/2") == expected(data)
    assert read(other, "/damage/program") == expected(program)
    assert this.daemon.verify_cache()[0] == 0


def test_object_cut_short_is_not_taken_for_the_file(this: Node) -> None:
    data = content("damage", 3)
    assert read(started(this), "/damage/3") == expected(data)
    os.truncate(object_of(this, data), 5)
    code, found = this.daemon.verify_cache()
    assert (code, [file["name"] for file in found["bad"]]) == (FOUND, ["sha256:" + hashlib.sha256(data).hexdigest()])
    assert read(started(this), "/damage/3") == expected(data)


def test_files_that_are_open_or_mapped_stay_right_when_the_cache_is_emptied(this: Node) -> None:
    box = started(this)
    held = {"/tree/1": content("tree", 1), "/tree/large": large("tree"), "/tree/program": probe_program() + b"tree"}
    for number, path in enumerate(held):
        hold = f"{PROBE} hold {path} /tmp/go > /tmp/said-{number} 2>&1 < /dev/null &"
        box.exec(["/bin/busybox", "sh", "-c", hold])
    wait_for(lambda: len(this.processes("hold")) == len(held), "the start of those who hold files")
    said = this.rootfs(box) / "tmp"
    wait_for(lambda: all((said / f"said-{n}").read_text() == "hold ok\n" for n in range(len(held))), "their files")
    assert read(box, "/tree/2") == expected(content("tree", 2))
    this.daemon.command("cache", "prune", "--all")
    assert not object_of(this, held["/tree/1"]).exists()
    (said / "go").touch()
    wait_for(lambda: not this.processes("hold"), "the end of those who hold files")
    for number, data in enumerate(held.values()):
        assert (said / f"said-{number}").read_text() == "hold ok\n" + expected(data) + expected(data, "map")
    assert read(box, "/tree/2") == expected(content("tree", 2))
    other = started(this)
    for path, data in held.items():
        assert read(other, path) == expected(data)


def test_container_that_needs_more_than_the_quota_reads_everything_right(
    start_node: StartNode, trial_image: str, erofs: str
) -> None:
    quota = 4 << 20
    this = start_node({**ALONE, "cache": {"min_free": 0, "quota": quota}}, plane=erofs)
    this.pull(trial_image)
    box = started(this)
    for _ in range(2):
        for folder in FOLDERS:
            files = {str(number): content(folder, number) for number in range(0, FILES_IN_FOLDER, 6)}
            files |= {"large": large(folder), "program": probe_program() + folder.encode()}
            script = "; ".join(f"{PROBE} read /{folder}/{name}" for name in files)
            assert box.exec(["/bin/busybox", "sh", "-c", script]).stdout == "".join(map(expected, files.values()))
    wait_for(lambda: this.daemon.json("status")["cache_used"] <= quota, "an eviction")
    assert this.daemon.json("status")["integrity_failures"] == 0


def test_metadata_images_that_are_damaged_or_gone_are_written_again_without_the_network(
    start_node: StartNode, trial_image: str, erofs: str
) -> None:
    this = start_node(ALONE, plane=erofs)
    image = this.pull(trial_image)
    assert this.run(image, PROBE, "read", "/change/1").stdout == expected(content("change", 1))
    folder = this.daemon.root / "erofs"
    good = files_in(folder)
    assert len(good) == 3
    this.daemon.stop(signal.SIGKILL)
    for name in ("e", "fuse"):  # as after the machine was started anew
        detach_mounts(this.daemon.run_dir / name)
    wait_for(lambda: not (this.daemon.run_dir / "keeper.sock").exists(), "the keeper's end")
    shutil.rmtree(this.daemon.run_dir)
    flipped, cut, other_revision = good
    with open(flipped, "r+b") as damaged:
        damaged.seek(len(good[flipped]) // 2)
        damaged.write(b"damage")
    os.truncate(cut, 4096)
    other_revision.rename(other_revision.with_name(other_revision.name.replace(".erofs", "0.erofs")))
    with this.outage():
        this.daemon.start()
        this.wait_until_served()
        # The first container need not wait until the images are written.
        for mounts in (range(4), [3]):
            output = this.run(this.reference(trial_image), PROBE, "read", "/change/1")
            assert output.stdout == expected(content("change", 1))
            assert len([mount for mount in this.mounts() if mount.kind == "erofs"]) in mounts
            wait_for(lambda: files_in(folder) == good, "the images' return")
    assert this.daemon.json("status")["problems"] == []
