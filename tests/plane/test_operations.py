"""Handles say where they lead by themselves, so that another process can serve what this one opened."""

import errno
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest
import trio
from pyfuse3 import FUSEError

from snapshotter.errors import SnapshotterError, StoreError, WaiterKilled
from snapshotter.plane.fuse.inodes import Numbers
from snapshotter.plane.fuse.operations import LayerOperations
from tests.mount import torture
from tests.mount.trees import MemoryLayer, MemoryShelf

T = TypeVar("T")
CONTEXT: Any = SimpleNamespace(uid=0, gid=0, pid=1, umask=0)
SESSION = 7


def operations() -> LayerOperations:
    """What a process makes when it starts: nothing of it knows of another's opens."""
    shelf = MemoryShelf()
    shelf.layers[torture.TORTURE] = MemoryLayer(torture.TORTURE, torture.torture())
    return LayerOperations(shelf, SESSION, Path("/"))


def run(call: Callable[[], Awaitable[T]]) -> T:
    async def main() -> T:
        return await call()

    return trio.run(main)


def inode_of(*names: bytes) -> int:
    node = 0
    for name in names:
        child = torture.torture().lookup(node, name)
        assert child is not None
        node = child
    return Numbers(SESSION).of_node(torture.TORTURE, node)


def test_handles_are_inode_numbers_that_another_process_serves() -> None:
    opened_by, served_by = operations(), operations()
    file, folder = inode_of(b"dir", b"file"), inode_of(b"dir")
    handle = run(lambda: opened_by.open(file, os.O_RDONLY, CONTEXT)).fh
    assert handle == file
    assert run(lambda: served_by.read(handle, 1, 3)) == b"ell"
    assert run(lambda: opened_by.opendir(folder, CONTEXT)) == folder


def test_replies_are_bytes_of_their_own() -> None:
    data = run(lambda: operations().read(inode_of(b"big"), 0, 1 << 20))
    assert isinstance(data, (bytes, bytearray))


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_RDWR])
def test_nothing_is_opened_for_writing(flags: int) -> None:
    with pytest.raises(FUSEError) as caught:
        run(lambda: operations().open(inode_of(b"big"), flags, CONTEXT))
    assert caught.value.errno == errno.EROFS


def test_numbers_of_another_session_are_stale() -> None:
    stranger = Numbers(SESSION + 1).of_node(torture.TORTURE, 1)
    for call in (lambda: operations().getattr(stranger, CONTEXT), lambda: operations().read(stranger, 0, 10)):
        with pytest.raises(FUSEError) as caught:
            run(call)
        assert caught.value.errno == errno.ESTALE


@pytest.mark.parametrize(("error", "counted"), [(StoreError("the disk fails"), 1), (WaiterKilled("killed"), 0)])
def test_what_a_program_gets_as_an_error_is_counted_by_kind_of_request(error: SnapshotterError, counted: int) -> None:
    served = operations()

    async def fail(*_: object) -> bytes:
        raise error

    served._shelf.get(torture.TORTURE).read = fail  # type: ignore[union-attr, method-assign]
    with pytest.raises(FUSEError):
        run(lambda: served.read(inode_of(b"big"), 0, 10))
    with pytest.raises(FUSEError):
        run(lambda: served.open(inode_of(b"big"), os.O_RDWR, CONTEXT))
    assert +served.failures == ({"read": 1} if counted else {})
    assert served.requests["read"] == 1
