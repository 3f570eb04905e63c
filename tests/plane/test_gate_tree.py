"""The gate's directories, as the kernel walks them."""

import errno
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from pyfuse3 import EntryAttributes, FUSEError

from snapshotter.errors import RegistryUnreachable
from snapshotter.plane.erofs.gate import Gate
from snapshotter.plane.fuse.inodes import Fixed, Numbers, gate_file_node
from snapshotter.plane.fuse.operations import LayerOperations
from tests.doubles.gate import DOMAIN, HeldContents, MemoryNumbers
from tests.mount.trees import MemoryShelf

SESSION = 7
PLACE = "_abcdefghijklm"
CONTEXT: Any = SimpleNamespace(uid=0, gid=0, pid=0, umask=0)
LARGE, SMALL, GONE = "c3" * 32 + "-" + "d4" * 16, "a1" * 32, "e5" * 32
NUMBERS = Numbers(SESSION)


class Walker:
    """Asks as the kernel does."""

    def __init__(self, operations: LayerOperations) -> None:
        self.operations = operations

    async def walk(self, *names: str, start: int = NUMBERS.of_fixed(Fixed.SESSION)) -> EntryAttributes:
        """The entry at the end of a path below the session's directory."""
        entry = await self.operations.getattr(start, CONTEXT)
        for name in names:
            entry = await self.operations.lookup(entry.st_ino, name.encode(), CONTEXT)
        return entry

    async def errno(self, *names: str, start: int = NUMBERS.of_fixed(Fixed.SESSION)) -> int | None:
        """The errno that a walk ends in."""
        *path, last = names
        entry = await self.walk(*path, start=start)
        with pytest.raises(FUSEError) as caught:
            await self.operations.lookup(entry.st_ino, last.encode(), CONTEXT)
        code: int = caught.value.errno
        return code


def walked(main: Callable[[Walker], Awaitable[None]], *, with_gate: bool = True) -> None:
    """Run the function with a gate in which a large file is served, a small one comes, and one does not."""
    of = HeldContents({LARGE: [9000], SMALL: [10], GONE: [10]}, outcomes={LARGE: False})
    of.outcomes[GONE] = RegistryUnreachable("registry.test does not answer")

    async def bounded() -> None:
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                gate = Gate(of, MemoryNumbers(), nursery, PLACE) if with_gate else None
                if gate is not None:
                    await gate.load()
                await main(Walker(LayerOperations(MemoryShelf(), SESSION, Path("/"), gate=gate)))
                nursery.cancel_scope.cancel()

    trio.run(bounded)


def test_directories_are_answered_for_ever_and_nobody_else_may_look_into_them() -> None:
    async def main(it: Walker) -> None:
        for path in (("gate", PLACE), ("gate", PLACE, DOMAIN), ("gate", PLACE, DOMAIN, "c3")):
            entry = await it.walk(*path)
            assert stat.S_ISDIR(entry.st_mode)
            assert entry.entry_timeout == entry.attr_timeout > 1e8
            assert (await it.operations.getattr(entry.st_ino, CONTEXT)).st_ino == entry.st_ino
            if len(path) > 2:
                assert stat.S_IMODE(entry.st_mode) == 0o700

    walked(main)


def test_what_the_kernel_looks_for_next_is_not_there_and_that_is_not_remembered() -> None:
    async def main(it: Walker) -> None:
        # A raised ENOENT: an answered one, with a timeout, would be remembered.
        assert await it.errno("gate", PLACE, DOMAIN, "a1", SMALL) == errno.ENOENT

    walked(main)


def test_a_served_file_is_read_by_its_inode() -> None:
    async def main(it: Walker) -> None:
        entry = await it.walk("gate", PLACE, DOMAIN, "c3", LARGE)
        assert (entry.st_ino, entry.st_size) == (NUMBERS.of_gate(gate_file_node(1)), 9000)
        assert entry.st_mode == stat.S_IFREG | 0o400
        assert (await it.operations.getattr(entry.st_ino, CONTEXT)).st_size == 9000
        handle = (await it.operations.open(entry.st_ino, 0, CONTEXT)).fh
        assert await it.operations.read(handle, 8990, 4096) == bytes(10)
        assert await it.errno("gate", PLACE, DOMAIN, "c3", LARGE, "x") == errno.ENOTDIR

    walked(main)


def test_a_file_that_cannot_be_had_is_an_io_error() -> None:
    async def main(it: Walker) -> None:
        assert await it.errno("gate", PLACE, DOMAIN, "e5", GONE) == errno.EIO
        assert await it.errno("gate", PLACE, DOMAIN, "00", "0" * 64) == errno.EIO

    walked(main)


@pytest.mark.parametrize("name", ["", "a", "A1", "a1 ", " a1", "+1", "0x", "1_", "100", "gg", "a1a1"])
def test_shards_have_two_digits_of_their_own_form(name: str) -> None:
    async def main(it: Walker) -> None:
        assert await it.errno("gate", PLACE, DOMAIN, name) == errno.ENOENT

    walked(main)


def test_names_that_lead_nowhere_are_not_there() -> None:
    async def main(it: Walker) -> None:
        assert await it.errno("gate", "_otherplaceabc") == errno.ENOENT
        assert await it.errno("gate", PLACE, "stranger") == errno.ENOENT

    walked(main)


def test_every_name_in_the_last_directory_is_an_io_error() -> None:
    async def main(it: Walker) -> None:
        for name in (PLACE, DOMAIN, "a1", SMALL):
            assert await it.errno("fail", name) == errno.EIO
        assert (await it.walk("fail", ".")).st_ino == NUMBERS.of_fixed(Fixed.FAIL)
        assert (await it.walk("fail", "..")).st_ino == NUMBERS.of_fixed(Fixed.SESSION)

    walked(main)


def test_every_directory_knows_itself_and_the_one_above() -> None:
    async def main(it: Walker) -> None:
        path = ("gate", PLACE, DOMAIN, "c3")
        for depth in range(1, len(path) + 1):
            here, above = await it.walk(*path[:depth]), await it.walk(*path[: depth - 1])
            assert (await it.walk(".", start=here.st_ino)).st_ino == here.st_ino
            assert (await it.walk("..", start=here.st_ino)).st_ino == above.st_ino

    walked(main)


def test_inodes_that_were_never_given_are_stale() -> None:
    async def main(it: Walker) -> None:
        for inode in (NUMBERS.of_gate(gate_file_node(17)), Numbers(SESSION + 1).of_gate(gate_file_node(1))):
            with pytest.raises(FUSEError) as caught:
                await it.operations.getattr(inode, CONTEXT)
            assert caught.value.errno == errno.ESTALE

    walked(main)


def test_without_a_gate_there_is_none_of_its_directories() -> None:
    async def main(it: Walker) -> None:
        for name in ("gate", "fail"):
            assert await it.errno(name) == errno.ENOENT
        with pytest.raises(FUSEError) as caught:
            await it.operations.getattr(NUMBERS.of_gate(gate_file_node(1)), CONTEXT)
        assert caught.value.errno == errno.ESTALE

    walked(main, with_gate=False)
