"""One run of a sample container: made, watched, started, ended and removed, whatever happens on the way."""

import re
import secrets
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import trio

from snapshotter.containerd import containers
from snapshotter.containerd.client import Client
from snapshotter.containerd.containers import Recorded
from snapshotter.containerd.tasks import Task
from snapshotter.errors import ContainerdError, ContainerdUnreachable, SnapshotterError
from snapshotter.image.optimize.recording import Recording, recording
from snapshotter.image.optimize.remnants import clear_remnants
from snapshotter.image.optimize.staging import Staged
from snapshotter.image.optimize.stdio import LineWatch, Stdio, Streams, open_stdio
from snapshotter.image.optimize.terminal import follow_size, raw

GRACE_S = 5.0
"""How long a program may take to end at the image's own stop signal."""

TIDY_S = 60.0
"""How long it may take to remove a container; what is left then the lease's end, or the next run, removes."""

_DRAIN_S = 5.0
_RUNTIMES_OWN = "unable to start container process: "
_SIGNAL = re.compile(r"(?:SIG)?([A-Z0-9]+)(?:([+-])([0-9]{1,2}))?")


class Ending(Enum):
    """Why a run ended."""

    EXIT = "the program ended"
    LINE = "the line came"
    PERIOD = "the period was over"
    SIGNAL = "a signal came"


@dataclass(frozen=True, slots=True)
class Watching:
    """How long a container is watched: until its program ends, at most `period_s` (None: without end), until its
    output has `line`, or until Ctrl-C if `until_signal`.
    """

    period_s: float | None
    line: str
    until_signal: bool

    def __str__(self) -> str:
        parts = [
            "until it ends",
            f"until a line has {self.line!r}" if self.line else "",
            f"for {self.period_s:g} s at most" if self.period_s is not None else "",
            "until Ctrl-C" if self.until_signal else "",
        ]
        return ", or ".join(filter(None, parts))


@dataclass(frozen=True, slots=True)
class Sample:
    """What a run came to. `paths` are in order of first access, without a slash in front."""

    paths: tuple[str, ...]
    ending: Ending
    exit_status: int
    seconds: float
    lost: int
    covers_all: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """All that a run needs. `directory` is private; `spec` is the runtime's specification; `labels` are the container's."""

    name: str
    image: str
    spec: dict[str, Any]
    stop_signal: str
    watching: Watching
    streams: Streams
    terminal: bool
    directory: Path
    labels: Mapping[str, str]


def new_name() -> str:
    """A name that no other container has."""
    return f"estargz-sample-{secrets.token_hex(8)}"


async def take_sample(client: Client, staged: Staged, plan: Plan, note: Callable[[str], None]) -> Sample:
    """Run a container on a staged image; nothing of it is left when this returns or raises.

    Raises:
        ContainerdError: it could not be started.
        RecorderError: it could not be watched.
    """
    run = _Run(client, staged, plan)
    try:
        sample = await run.do()
    except BaseException:
        await run.undo(note)
        raise
    await run.undo(note)
    return sample


class _Run:
    def __init__(self, client: Client, staged: Staged, plan: Plan) -> None:
        self._client = client
        self._snapshots = staged.snapshots
        self._parent = staged.chain_id
        self._plan = plan
        self._task = Task(client, plan.name)

    async def do(self) -> Sample:
        plan = self._plan
        mounts = await self._snapshots.prepare(plan.name, self._parent, {})
        record = Recorded(plan.name, plan.labels, self._snapshots.name, plan.name)
        await containers.create(self._client, record, plan.image, plan.spec)
        watch = LineWatch(plan.watching.line)
        stdio = open_stdio(plan.directory, plan.streams, watch, terminal=plan.terminal)
        try:
            try:
                # Given up in the middle, containerd 1.6 loses sight of what it has made. It has a deadline of its own.
                with trio.CancelScope(shield=True):
                    pid = await self._task.create(mounts, stdio.pipes)
            except ContainerdUnreachable:
                raise
            except ContainerdError as error:
                raise _not_started(error) from error
            async with recording(pid) as recorder:
                return await self._watched(recorder, stdio, watch)
        finally:
            stdio.close()

    async def undo(self, note: Callable[[str], None]) -> None:
        """Remove task, container and snapshot, each whatever became of the others; not cancelled, but with an end."""
        with trio.CancelScope(shield=True, deadline=trio.current_time() + TIDY_S) as scope:
            await self._undo(note)
        if scope.cancelled_caught:
            note(
                f"the sample container {self._plan.name} could not be removed within {TIDY_S:.0f} s; the next run tries again"
            )

    async def _undo(self, note: Callable[[str], None]) -> None:
        for step in (
            lambda: self._task.kill(signal.SIGKILL, everyone=True),
            self._task.delete,
            lambda: trio.to_thread.run_sync(clear_remnants, self._client.namespace, self._plan.name),
            lambda: containers.delete(self._client, self._plan.name),
            lambda: self._snapshots.remove(self._plan.name),
        ):
            try:
                await step()
            except SnapshotterError as error:
                note(f"the sample container {self._plan.name} could not be removed whole: {error}")

    async def _watched(self, recorder: Recording, stdio: Stdio, watch: LineWatch) -> Sample:
        plan, began = self._plan, trio.current_time()
        with ExitStack() as undo:
            signals = None
            if plan.watching.until_signal:
                # Before the start: whoever sees the program's first words may press Ctrl-C at once.
                signals = undo.enter_context(trio.open_signal_receiver(signal.SIGINT))
            if plan.terminal and plan.streams.stdin is not None:
                undo.enter_context(raw(plan.streams.stdin))
            async with trio.open_nursery() as nursery:
                stdio.begin(nursery, self._task)
                try:
                    await self._task.start()
                except ContainerdUnreachable:
                    raise
                except ContainerdError as error:
                    raise _not_started(error) from error
                if plan.terminal and plan.streams.stdin is not None:
                    nursery.start_soon(follow_size, plan.streams.stdin, self._task.resize)
                ending, status = await self._until_end(watch, signals, recorder)
                seconds = trio.current_time() - began
                # Before the program is asked to end: what it reads for that is not what a start needs.
                await recorder.stop()
                if status is None:
                    status = await self._stop()
                await self._task.delete()
                with trio.move_on_after(_DRAIN_S):
                    await stdio.drained()
                nursery.cancel_scope.cancel()
        return Sample(tuple(recorder.paths), ending, status, seconds, recorder.lost, recorder.covers_all)

    async def _until_end(
        self, watch: LineWatch, signals: AsyncIterator[int] | None, recorder: Recording
    ) -> tuple[Ending, int | None]:
        """Why the watching ends, and the exit status if the program has ended. Raises RecorderError: nobody watches any more."""
        ends: list[tuple[Ending, int | None]] = []
        watching = self._plan.watching

        async def race(ending: Ending, waits: Callable[..., Awaitable[int | None]], *args: object) -> None:
            ends.append((ending, await waits(*args)))
            nursery.cancel_scope.cancel()

        async def signalled(signals: AsyncIterator[int]) -> None:
            await signals.__anext__()

        async def line() -> None:
            await watch.seen.wait()

        async def period() -> None:
            await trio.sleep(watching.period_s or 0)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(race, Ending.EXIT, self._task.wait)
            nursery.start_soon(recorder.ended)
            if watching.line:
                nursery.start_soon(race, Ending.LINE, line)
            if watching.period_s is not None:
                nursery.start_soon(race, Ending.PERIOD, period)
            if signals is not None:
                nursery.start_soon(race, Ending.SIGNAL, signalled, signals)
        return ends[0]

    async def _stop(self) -> int:
        """End the program as the image wants it ended, if it says so, and if that does not help, at once."""
        number = signal_number(self._plan.stop_signal)
        if number != signal.SIGKILL:
            await self._task.kill(number, everyone=False)
            with trio.move_on_after(GRACE_S):
                return await self._task.wait()
        await self._task.kill(signal.SIGKILL, everyone=True)
        with trio.move_on_after(TIDY_S):
            return await self._task.wait()
        raise ContainerdError(
            f"the sample container {self._plan.name} does not end when it is killed: one of its processes waits for a disk "
            "or a server that does not answer"
        )


def signal_number(text: str) -> int:
    """The number of a signal as image configurations name it: SIGTERM, TERM, 15, SIGRTMIN+3; SIGKILL for nothing we know."""
    if text.isascii() and text.isdigit() and 0 < int(text) < signal.NSIG:
        return int(text)
    parts = _SIGNAL.fullmatch(text.upper())
    name, sign, more = parts.groups(default="") if parts else ("", "", "")
    number = getattr(signal, f"SIG{name}", signal.SIGKILL)
    if not isinstance(number, signal.Signals):
        return int(signal.SIGKILL)
    moved = int(number) + int(f"{sign}{more or 0}")
    known = not sign or signal.SIGRTMIN <= moved <= signal.SIGRTMAX
    return moved if known else int(signal.SIGKILL)


def _not_started(error: ContainerdError) -> ContainerdError:
    """What the runtime says of a container that it cannot start; before that it names all who passed it on."""
    words = str(error).rpartition(_RUNTIMES_OWN)[2].removesuffix(": unknown")
    return ContainerdError(
        f"the sample container did not start: {words}; say what to run with --entrypoint and --args, or convert without a "
        "run: --no-optimize"
    )
