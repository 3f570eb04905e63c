"""On the erofs plane the kernel answers by itself: what it asks the daemon for is counted, and without a daemon it goes on."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from integration.conftest import ALONE, FILLING, StartNode
from integration.fidelity import differences, report
from integration.harness.containerd import run
from integration.harness.node import Node, node
from integration.harness.process import wait_for
from integration.harness.registry import Registry
from integration.harness.roots import Roots
from integration.images.trial import CHUNK, FILES_IN_FOLDER, FOLDERS, PROBE, content, expected, large, probe_program
from snapshotter.plane.erofs.gate import PATIENCE_S

SLEEP = ("/bin/busybox", "sleep", "1000")
Asked = Callable[[], dict[str, int]]


@pytest.fixture(scope="module")
def fresh(registry: Registry, trial_image: str, whole_node: Node, erofs: str) -> Iterator[Node]:
    """A node on which nothing of the image is, but for its tools. The oracle is there before, or it would end with it."""
    with node(registry, settings=ALONE, plane=erofs) as made:
        made.sandbox()
        # Its tools lie there as files before the first container of a test looks for them.
        made.run(made.pull(trial_image), "/bin/busybox", "sh", "-c", "/bin/probe uid")
        wait_for_releases(made, 0)
        yield made


@pytest.fixture(scope="module")
def filled(registry: Registry, trial_image: str, whole_node: Node, erofs: str) -> Iterator[Node]:
    """A node on which everything of the image is before its first container starts."""
    with node(registry, settings=FILLING, plane=erofs) as made:
        made.sandbox()
        made.pull(trial_image)
        made.wait_until_complete(trial_image)
        yield made


def asked(this: Node) -> Asked:
    """Counts what the kernel asks, from call to call."""
    last = this.fuse_requests()

    def since() -> dict[str, int]:
        nonlocal last
        now = this.fuse_requests()
        found, last = dict(now - last), now
        return found

    return since


def open_files(this: Node) -> int:
    """How many opens have had no release yet."""
    counts = this.fuse_requests()
    return counts["open"] - counts["release"]


def wait_for_releases(this: Node, left: int) -> None:
    """The kernel sends a release after close has returned."""
    wait_for(lambda: open_files(this) <= left, "the release of files")


def wait_for_name(this: Node, data: bytes) -> None:
    """The last reader of a large file may be answered before the whole has the name by which the kernel finds it."""
    digest = hashlib.sha256(data).hexdigest()
    named = (this.daemon.root / "objects").glob
    wait_for(lambda: any(named(f"*/node/{digest[:2]}/{digest}-*[!p]")), "the name of a large file")


def cost(this: Node, since: Asked, path: Path, data: bytes) -> dict[str, int] | None:
    """What reading a small file asks for that is found natively then; None if its answer came too late for that.

    The gate then gives an inode, and the container that has found it reads through FUSE.
    """
    left, began = open_files(this), time.monotonic()
    assert path.read_bytes() == data
    in_time = time.monotonic() < began + PATIENCE_S
    if not in_time:
        wait_for_releases(this, left)
    found = since()
    return found if in_time else None


def look_at_everything(tree: Path) -> int:
    """lstat, list, read links and attributes of everything below; returns how many entries there are."""
    subprocess.run(["find", tree, "-xdev", "-ls"], stdout=subprocess.DEVNULL, check=True)
    subprocess.run(["getfattr", "-R", "-h", "-d", "-m", "-", tree], stdout=subprocess.DEVNULL, check=True)
    return sum(len(folders) + len(names) for _, folders, names in os.walk(tree))


@contextmanager
def pinned(*directories: Path) -> Iterator[None]:
    """They stay known to the kernel, whoever drops caches on this machine meanwhile."""
    held = [os.open(directory, os.O_PATH) for directory in directories]
    try:
        yield
    finally:
        for descriptor in held:
            os.close(descriptor)


def session(this: Node) -> Path:
    """Where the FUSE mount has gate and failure."""
    return this.daemon.run_dir / "fuse" / "1"


def shards(this: Node) -> list[Path]:
    """The gate's directories."""
    (place,) = os.listdir(this.daemon.root / "objects")
    return [session(this) / "gate" / place / "node" / f"{number:02x}" for number in range(256)]


def test_names_attributes_and_links_cost_no_request_though_nothing_is_fetched(fresh: Node) -> None:
    box = fresh.start(fresh.reference("trial:lazy"), *SLEEP)
    assert box.exec([PROBE, "uid"]).stdout == "0 0\n"
    since = asked(fresh)
    assert look_at_everything(fresh.rootfs(box)) > len(FOLDERS) * FILES_IN_FOLDER
    assert box.exec(["/bin/busybox", "sh", "-c", "ls -laR /tree /layers /special && stat /change/*"]).exit_code == 0
    assert since() == {}


def test_small_file_costs_one_lookup_and_nothing_afterwards(fresh: Node) -> None:
    box, other = (fresh.start(fresh.reference("trial:lazy"), *SLEEP) for _ in range(2))
    assert other.exec([PROBE, "uid"]).stdout == "0 0\n"
    with pinned(*shards(fresh)):
        since = asked(fresh)
        costs = {
            number: cost(fresh, since, fresh.rootfs(box) / f"requests/{number}", content("requests", number))
            for number in range(FILES_IN_FOLDER)
        }
        native = [number for number, found in costs.items() if found is not None]
        assert native
        assert all(costs[number] == {"lookup": 1} for number in native)
        for tree, numbers in ((fresh.rootfs(box), native), (fresh.rootfs(other), range(FILES_IN_FOLDER))):
            for number in numbers:
                assert (tree / f"requests/{number}").read_bytes() == content("requests", number)
        assert since() == {}


def test_first_file_of_a_node_costs_the_way_to_it_too(start_node: StartNode, erofs: str, trial_image: str) -> None:
    node = start_node(ALONE, plane=erofs)
    node.pull(trial_image)
    roots = Roots(node)
    with pinned(session(node)):
        since = asked(node)
        with roots.active("first", roots.of_image(trial_image)) as tree:
            # Mounting finds the directories of the gate and of failure, and asks both for their file system.
            assert since() == {"lookup": 2, "statfs": 2}
            # The secret place, the sharing domain, the two-digit directory, the file.
            assert cost(node, since, tree / "change/0", content("change", 0)) in ({"lookup": 4}, None)
            with roots.active("second", roots.of_image(trial_image)) as other:
                assert (other / "change/0").read_bytes() == content("change", 0)
                assert since() == {"statfs": 2}


def test_large_file_is_read_in_parts_and_once_whole_without_a_request(fresh: Node) -> None:
    data = large("requests")
    first, second = (fresh.start(fresh.reference("trial:lazy"), *SLEEP) for _ in range(2))
    before, since, open_before = fresh.traffic(), asked(fresh), open_files(fresh)
    with open(fresh.rootfs(first) / "requests/large", "rb") as part:
        assert part.read(100) == data[:100]
    # The second of three chunks is asked for ahead.
    assert fresh.traffic().since(before).received < 2 * CHUNK + 10_000
    assert (fresh.rootfs(first) / "requests/large").read_bytes() == data
    wait_for_releases(fresh, open_before)
    wait_for_name(fresh, data)
    assert set(since()) == {"lookup", "open", "read", "release"}
    assert (fresh.rootfs(second) / "requests/large").read_bytes() == data
    assert since() == {}


def test_hundreds_who_ask_at_once_fetch_everything_once(fresh: Node) -> None:
    boxes = [fresh.start(fresh.reference("trial:lazy"), *SLEEP) for _ in range(3)]
    wanted = {f"tree/{number}": content("tree", number) for number in range(FILES_IN_FOLDER)}
    wanted |= {f"{folder}/program": probe_program() + folder.encode() for folder in ("tree", "attack")}
    files = [(fresh.rootfs(box) / name, data) for box in boxes for name, data in wanted.items() for _ in range(4)]
    before = fresh.traffic()
    with ThreadPoolExecutor(len(files)) as threads:
        assert all(threads.map(lambda file: file[0].read_bytes() == file[1], files))
    # Twelve would fetch each of them; what little compresses of the two programs counts once.
    assert fresh.traffic().since(before).received < 2 * len(probe_program())


@contextmanager
def bundle(this: Node, tree: Path, *command: str) -> Iterator[Callable[[], str]]:
    """A container of runc alone over a mounted tree; call what is given to run it and get what it prints."""
    place = this.place / f"bundle-{tree.name}"
    place.mkdir()
    run(["runc", "spec", "--bundle", str(place)])
    spec = json.loads((place / "config.json").read_text())
    spec["process"] |= {"terminal": False, "args": list(command)}
    spec["root"] = {"path": str(tree), "readonly": False}
    spec["linux"]["cgroupsPath"] = f"/{this.place.name}/{tree.name}"
    (place / "config.json").write_text(json.dumps(spec))
    runc = ["runc", "--root", str(this.place / "runc-alone")]
    yield lambda: run([*runc, "run", "--bundle", str(place), tree.name], timeout_s=120)


def test_container_of_a_filled_image_asks_for_no_file(filled: Node, whole_node: Node) -> None:
    lookups = []
    with pinned(session(filled)):
        since = asked(filled)
        for _ in range(2):
            box = filled.start(filled.reference("trial:lazy"), *SLEEP)
            assert box.exec(["/change/program", "uid"]).stdout == "0 0\n"
            assert box.exec([PROBE, "read", "/change/large"]).stdout == expected(large("change"))
            look_at_everything(filled.rootfs(box))
            found = since()
            lookups.append(found.pop("lookup", 0))
            # Its mounts were made, and each asks the directories of the gate and of failure for their file system.
            assert found.keys() == {"statfs"}
    # Those two are found once in the life of a daemon.
    assert lookups == [2, 0]
    whole_node.pull_whole("trial:lazy")
    with filled.view("trial:lazy") as left, whole_node.view("trial:lazy", namespace="default") as right:
        assert report(differences(left, right)) == ""
    assert since().keys() == {"statfs"}


def test_containers_go_on_and_start_without_the_daemon_once_everything_is_fetched(
    start_node: StartNode, erofs: str, trial_image: str
) -> None:
    node = start_node(FILLING, plane=erofs)
    node.pull(trial_image)
    node.wait_until_complete(trial_image)
    box = node.start(node.reference(trial_image), *SLEEP)
    tree = node.rootfs(box)
    roots = Roots(node)
    with (
        roots.active("later", roots.of_image(trial_image)) as later,
        bundle(node, later, "/tree/program", "read", "/tree/large") as start_later,
        node.outage(),
    ):
        node.daemon.stop(signal.SIGKILL)
        assert look_at_everything(tree) > 100
        for number in range(FILES_IN_FOLDER):
            assert (tree / f"damage/{number}").read_bytes() == content("damage", number)
        for folder in FOLDERS:
            assert box.exec([f"/{folder}/program", "uid"]).stdout == "0 0\n"
            assert box.exec([PROBE, "read", f"/{folder}/large"]).stdout == expected(large(folder))
        changed = box.exec(["/bin/busybox", "sh", "-c", "chmod 600 /kill/1 && echo x >> /kill/2 && mv /kill /killed"])
        assert (changed.exit_code, changed.stderr) == (0, "")
        assert start_later() == expected(large("tree"))
        shutil.rmtree(later / "tree")
        assert not (later / "tree").exists()
