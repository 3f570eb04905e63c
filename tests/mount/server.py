"""The process under test: a FUSE session over layers and a gate in memory, steered by lines on standard input.

    python -m tests.mount.server MOUNT_POINT STATE_DIR SESSION

Says {"ready": device} when it serves; then answers each command with one line of JSON.
"""

import collections
import json
import logging
import sys
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, RequestContext

from snapshotter.plane.erofs.gate import Gate
from snapshotter.plane.fuse.inodes import INODE_REVISION, Fixed, Numbers
from snapshotter.plane.fuse.kernel import Connection, open_connection
from snapshotter.plane.fuse.operations import LayerOperations
from snapshotter.plane.fuse.record import RECORD_REVISION, SessionRecord
from snapshotter.plane.fuse.session import FuseSession
from tests.doubles.gate import MemoryNumbers
from tests.mount import torture
from tests.mount.gate_world import PLACE, MemoryContents
from tests.mount.trees import MemoryLayer, MemoryShelf


class Counting(LayerOperations):
    """Counts the requests that reach it, by name."""

    counts: ClassVar[collections.Counter[str]] = collections.Counter()
    waiting: ClassVar[collections.Counter[str]] = collections.Counter()
    """Lookups that were not answered yet."""

    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        text = name.decode(errors="replace")
        self.counts[f"lookup {text}"] += 1
        self.waiting[text] += 1
        try:
            return await super().lookup(parent_inode, name, ctx)
        finally:
            self.waiting[text] -= 1

    async def flush(self, fh: int) -> None:
        self.counts["flush"] += 1
        await super().flush(fh)


class Server:
    """A shelf and a gate, and the commands that change them."""

    def __init__(self, session_number: int, state_dir: Path, nursery: trio.Nursery) -> None:
        self.contents = MemoryContents(state_dir)
        self.gate = Gate(self.contents, MemoryNumbers(), nursery, PLACE)
        self.requests: collections.Counter[str] = collections.Counter()
        self.shelf = MemoryShelf()
        self.layers_inode = Numbers(session_number).of_fixed(Fixed.LAYERS)
        self.stuck: set[int] = set()
        self._attach(MemoryLayer(torture.TORTURE, torture.torture()))
        self._attach(MemoryLayer(torture.UPPER, torture.upper()))
        broken = MemoryLayer(torture.BROKEN, torture.broken(), self.stuck.add)
        for name, node in broken.index.nodes[0].children.items():
            broken.faults[node] = "stuck" if name.startswith(b"stuck") else name.decode()
        self._attach(broken)

    def _attach(self, layer: MemoryLayer) -> None:
        self.shelf.layers[layer.number] = layer

    def command(self, words: list[str]) -> Any:
        match words:
            case ["attach-late"]:
                self._attach(MemoryLayer(torture.LATE, torture.late()))
            case ["detach-late"]:
                del self.shelf.layers[torture.LATE]
            case ["forget-late"]:
                name = str(torture.LATE).encode()
                pyfuse3.invalidate_entry_async(self.layers_inode, name, ignore_enoent=True)
            case ["count", *names]:
                return Counting.counts[" ".join(names)]
            case ["stuck"]:
                return len(self.stuck)
            case _:
                return self._command_of_the_gate(words)
        return None

    def _command_of_the_gate(self, words: list[str]) -> Any:
        match words:
            case ["waiting", *names]:
                return sum(Counting.waiting[name] for name in names or Counting.waiting)
            case ["requests"]:
                return sum(self.requests.values())
            case ["reads"]:
                return self.requests["read"]
            case ["brought", path]:
                return self.contents.brought[path]
            case ["release", path]:
                self.contents.released[path].set()
            case ["whole-when-asked", path]:
                self.contents.whole.add(path)
            case ["whole", path]:
                self.contents.whole.add(path)
                self.contents.place(path)
            case ["mend"]:
                self.contents.mended = True
            case ["patience", seconds]:
                self.gate._patience_s = float(seconds)
        return None


def a_record(connection: Connection, session_number: int) -> SessionRecord:
    return SessionRecord(
        RECORD_REVISION,
        INODE_REVISION,
        session_number,
        connection.init,
        b"",
        connection.device,
        str(connection.mount_point),
        "test",
    )


async def serve(mount_point: Path, state_dir: Path, session_number: int) -> None:
    async with trio.open_nursery() as nursery:
        server = Server(session_number, state_dir, nursery)
        await server.gate.load()
        operations = Counting(server.shelf, session_number, state_dir, gate=server.gate)
        server.requests = operations.requests
        connection = open_connection(mount_point)
        session = FuseSession(connection, operations)
        await session.handshake(a_record(connection, session_number), lambda _: None)
        await nursery.start(partial(session.serve, session_number, fresh=True))
        say({"ready": connection.device})
        lines = trio.lowlevel.FdStream(sys.stdin.fileno())
        pending = b""
        async for piece in lines:
            *complete, pending = (pending + piece).split(b"\n")
            for line in complete:
                say(server.command(line.decode().split()))
        nursery.cancel_scope.cancel()


def say(answer: Any) -> None:
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    trio.run(partial(serve, Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])))
