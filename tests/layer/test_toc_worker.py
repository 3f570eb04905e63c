"""The worker process that reads TOCs."""

import subprocess
import sys
from pathlib import Path

import msgspec

from snapshotter.layer.toc_jobs import Job
from snapshotter.layer.toc_worker import FIRST_TO_GO

ARGV = (sys.executable, "-m", "snapshotter.layer.toc_worker")


def impossible_job(place: str) -> bytes:
    """A line to a worker that is answered with an error."""
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
    return msgspec.json.encode(job) + b"\n"


def test_worker_is_the_first_to_go_where_memory_is_short(tmp_path: Path) -> None:
    with subprocess.Popen(ARGV, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        worker.stdin.write(impossible_job(str(tmp_path)))
        worker.stdin.flush()
        assert worker.stdout.readline()
        assert Path(f"/proc/{worker.pid}/oom_score_adj").read_text().strip() == FIRST_TO_GO
        worker.stdin.close()
        assert worker.wait(20) == 0


def test_worker_whose_daemon_was_killed_ends_without_a_word(tmp_path: Path) -> None:
    with subprocess.Popen(ARGV, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        assert worker.stderr is not None
        worker.stdout.close()
        worker.stdin.write(impossible_job(str(tmp_path)))
        worker.stdin.close()
        assert worker.stderr.read() == b""
        assert worker.wait(20) == 0
