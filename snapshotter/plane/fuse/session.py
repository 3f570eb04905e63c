"""One FUSE session: libfuse's handshake beside the kernel, then serving, then stopping without unmounting.

pyfuse3 is started on one end of a socket pair and given the kernel's INIT through it; its reply is corrected, written
to the kernel by us, and the real descriptor is put over the socket's number. A process that takes a connection over
goes the same way with the INIT that was kept, so take-over changes nothing here.
"""

import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

import pyfuse3
import trio

from snapshotter.errors import PlaneError
from snapshotter.plane.fuse import trio_shim
from snapshotter.plane.fuse.kernel import Connection, answer_init, raise_read_ahead
from snapshotter.plane.fuse.operations import READY_NAME
from snapshotter.plane.fuse.protocol import parse_init_reply, patch_init_reply
from snapshotter.plane.fuse.record import SessionRecord, check_agreement

MAX_TASKS: Final = 4096
"""Requests in hand at once. Each waiting reader of a dead registry holds one, and another layer's reader needs one."""

_HANDSHAKE_TIMEOUT_S: Final = 5.0
_PROBE_TIMEOUT_S: Final = 30.0
_OPEN_AND_CLOSE: Final = "import os, sys; os.close(os.open(sys.argv[1], os.O_RDONLY))"

log = logging.getLogger(__name__)


class FuseSession:
    """Serves one connection. pyfuse3 keeps its session in module globals, so there is one per process.

    `handshake` first, then `serve` until cancelled. Cancelling stops the reading and answers nothing more; the mount
    stays as long as somebody holds the descriptor.
    """

    def __init__(self, connection: Connection, operations: pyfuse3.Operations) -> None:
        self._connection = connection
        self._operations = operations

    async def handshake(
        self,
        record: SessionRecord,
        keep: Callable[[SessionRecord], None],
        before: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Make libfuse and the kernel agree and put the real descriptor in pyfuse3's hands.

        `record` is that of the connection; if it has a reply, the kernel goes by that one. `keep` is given the record
        as it is now, before the kernel gets the reply: nothing may happen in between that only this process knows.
        `before` is called with the descriptor once the kernel has the reply and nobody reads it yet.

        Raises:
            PlaneError: libfuse or the kernel refused, or this libfuse cannot serve the connection; it is untouched then.
        """
        trio_shim.install()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            number = theirs.detach()
            # /dev/fd/N tells libfuse that the mount exists: it parses no options and never unmounts.
            pyfuse3.init(self._operations, f"/dev/fd/{number}", set())
            reply = patch_init_reply(await _libfuse_reply(ours, record.init), record.init)
        if record.reply:
            check_agreement(record.reply, reply)
        keep(replace(record, reply=record.reply or reply))
        fd = self._connection.fd
        if not answer_init(fd, reply):
            log.debug("the FUSE connection %s was initialised by an earlier process", self._connection.device)
        os.set_blocking(fd, False)
        before(fd)
        os.dup2(fd, number, inheritable=False)
        raise_read_ahead(self._connection.device)
        agreed = parse_init_reply(reply)
        log.debug("FUSE flags %#x, max_background %d", agreed.flags, agreed.max_background)

    async def serve(
        self, session: int, *, fresh: bool, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Answer requests until cancelled. On a `fresh` mount started once the kernel has learned that FLUSH need not be sent.

        Raises:
            PlaneError: the connection ended under us: somebody unmounted or aborted it.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._main)
            if fresh:
                await self._silence_flush(session)
            task_status.started()

    async def _main(self) -> None:
        await pyfuse3.main(max_tasks=MAX_TASKS)
        raise PlaneError(
            f"the FUSE mount {self._connection.mount_point} was unmounted or its connection aborted; restart the daemon"
        )

    async def _silence_flush(self, session: int) -> None:
        """Have one file opened and closed: the first FLUSH is answered by ENOSYS and the kernel sends no other.

        A waiter in FLUSH cannot be killed, and every close and every exit would send one. The process is exec'd with
        nothing inherited: the daemon never opens a path inside its own mount.
        """
        path = self._connection.mount_point / str(session) / os.fsdecode(READY_NAME)
        command = [sys.executable, "-I", "-S", "-c", _OPEN_AND_CLOSE, os.fspath(path)]
        with trio.move_on_after(_PROBE_TIMEOUT_S):
            done = await trio.run_process(
                command, stdin=subprocess.DEVNULL, capture_stderr=True, check=False, cwd=Path("/")
            )
            if done.returncode == 0:
                return
            raise PlaneError(f"the new FUSE mount does not answer: {done.stderr.decode(errors='replace').strip()}")
        raise PlaneError(f"the new FUSE mount did not answer within {_PROBE_TIMEOUT_S:.0f} s")


async def _libfuse_reply(ours: socket.socket, init: bytes) -> bytes:
    """Send the kernel's INIT to pyfuse3 and run it just long enough to answer."""
    ours.setblocking(False)
    ours.send(init)
    with trio.move_on_after(_HANDSHAKE_TIMEOUT_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pyfuse3.main)
            await trio.lowlevel.wait_readable(ours)
            # The cancel scope, not pyfuse3.terminate: that misses a task which is not waiting at this moment.
            nursery.cancel_scope.cancel()
        return ours.recv(4096)
    raise PlaneError(f"libfuse did not answer the kernel's INIT within {_HANDSHAKE_TIMEOUT_S:.0f} s")
