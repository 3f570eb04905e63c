"""The recorder at containers of lazily mounted layers, and its record in the hands of the tool whose format it has."""

import io
import json
import subprocess
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import trio

from integration.conftest import ALONE, StartNode
from integration.harness.cri import Container
from integration.harness.node import Node
from integration.harness.process import wait_for
from integration.images.sample import SMALL_WORKLOAD
from integration.images.trial import PROBE, content, expected, large
from snapshotter.image.optimize.record_file import Recorded, format_record, parse_record
from snapshotter.image.optimize.recording import recording

SLEEP = ("/bin/busybox", "sleep", "4321")


def read(box: Container, *paths: str) -> list[str]:
    """What the probe says of files, one after the other."""
    return [box.exec([PROBE, "read", path]).stdout for path in paths]


def test_files_of_lazy_layers_are_recorded_while_some_wait_for_a_registry_that_hangs(
    start_node: StartNode, trial_image: str, plane: str
) -> None:
    """The kernel opens each file for the recorder, by the same daemon: it must not wait where the container does."""
    this = start_node({**ALONE, "fetch": {**ALONE["fetch"], "on_outage": "wait"}}, plane=plane)
    this.pull(trial_image)
    box = this.start(this.reference(trial_image), *SLEEP)
    assert read(box, "/kill/1") == [expected(content("kill", 1))]
    # The runtime's own program becomes it a moment after the start was answered.
    wait_for(lambda: bool(this.processes(SLEEP[-1])), "the container's program")
    (process,) = this.processes(SLEEP[-1])

    async def main() -> list[str]:
        async with recording(process) as record:
            assert record.covers_all
            seen = await trio.to_thread.run_sync(read, box, "/kill/2", "/kill/2", "/kill/large", "/special/linked-2")
            assert seen[:2] == [expected(content("kill", 2))] * 2
            assert seen[2:] == [expected(large("kill")), expected(b"one inode\n")]
            with this.hanging(), ThreadPoolExecutor() as threads:
                waiting = threads.submit(read, box, "/outage/large", "/outage/3")
                assert await trio.to_thread.run_sync(read, box, "/kill/1") == [expected(content("kill", 1))]
                with trio.fail_after(20):
                    await record.stop()
                assert not waiting.done()
                this.relay.delay_s = 0
                this.relay.drop_all()
                assert waiting.result() == [expected(large("outage")), expected(content("outage", 3))]
            assert record.lost == 0
            return list(record.paths)

    paths = trio.run(main)
    assert paths[:4] == ["bin/probe", "kill/2", "kill/large", "special/linked-2"]
    assert {"kill/1"} <= set(paths[4:]) <= {"kill/1", "outage/large"}
    box.remove()


def test_record_of_either_tool_is_read_by_the_other(whole_node: Node, tmp_path: Path) -> None:
    node, ctr_remote = whole_node, whole_node.ctr(program="ctr-remote")
    source = f"{node.registry.host}/small:plain"
    ctr_remote("content", "fetch", "--plain-http", source)
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    words = ("--entrypoint", json.dumps(SMALL_WORKLOAD), "--args", "[]", "--record-out", str(theirs), "--oci")
    ctr_remote("images", "optimize", *words, source, "127.0.0.1/small:by-their-run")
    with node.registry.client() as client:
        digest = client.descriptor("small", "plain")["digest"]
    files = [("bin/busybox", 0), ("data/of-layer-1", 1), ("data/changed", 2)]
    records = [Recorded(path, digest, layer) for path, layer in files]
    assert parse_record(theirs.read_bytes()) == records
    # It says again and again what is read again and again.
    assert format_record(records).splitlines() == list(dict.fromkeys(theirs.read_bytes().splitlines()))

    ours.write_bytes(format_record([Recorded("data/changed", digest, 2), Recorded("data/of-layer-1", digest, 1)]))
    target = "127.0.0.1/small:by-our-record"
    ctr_remote("images", "convert", "--oci", "--estargz", "--estargz-record-in", str(ours), source, target)
    # It looks for each file in every layer.
    first = [["data/changed", "data/of-layer-1"], ["data/changed"]]
    assert [prefetched(node, layer) for layer in layers_of(node, target)] == [[], *first]


def layers_of(node: Node, image: str) -> list[str]:
    """Digests of the layers of an image in containerd's store."""
    (line,) = (line for line in node.ctr()("images", "ls").splitlines() if line.startswith(f"{image} "))
    manifest = json.loads(node.ctr()("content", "get", line.split()[2]))
    return [layer["digest"] for layer in manifest["layers"]]


def prefetched(node: Node, layer: str) -> list[str]:
    """Files in front of a layer's landmark, empty if there is none."""
    blob = subprocess.run([*node.ctr().prefix, "content", "get", layer], capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(blob)) as tar:
        files = [member.name for member in tar if member.isfile()]
    return files[: files.index(".prefetch.landmark")] if ".prefetch.landmark" in files else []
