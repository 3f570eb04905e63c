"""Worker processes for TOCs: started by exec, never forked, so that no descriptor of the FUSE connection leaks."""

import logging
import subprocess
import sys

import msgspec
import trio

from snapshotter.errors import NotLazy, Reason
from snapshotter.layer.toc_jobs import Done, ImageJob, Job

log = logging.getLogger(__name__)

WORKERS = 2
ANSWER_MAX = 64 << 10


class TocPool:
    """At most `WORKERS` processes, kept while they are idle.

    Starting an interpreter takes a tenth of a second of a cold pull, which uses both; an idle one takes 14 MB.
    """

    def __init__(self, nursery: trio.Nursery, job_timeout_s: float) -> None:
        self._nursery = nursery
        self._timeout_s = job_timeout_s
        self._slots = trio.CapacityLimiter(WORKERS)
        self._idle: list[trio.Process] = []

    async def serve(self) -> None:
        """Keep workers ready for the first pull; until cancelled, which ends the idle workers."""
        try:
            try:
                while self._wants_another():
                    worker = await self._start()
                    # Pulls may have started workers of their own meanwhile.
                    if self._wants_another():
                        self._idle.append(worker)
                    else:
                        self._stop(worker)
            except OSError as error:
                # A task of the node's nursery: out of processes or memory, the first pull tries again.
                log.warning("cannot start a worker for TOCs: %s", error)
            await trio.sleep_forever()
        except trio.Cancelled:
            while self._idle:
                self._stop(self._idle.pop())
            raise

    async def run(self, job: Job | ImageJob) -> Done:
        """Have a job done. Raises NotLazy with the worker's reason."""
        async with self._slots:
            worker = self._living() or await self._start()
            line = b""
            try:
                with trio.move_on_after(self._timeout_s):
                    line = await self._ask(worker, msgspec.json.encode(job) + b"\n")
            finally:
                if not line:
                    self._stop(worker)
            if not line:
                raise NotLazy(
                    Reason.TOC_INVALID,
                    f"reading the TOC of layer {job.layer_digest}, or writing its image, took more than "
                    f"{self._timeout_s:.0f} s or its worker died (out of memory?)",
                )
            done = msgspec.json.decode(line, type=Done)
            if done.heavy or len(self._idle) >= WORKERS:
                self._stop(worker)
            else:
                self._idle.append(worker)
        if done.reason:
            raise NotLazy(Reason(done.reason), done.message)
        return done

    def _wants_another(self) -> bool:
        return len(self._idle) + self._slots.borrowed_tokens < WORKERS

    def _living(self) -> trio.Process | None:
        """An idle worker; one that died meanwhile (out of memory?) would fail a pull that is good."""
        while self._idle:
            worker = self._idle.pop()
            if worker.poll() is None:
                return worker
            self._stop(worker)
        return None

    async def _start(self) -> trio.Process:
        return await trio.lowlevel.open_process(
            # Isolated: modules come neither from the directory that the daemon was started in nor from a PYTHONPATH.
            [sys.executable, "-I", "-m", "snapshotter.layer.toc_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    async def _ask(self, worker: trio.Process, line: bytes) -> bytes:
        jobs, answers = worker.stdin, worker.stdout
        if jobs is None or answers is None:
            return b""
        answer = b""
        try:
            await jobs.send_all(line)
            while not answer.endswith(b"\n") and len(answer) < ANSWER_MAX:
                part = await answers.receive_some(ANSWER_MAX)
                if not part:
                    return b""
                answer += part
        except trio.BrokenResourceError:
            return b""
        return answer

    def _stop(self, worker: trio.Process) -> None:
        worker.kill()
        self._nursery.start_soon(self._reap, worker)

    @staticmethod
    async def _reap(worker: trio.Process) -> None:
        # Killed, so this takes no time; unshielded it would leave a zombie when the daemon ends.
        with trio.CancelScope(shield=True):
            await worker.wait()
            for stream in (worker.stdin, worker.stdout):
                if stream is not None:
                    await stream.aclose()
