"""The worker process that reads TOCs."""

import subprocess
import sys
from pathlib import Path

import msgspec

from snapshotter.layer.toc_worker import Job


def test_worker_whose_daemon_was_killed_ends_without_a_word(tmp_path: Path) -> None:
    place = str(tmp_path)
    job = Job(
        section=f"{place}/absent",
        flavor="",
        codec="gzip",
        toc_offset=0,
        toc_end=0,
        toc_raw_size=None,
        payload_end=0,
        blob_size=0,
        layer_digest="",
        toc_digest=None,
        section_digest=None,
        allow_unverified=False,
        toc_directory=place,
        index_directory=place,
    )
    argv = [sys.executable, "-m", "snapshotter.layer.toc_worker"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        assert worker.stderr is not None
        worker.stdout.close()
        worker.stdin.write(msgspec.json.encode(job) + b"\n")
        worker.stdin.close()
        assert worker.stderr.read() == b""
        assert worker.wait(20) == 0
