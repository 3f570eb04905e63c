"""`snapshotter image optimize` with a real containerd: what a container read is in front, and nothing of it is left behind."""

import gzip
import io
import json
import os
import pty
import random
import select
import signal
import subprocess
import tarfile
import termios
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from integration.conftest import BUILD, QUIET
from integration.harness.daemon import SNAPSHOTTER, snapshotter
from integration.harness.leftovers import MARKER, processes_rooted_in
from integration.harness.node import LAZY, Node, node
from integration.harness.process import wait_for
from integration.harness.registry import Registry
from integration.images.script import (
    FIRST,
    LINE,
    NEVER,
    SCRIPT,
    SECOND,
    SHELL,
    SLEEPER,
    UID,
    libraries,
    script_image,
)

TIMEOUT_S = 120
ROUNDS = 2
LONGEST_RUN_S = 1.5
LANDMARK = ".prefetch.landmark"
SOURCE, TARGET = "script:plain", "script:optimized"
# Longer than any of these takes: what ends them is something else.
NEVER_OVER = ("--period", "1000")


@pytest.fixture(scope="module")
def place(registry: Registry) -> Iterator[Node]:
    """A node with our snapshotter, which these tests share: none of them may leave anything on it."""
    with registry.client() as client:
        script_image(BUILD / "script").push(client, SOURCE)
    with node(registry, settings=QUIET) as made:
        yield made


@pytest.fixture(autouse=True)
def nothing_is_left(place: Node) -> Iterator[None]:
    """No test leaves anything behind, but what it pulled itself and removes."""
    yield
    assert remains(place) == {}


def begin(
    node: Node, *options: str, source: str = SOURCE, target: str = TARGET, **streams: Any
) -> subprocess.Popen[str]:
    """Start an optimization, in a namespace whose name is that of the control group that the harness removes."""
    argv = [*SNAPSHOTTER, "image", "optimize", "--plain-http", "--containerd", str(node.containerd.address)]
    argv += ["--namespace", node.place.name, "--scratch", str(scratch(node)), *options]
    env = {**os.environ, MARKER: os.environ.get(MARKER, ""), "HOME": str(node.place.folder), "ESTARGZ_TRACEBACK": "1"}
    for variable in ("CONTAINERD_NAMESPACE", "CONTAINERD_ADDRESS", "DOCKER_CONFIG"):
        env.pop(variable, None)
    given = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
    places = [name if ":/" in name or "containerd:" in name else node.reference(name) for name in (source, target)]
    return subprocess.Popen([*argv, *places], text=True, env=env, **given)


def end(process: subprocess.Popen[str], words: str | None = None) -> tuple[int, str, str]:
    """Exit code and what it said."""
    out, said = process.communicate(words, timeout=TIMEOUT_S)
    return process.returncode, out, said


def optimize(node: Node, *options: str, source: str = SOURCE, target: str = TARGET) -> tuple[str, str]:
    """Optimize the image, and return what was said on both streams."""
    code, out, said = end(begin(node, *options, source=source, target=target))
    assert code == 0, said
    return out, said


def scratch(node: Node) -> Path:
    """Where the command keeps what it needs meanwhile."""
    folder = node.place / "scratch"
    folder.mkdir(exist_ok=True)
    return folder


def remains(node: Node) -> dict[str, list[str]]:
    """All that is there of runs."""
    ctr = node.ctr(node.place.name)
    found = {
        "containers": ctr("containers", "ls", "--quiet").split(),
        "tasks": ctr("tasks", "ls", "--quiet").split(),
        "images": ctr.images(),
        "content": ctr.content(),
        "leases": ctr("leases", "ls", "--quiet").split(),
        "lazy snapshots": ctr.snapshots(LAZY),
        "snapshots": ctr.snapshots("overlayfs"),
        "scratch": os.listdir(scratch(node)),
        "mounts": sample_mounts(node),
        "processes": [str(pid) for pid in processes_rooted_in(node.place.folder)],
    }
    return {kind: names for kind, names in found.items() if names}


def sample_mounts(node: Node) -> list[str]:
    """Roots of sample containers."""
    return [mount.path for mount in node.mounts() if "estargz-sample" in mount.path]


def fronts(node: Node, tag: str = "optimized") -> list[list[str]]:
    """For each layer, lowest first, the names of regular files before the landmark, in order."""
    found = []
    with node.registry.client() as client:
        for layer in client.manifest("script", tag)["layers"]:
            entries = toc(client.blob("script", layer["digest"]))
            names = [entry["name"] for entry in entries if entry["type"] == "reg"]
            found.append(names[: names.index(LANDMARK)] if LANDMARK in names else [])
    return found


def toc(blob: bytes) -> Sequence[Any]:
    """The entries of an eStargz blob's table of contents, read by other means than ours."""
    # The footer is the last 51 bytes; its extra field ends with the offset in 16 hexadecimal digits and "STARGZ".
    footer = blob[-51:]
    offset = int(footer[16:32], 16)
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(blob[offset:-51]))) as tar:
        content = tar.extractfile("stargz.index.json")
        assert content is not None
        return list(json.load(content)["entries"])


def recorded(path: Path) -> list[str]:
    """The paths of a record file."""
    return [json.loads(line)["path"] for line in path.read_text().splitlines()]


def test_what_the_program_reads_until_it_is_ready_is_in_front_in_order(place: Node) -> None:
    out, said = optimize(place, "--wait-on-line", LINE, *NEVER_OVER)
    lower, upper = fronts(place)
    assert upper == [SCRIPT, FIRST, SECOND]
    assert lower[:2] == ["etc/passwd", "etc/group"]
    assert (lower[2], lower[-1]) == (SHELL, SLEEPER)
    assert set(lower[3:-1]) == libraries()
    assert f"first from /app as {UID}\n" in out
    assert "second hello\n" in said
    assert NEVER not in upper
    assert out.splitlines()[-1].startswith(f"{place.reference(TARGET)}@sha256:")


@contextmanager
def ready(node: Node, *options: str, **more: Any) -> Iterator[subprocess.Popen[str]]:
    """A run whose program has said that it is ready; the block ends it."""
    process = begin(node, *NEVER_OVER, *options, **more)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if line.strip() == LINE:
                break
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def is_there(node: Node, tag: str) -> bool:
    """Whether the registry has the image of this tag."""
    with node.registry.client() as client:
        return client.has("script", tag)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_makes_no_image(place: Node, number: int) -> None:
    with ready(place, target="script:interrupted") as process:
        process.send_signal(number)
        code, out, said = end(process)
    assert (code, out) == (130, ""), said
    assert not is_there(place, "interrupted")


def test_signal_that_is_waited_for_ends_the_run_alone(place: Node) -> None:
    with ready(place, "--wait-on-signal", target="script:signalled") as process:
        process.send_signal(signal.SIGINT)
        code, out, said = end(process)
    assert code == 0, said
    # The image names a stop signal, for which its program has an answer, which is shown.
    assert "told to end" in out.splitlines()
    assert fronts(place, "signalled")[1] == [SCRIPT, FIRST, SECOND]


def test_program_that_does_not_end_is_killed_after_the_period(place: Node) -> None:
    _, said = optimize(place, "--period", "0.5", "--args", '["stuck"]')
    assert "until the period was over" in said
    assert "exit code" not in said


def test_program_that_fails_is_told_and_what_it_read_counts(place: Node) -> None:
    _, said = optimize(place, *NEVER_OVER, "--args", '["fail"]')
    assert "the program ended with exit code 3" in said
    assert fronts(place)[1] == [SCRIPT, FIRST, SECOND]


def test_task_that_somebody_else_kills_counts_as_ended(place: Node) -> None:
    ctr = place.ctr(place.place.name)
    with ready(place) as process:
        (task,) = ctr("tasks", "ls", "--quiet").split()
        ctr("tasks", "kill", "--signal", "SIGKILL", task)
        code, _, said = end(process)
    assert code == 0, said
    assert "exit code 137" in said


def test_program_that_is_not_there_is_told(place: Node) -> None:
    code, out, said = end(begin(place, "--entrypoint", '["/no/such/program"]', target="script:none"))
    assert (code, out) == (61, "")
    assert "the sample container did not start" in said
    assert "no such file or directory" in said
    assert not is_there(place, "none")


def test_what_a_killed_command_left_the_next_one_removes(place: Node) -> None:
    with ready(place) as process:
        process.kill()
        process.communicate(timeout=TIMEOUT_S)
    left = remains(place)
    assert {"containers", "tasks", "leases", "snapshots", "scratch"} <= left.keys()
    _, said = optimize(place, "--wait-on-line", LINE)
    assert f"{left['containers'][0]}, left by a command that was killed, is removed" in said


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_command_that_ends_while_its_task_is_made_leaves_no_process_that_nobody_knows(place: Node, number: int) -> None:
    process = begin(place, *NEVER_OVER)
    # The root is mounted before the runtime is called.
    wait_for(lambda: bool(sample_mounts(place)), "the mount of the root", TIMEOUT_S)
    process.send_signal(number)
    code, _, said = end(process)
    assert code in (-signal.SIGKILL, 130), said
    if number == signal.SIGKILL:
        assert sample_mounts(place)
        optimize(place, "--wait-on-line", LINE)


def test_run_of_another_command_is_left_alone(place: Node) -> None:
    with ready(place, target="script:other") as process:
        optimize(place, "--wait-on-line", LINE)
        assert place.ctr(place.place.name)("tasks", "ls").count("RUNNING") == 1
        process.send_signal(signal.SIGINT)
        assert end(process)[0] == 130


def test_record_of_one_run_makes_the_same_image_without_a_run(place: Node) -> None:
    record = place.place / "record"
    out, _ = optimize(place, "--wait-on-line", LINE, "--record-out", str(record))
    assert recorded(record)[:3] == ["etc/passwd", "etc/group", SCRIPT]
    assert sorted(recorded(record)) == sorted(name for names in fronts(place) for name in names)
    again, said = optimize(place, "--record-in", str(record))
    assert again.splitlines()[-1] == out.splitlines()[-1]
    assert "files were read" not in said


def test_image_of_a_layout_and_one_that_containerd_has_make_the_same(place: Node) -> None:
    ready_line = ("--wait-on-line", LINE)
    digest = optimize(place, *ready_line)[0].rpartition("@")[2]
    ctr, reference = place.ctr(place.place.name), place.reference(SOURCE)
    ctr("images", "pull", "--plain-http", reference)
    try:
        before = remains(place)
        layout = f"oci:{place.place / 'layout'}:script"
        assert optimize(place, *ready_line, source=f"containerd:{reference}", target=layout)[0].endswith(digest)
        assert remains(place) == before
    finally:
        ctr("images", "rm", "--sync", reference)
    # What is optimized already has other layers, so they are unpacked from there.
    again = f"oci:{place.place / 'again'}:script"
    assert optimize(place, *ready_line, source=layout, target=again)[0].endswith(digest)


def test_image_that_is_pulled_lazily_runs_without_being_fetched(place: Node) -> None:
    optimize(place, "--wait-on-line", LINE)
    containerd = ("--containerd", str(place.containerd.address), "--namespace", place.place.name)
    lazy = place.reference(TARGET)
    snapshotter(["image", "pull", "--plain-http", *containerd, lazy])
    ctr = place.ctr(place.place.name)
    try:
        blobs = len(ctr.content())
        with ready(place, source=TARGET, target="script:again") as process:
            (name,) = ctr("containers", "ls", "--quiet").split()
            assert json.loads(ctr("containers", "info", name))["Snapshotter"] == LAZY
            assert len(ctr.content()) == blobs
            (task,) = ctr("tasks", "ls", "--quiet").split()
            ctr("tasks", "kill", "--signal", "SIGKILL", task)
            assert end(process)[0] == 0
        assert fronts(place, "again")[1][:3] == [SCRIPT, FIRST, SECOND]
    finally:
        ctr("images", "rm", "--sync", lazy)


def test_input_reaches_the_program_and_its_end_too(place: Node) -> None:
    process = begin(place, "-i", *NEVER_OVER, "--wait-on-line", "no more input", stdin=subprocess.PIPE)
    code, out, said = end(process, "one\ntwo\n")
    assert code == 0, said
    assert "got one\ngot two\nno more input\n" in out


def test_signal_at_any_moment_leaves_nothing_or_what_the_next_run_removes(place: Node) -> None:
    for number in (signal.SIGINT, signal.SIGKILL) * ROUNDS:
        process = begin(place, "--wait-on-line", LINE, target="script:random")
        moment = random.uniform(0.2, LONGEST_RUN_S)
        time.sleep(moment)
        process.send_signal(number)
        code, _, said = end(process)
        word = f"signal {number} after {moment} s: {code} {said}"
        # Before the first line of the program runs, and after the last, a signal does what it does to every process.
        assert code in (0, 130, -number), word
        if number == signal.SIGKILL:
            optimize(place, "--wait-on-line", LINE)
        assert remains(place) == {}, word


def test_program_has_our_terminal_with_its_size_and_gives_it_back(place: Node) -> None:
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    termios.tcsetwinsize(theirs, (33, 77))
    process = begin(place, "-t", "-i", *NEVER_OVER, stdin=theirs, stdout=theirs, stderr=theirs)
    try:
        shown = read_until(ours, LINE, process)
        assert termios.tcgetattr(theirs) != before
        os.write(ours, b"typed\n")
        shown += read_until(ours, "got typed", process)
        # As a byte to the program's own terminal, not as a signal to the command.
        os.write(ours, b"\x03")
        shown += read_until(ours, "@sha256:", process)
        assert process.wait(TIMEOUT_S) == 0, shown
        assert termios.tcgetattr(theirs) == before
        assert "exit code 130" in shown
    finally:
        process.kill()
        process.wait()
        os.close(ours)
        os.close(theirs)


def read_until(terminal: int, text: str, process: subprocess.Popen[str]) -> str:
    """What a terminal shows up to a text, and what came with it."""
    shown = ""
    deadline = time.monotonic() + TIMEOUT_S
    while text not in shown:
        runs = process.poll() is None and time.monotonic() < deadline
        if select.select([terminal], [], [], 0.2 if runs else 0)[0]:
            shown += os.read(terminal, 4096).decode(errors="replace")
        else:
            assert runs, shown
    return shown


PLUGIN = """#!/bin/sh
cat >> {log}/stdin
echo "$CNI_COMMAND $CNI_IFNAME" >> {log}/calls
[ "$CNI_COMMAND" = ADD ] && nsenter --net="$CNI_NETNS" ip link add eth0 type veth peer name other
echo '{{"cniVersion": "1.0.0"}}'
"""
DEVICES = 'while read -r name rest; do echo "device $name"; done < /proc/net/dev'


def devices(out: str) -> set[str]:
    """Network devices that the program saw."""
    return {line.removeprefix("device ").rstrip(":") for line in out.splitlines() if line.endswith(":")}


def shown_spec(node: Node, container: str) -> dict[str, Any]:
    """The specification of a container, as containerd has it."""
    spec: dict[str, Any] = json.loads(node.ctr(node.place.name)("containers", "info", container))["Spec"]
    return spec


def test_container_is_given_what_containerds_own_tool_gives_one(place: Node) -> None:
    ctr, reference = place.ctr(place.place.name), place.reference(SOURCE)
    ctr("images", "pull", "--plain-http", reference)
    try:
        ctr("containers", "create", reference, "theirs")
        theirs = shown_spec(place, "theirs")
        ctr("containers", "delete", "theirs")
        # The layers are there already: nothing needs to be fetched from the place that the image is taken from.
        with ready(place, "-i", stdin=subprocess.PIPE) as process:
            (name,) = ctr("containers", "ls", "--quiet").split()
            ours = shown_spec(place, name)
            process.send_signal(signal.SIGINT)
            assert end(process)[0] == 130
    finally:
        ctr("images", "rm", "--sync", reference)
    named = {mount["destination"]: mount for mount in ours["mounts"]}
    for path in ("/etc/resolv.conf", "/etc/hosts"):
        assert named.pop(path)["options"] == ["rbind"]
    assert list(named.values()) == theirs["mounts"]
    assert ours["process"] == theirs["process"]
    assert ours["root"] == theirs["root"]
    # Newer versions of it hide one path more.
    assert set(ours["linux"].pop("maskedPaths")) - {"/sys/devices/virtual/powercap"} == set(
        theirs["linux"].pop("maskedPaths")
    )
    assert ours["linux"].pop("cgroupsPath") == theirs["linux"].pop("cgroupsPath").replace("theirs", name)
    assert ours["linux"] == theirs["linux"]


def test_network_is_none_the_plugins_or_the_machines(place: Node) -> None:
    show = ("--entrypoint", json.dumps([f"/{SHELL}", "-c", DEVICES]), "--args", "[]", *NEVER_OVER)
    assert devices(optimize(place, *show)[0]) == {"lo"}
    assert devices(optimize(place, *show, "--net-host")[0]) == set(os.listdir("/sys/class/net")) - {"bonding_masters"}
    folder = place.place / "cni"
    folder.mkdir()
    plugin = folder / "made-up"
    plugin.write_text(PLUGIN.format(log=folder))
    plugin.chmod(0o755)
    network = {"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "made-up"}]}
    (folder / "10-net.conflist").write_text(json.dumps(network))
    where = ("--cni-plugin-conf-dir", str(folder), "--cni-plugin-dir", str(folder))
    assert devices(optimize(place, *show, "--cni", *where)[0]) == {"lo", "eth0", "other"}
    assert (folder / "calls").read_text() == "ADD eth0\nDEL eth0\n"
