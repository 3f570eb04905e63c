"""Pushes that end early: nothing under the tag that is not whole, and the next try sends what is missing."""

import gzip
import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from integration.harness.process import wait_for
from snapshotter.layer.opening import EXTERNAL_SUFFIX
from tests.doubles.registry import LoopbackRegistry
from tests.doubles.relay import Relay
from tests.format.tars import entry, tar
from tests.image.converting import LOWER, UPPER, run
from tests.image.images import Image, sha256

TAG = "lazy"

pytestmark = pytest.mark.usefixtures("scratch")


def writes(registry: LoopbackRegistry, method: str) -> list[str]:
    return [one.path.rpartition("/")[2] for one in registry.requests if one.method == method]


def settle() -> None:
    """Return when every connection that was given up has been served to its end: what it still brought is stored."""
    handlers = "process_request_thread"
    wait_for(lambda: not any(handlers in one.name for one in threading.enumerate()), "the end of all connections", 60)


def image_is_whole(registry: LoopbackRegistry) -> bool:
    """Whether the tag names an image all blobs of which are there."""
    raw, _ = registry.manifests[registry.repository, TAG]
    document = json.loads(raw)
    assert all(sha256(registry.blobs[one["digest"]]) == one["digest"] for one in document["layers"])
    config = json.loads(registry.blobs[document["config"]["digest"]])
    plain = [sha256(gzip.decompress(registry.blobs[one["digest"]])) for one in document["layers"]]
    return bool(plain == config["rootfs"]["diff_ids"])


@pytest.mark.parametrize(("method", "count"), [("POST", 3), ("PUT", 4)])
def test_write_that_is_refused_leaves_no_image_and_the_next_try_sends_what_is_missing(
    method: str, count: int, tmp_path: Path
) -> None:
    source = Image(LOWER, UPPER).lay_out(tmp_path / "a")
    for number in range(count):
        with LoopbackRegistry() as registry:
            registry.script("", f"ok*{number} 400" if number else "400", method=method)
            assert run(source, registry.reference(f":{TAG}")) != 0
            settle()
            assert (registry.repository, TAG) not in registry.manifests
            sent, there = len(writes(registry, "POST")), len(registry.blobs)
            assert run(source, registry.reference(f":{TAG}")) == 0
            assert image_is_whole(registry)
            assert writes(registry, "PUT")[-1] == TAG
            # An upload that was given up because another one failed may reach the registry after the count.
            missing = len(registry.blobs) - there
            assert missing <= len(writes(registry, "POST")) - sent <= missing + 1


def test_connection_that_closes_instead_of_an_answer_is_made_anew(registry: LoopbackRegistry, tmp_path: Path) -> None:
    source = Image(LOWER, UPPER).lay_out(tmp_path / "a")
    for method in ("HEAD", "POST", "PUT"):
        registry.script("", "close", method=method)
    registry.script(f"/manifests/{TAG}", "close", method="PUT")
    assert run(source, registry.reference(f":{TAG}")) == 0
    assert image_is_whole(registry)


def test_tag_keeps_its_image_until_the_new_one_is_whole(registry: LoopbackRegistry, tmp_path: Path) -> None:
    assert run(Image(LOWER).lay_out(tmp_path / "a"), registry.reference(f":{TAG}")) == 0
    before = registry.manifests[registry.repository, TAG]
    registry.script("/manifests/" + TAG, "400", method="PUT")
    assert run(Image(UPPER).lay_out(tmp_path / "b"), registry.reference(f":{TAG}")) != 0
    assert registry.manifests[registry.repository, TAG] == before
    assert image_is_whole(registry)


def test_upload_whose_connection_breaks_in_the_middle_begins_anew(registry: LoopbackRegistry, tmp_path: Path) -> None:
    big = random.Random(1).randbytes(3 << 20)
    source = Image(tar(entry("big", big))).lay_out(tmp_path / "a")
    with Relay("127.0.0.1", registry.port, bandwidth=20e6) as relay:

        def cut() -> None:
            wait_for(lambda: relay.up > 1 << 20, "the middle of the upload", 60)
            relay.drop_all()

        cutter = threading.Thread(target=cut)
        cutter.start()
        assert run(source, f"{relay.address}/{registry.repository}:{TAG}") == 0
        cutter.join()
    assert image_is_whole(registry)


def test_image_is_named_after_its_tables_of_contents_outside(registry: LoopbackRegistry, tmp_path: Path) -> None:
    source = Image(LOWER, UPPER).lay_out(tmp_path / "a")
    tables = TAG + EXTERNAL_SUFFIX
    registry.script(f"/manifests/{tables}", "400", method="PUT")
    assert run(source, registry.reference(f":{TAG}"), "--external-toc") != 0
    assert not {name for _, name in registry.manifests} & {TAG, tables}
    assert run(source, registry.reference(f":{TAG}"), "--external-toc") == 0
    assert writes(registry, "PUT")[-2:] == [tables, TAG]
    assert image_is_whole(registry)


@contextmanager
def converting(source: str, target: str, scratch: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A conversion in a process of its own."""
    command = [sys.executable, "-m", "snapshotter", "image", "convert", source, target, "--scratch", str(scratch)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_signal_in_the_middle_of_an_upload_leaves_no_image(
    number: signal.Signals, registry: LoopbackRegistry, tmp_path: Path, scratch: Path
) -> None:
    source = Image(tar(entry("small", b"1")), tar(entry("big", os.urandom(4 << 20)))).lay_out(tmp_path / "a")
    # Slow: most of it is still to come when the signal does.
    with Relay("127.0.0.1", registry.port, bandwidth=1e5) as relay:
        target = f"{relay.address}/{registry.repository}:{TAG}"
        with converting(source, target, scratch) as process:
            wait_for(lambda: relay.up > 100_000, "the middle of the upload", 60)
            process.send_signal(number)
            process.wait(60)
    settle()
    assert (registry.repository, TAG) not in registry.manifests
    # The next conversion also tidies up what nobody could when the first was killed.
    sent, there = len(writes(registry, "POST")), len(registry.blobs)
    assert run(source, registry.reference(f":{TAG}")) == 0
    assert image_is_whole(registry)
    assert len(writes(registry, "POST")) - sent == len(registry.blobs) - there
