"""Tasks: the processes of containers. Made with everything mounted, then started; ended, and cleared away."""

from collections.abc import Sequence
from dataclasses import dataclass

import trio

from snapshotter.api.mount_pb2 import Mount
from snapshotter.api.tasks_pb2 import (
    CloseIORequest,
    CreateTaskRequest,
    DeleteTaskRequest,
    KillRequest,
    ResizePtyRequest,
    StartRequest,
    WaitRequest,
)
from snapshotter.api.tasks_pb2_grpc import TasksStub
from snapshotter.containerd.client import Client
from snapshotter.errors import ContainerdError, ContainerdUnreachable, NotFound

START_TIMEOUT_S = 120.0
"""containerd starts a shim and mounts the root; a lazy root may ask a registry for the first files."""

WAIT_TIMEOUT_S = 24 * 3600.0
"""How long one call waits for a process to end; then it is asked again."""

DELETE_TRIES_S = 10.0


@dataclass(frozen=True, slots=True)
class Pipes:
    """Paths of the FIFOs that carry what a process reads and writes; empty for /dev/null."""

    stdin: str = ""
    stdout: str = ""
    stderr: str = ""
    terminal: bool = False


class Task:
    """The task of one container."""

    def __init__(self, client: Client, container_id: str) -> None:
        self._client = client
        self._id = container_id
        self._stub = TasksStub(client.channel)  # type: ignore[no-untyped-call]

    async def create(self, mounts: Sequence[Mount], pipes: Pipes) -> int:
        """Have everything ready up to the program; the id of the process that will become it.

        Raises:
            ContainerdError: it cannot be, for instance since there is no such program; with the runtime's words.
        """
        request = CreateTaskRequest(
            container_id=self._id,
            rootfs=mounts,
            stdin=pipes.stdin,
            stdout=pipes.stdout,
            stderr=pipes.stderr,
            terminal=pipes.terminal,
        )
        answer = await self._client.call(self._stub.Create, request, START_TIMEOUT_S, leased=False)
        return int(answer.pid)

    async def start(self) -> None:
        """Let the program run. Raises ContainerdError: it cannot."""
        await self._client.call(self._stub.Start, StartRequest(container_id=self._id), START_TIMEOUT_S, leased=False)

    async def wait(self) -> int:
        """The exit status, when the program ends: 128 and the signal's number for one that was killed."""
        while True:
            began = trio.current_time()
            try:
                answer = await self._client.call(
                    self._stub.Wait, WaitRequest(container_id=self._id), WAIT_TIMEOUT_S, leased=False
                )
            except ContainerdUnreachable:
                if trio.current_time() < began + WAIT_TIMEOUT_S:
                    raise
            else:
                return int(answer.exit_status)

    async def kill(self, number: int, *, everyone: bool) -> bool:
        """Send a signal, to every process of the container or to its first; False if it is not there any more."""
        request = KillRequest(container_id=self._id, signal=number, all=everyone)
        try:
            await self._client.call(self._stub.Kill, request, leased=False)
        except NotFound:
            return False
        return True

    async def delete(self) -> None:
        """Clear the task away if it is there, which unmounts the root. Its process must have ended, or is about to.

        Raises:
            ContainerdError: it runs on.
        """
        give_up = trio.current_time() + DELETE_TRIES_S
        while True:
            try:
                await self._client.call(self._stub.Delete, DeleteTaskRequest(container_id=self._id), leased=False)
            except NotFound:
                return
            except ContainerdUnreachable:
                raise
            except ContainerdError:
                # A process that was killed a moment ago may count as running still.
                if trio.current_time() > give_up:
                    raise
                await trio.sleep(0.05)
            else:
                return

    async def resize(self, columns: int, rows: int) -> None:
        """Tell the terminal its size; of a task that has ended nothing."""
        try:
            await self._client.call(
                self._stub.ResizePty, ResizePtyRequest(container_id=self._id, width=columns, height=rows), leased=False
            )
        except (NotFound, ContainerdError):
            return

    async def close_stdin(self) -> None:
        """Tell the program that no input comes any more; of a task that has ended nothing."""
        try:
            await self._client.call(self._stub.CloseIO, CloseIORequest(container_id=self._id, stdin=True), leased=False)
        except (NotFound, ContainerdError):
            return
