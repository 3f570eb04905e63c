"""`snapshotter image optimize` with a real containerd: what a container read is in front."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from integration.harness.daemon import snapshotter
from integration.harness.node import LAZY, Node
from integration.harness.registry import Registry
from integration.images.oci import config_of
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
)
from integration.optimizing import (
    NEVER_OVER,
    SOURCE,
    TARGET,
    TIMEOUT_S,
    begin,
    end,
    fronts,
    node_with_script,
    optimize,
    ready,
    remains,
)

INDEX = "application/vnd.oci.image.index.v1+json"


@pytest.fixture(scope="module")
def place(registry: Registry) -> Iterator[Node]:
    """A node that these tests share: none of them may leave anything on it."""
    with node_with_script(registry) as made:
        yield made


@pytest.fixture(autouse=True)
def nothing_is_left(place: Node) -> Iterator[None]:
    """No test leaves anything behind, but what it pulled itself and removes."""
    yield
    assert remains(place) == {}


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
    assert f"first from /app as {UID}\n" in said
    assert "second hello\n" in said
    assert f"/{SCRIPT} serve starts; it is watched until it ends, or until a line has" in said
    assert NEVER not in upper
    # Nothing of the program: it is what a script wants to know.
    assert re.fullmatch(f"{place.reference(TARGET)}@sha256:[0-9a-f]{{64}}\n", out)


def test_line_may_come_on_standard_error_and_files_that_the_program_wrote_do_not_count(place: Node) -> None:
    program = "echo x > /tmp/own; read -r word < /tmp/own; echo ready >&2; /usr/bin/busybox sleep 1000"
    options = ("--entrypoint", json.dumps([f"/{SHELL}", "-c", program]), "--args", "[]", "--wait-on-line", "ready")
    out, said = optimize(place, *options, *NEVER_OVER, "--json")
    answer = json.loads(out)["sample"]
    assert answer["ended_by"] == "line"
    assert "tmp/own" in answer["files"]
    assert f"{len(answer['files']) - 1} files of the image were read" in said


def test_last_words_without_an_end_stand_on_a_line_of_their_own(place: Node) -> None:
    program = ("--entrypoint", json.dumps([f"/{SHELL}", "-c", "printf bye"]), "--args", "[]")
    _, said = optimize(place, *program, *NEVER_OVER)
    assert "bye\nsnapshotter: watched for" in said


def test_json_has_the_image_and_the_run_and_nothing_of_the_program(place: Node) -> None:
    out, said = optimize(place, "--json", "--wait-on-line", LINE)
    answer = json.loads(out)
    assert answer["target"] == place.reference(TARGET)
    sample = answer["sample"]
    assert (sample["ended_by"], sample["lost"]) == ("line", 0)
    assert sample["files"][:4] == ["etc/passwd", "etc/group", SCRIPT, SHELL]
    assert f"first from /app as {UID}\n" in said


def test_record_of_one_run_makes_the_same_image_without_a_run(place: Node) -> None:
    record = place.place / "record"
    out, _ = optimize(place, "--wait-on-line", LINE, "--record-out", str(record))
    assert recorded(record)[:3] == ["etc/passwd", "etc/group", SCRIPT]
    assert sorted(recorded(record)) == sorted(name for names in fronts(place) for name in names)
    again, said = optimize(place, "--record-in", str(record))
    assert again.splitlines()[-1] == out.splitlines()[-1]
    assert "were read" not in said


def test_images_for_other_machines_have_the_list_of_the_one_that_ran(place: Node) -> None:
    with place.registry.client() as client:
        entry = client.descriptor("script", "plain")
        # Another digest, so that it is another image; nothing of it can run here.
        other = {**client.manifest("script", "plain"), "annotations": {"of": "another machine"}}
        client.push_image("script", "other", other, {**client.config("script", "plain"), "architecture": "s390x"})
        entries = [
            {**entry, "platform": {"os": "linux", "architecture": config_of({}, [])["architecture"]}},
            {**client.descriptor("script", "other"), "platform": {"os": "linux", "architecture": "s390x"}},
        ]
        index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}
        client.push_manifest("script", "index", json.dumps(index).encode(), INDEX)
    options = ("--wait-on-line", LINE, "--all-platforms", "--json")
    out, said = optimize(place, *options, source="script:index", target="script:all")
    (total,) = re.findall(r"(\d+) files of the image were read", said)
    assert (
        f"for linux/s390x nothing was run; of the {total} files that were read it has {total}, which are in front"
        in said
    )
    digests = [image["digest"] for image in json.loads(out)["images"]]
    assert len(digests) == 2
    for digest in digests:
        assert fronts(place, digest)[1] == [SCRIPT, FIRST, SECOND]
    code, _, said = end(begin(place, "--platform", "linux/s390x", *NEVER_OVER))
    assert code == 10
    assert "alone; leave out --platform" in said
    code, _, said = end(begin(place, source="script:other", target="script:none"))
    assert code == 10
    assert "cannot run on this machine" in said


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
    code, _, said = end(process, "one\ntwo\n")
    assert code == 0, said
    assert "got one\ngot two\nno more input\n" in said


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


def test_full_screen_of_a_program_that_is_ended_is_left(place: Node) -> None:
    ours, theirs = pty.openpty()
    program = json.dumps([f"/{SHELL}", "-c", rf"printf '\033[?1049h\033[?25lfull'; /{SLEEPER} sleep 1000"])
    options = ("-t", "-i", *NEVER_OVER, "--wait-on-line", "full", "--entrypoint", program, "--args", "[]")
    # What it says goes to the terminal, though our standard output is none.
    process = begin(place, *options, stdin=theirs, stderr=theirs)
    try:
        shown = read_until(ours, "snapshotter: watched for", process)
        assert "\x1b[?1049h\x1b[?25lfull\x1b[?1049l\x1b[?25h\x1b[0m\r\nsnapshotter: watched for" in shown
        while process.poll() is None:
            if select.select([ours], [], [], 0.2)[0]:
                os.read(ours, 4096)
        code, out, _ = end(process)
        assert (code, out.partition("@")[0]) == (0, place.reference(TARGET))
    finally:
        process.kill()
        process.communicate()
        os.close(ours)
        os.close(theirs)


# In quotes, so that the command's own words about what it runs are something else.
SIZES = """echo 'be''gun'; while read -r line; do stty size; case $(stty size) in '44 88') exit;; esac; done"""


def test_programs_terminal_follows_the_size_of_ours(place: Node) -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (33, 77))
    show = json.dumps([f"/{SLEEPER}", "sh", "-c", SIZES])
    streams: dict[str, Any] = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
    process = begin(place, "-t", "-i", *NEVER_OVER, "--entrypoint", show, **streams)
    try:
        read_until(ours, "begun", process)
        os.write(ours, b"\n")
        read_until(ours, "33 77", process)
        termios.tcsetwinsize(theirs, (44, 88))
        # The kernel sends it where a terminal is that of the session.
        process.send_signal(signal.SIGWINCH)
        ended = False
        while not ended:
            os.write(ours, b"\n")
            ended = "watched for" in read_until(ours, "\n", process)
        read_until(ours, "@sha256:", process)
        assert process.wait(TIMEOUT_S) == 0
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


def devices(said: str) -> set[str]:
    """Network devices that the program saw."""
    lines = [line for line in said.splitlines() if line.startswith("device ") and line.endswith(":")]
    return {line.removeprefix("device ").rstrip(":") for line in lines}


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
    masked = {"/sys/devices/virtual/powercap", *theirs["linux"].pop("maskedPaths")}
    assert set(ours["linux"].pop("maskedPaths")) == masked
    assert ours["linux"].pop("cgroupsPath") == theirs["linux"].pop("cgroupsPath").replace("theirs", name)
    assert ours["linux"] == theirs["linux"]


def test_network_is_none_the_plugins_or_the_machines(place: Node) -> None:
    show = ("--entrypoint", json.dumps([f"/{SHELL}", "-c", DEVICES]), "--args", "[]", *NEVER_OVER)
    assert devices(optimize(place, *show)[1]) == {"lo"}
    assert devices(optimize(place, *show, "--net-host")[1]) == set(os.listdir("/sys/class/net")) - {"bonding_masters"}
    folder = place.place / "cni"
    folder.mkdir()
    plugin = folder / "made-up"
    plugin.write_text(PLUGIN.format(log=folder))
    plugin.chmod(0o755)
    network = {"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "made-up"}]}
    (folder / "10-net.conflist").write_text(json.dumps(network))
    where = ("--cni-plugin-conf-dir", str(folder), "--cni-plugin-dir", str(folder))
    assert devices(optimize(place, *show, "--cni", *where)[1]) == {"lo", "eth0", "other"}
    assert (folder / "calls").read_text() == "ADD eth0\nDEL eth0\n"
