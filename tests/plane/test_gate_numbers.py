"""What the kernel was told of a file stays true: its size, and its number in every process."""

import errno
from pathlib import Path

import pytest
import trio

from snapshotter.errors import StoreError
from snapshotter.store.state import State
from tests.doubles.gate import DOMAIN, HeldContents, MemoryNumbers
from tests.plane.gates import LARGE, READER, SMALL, Asked, contents, opened, run
from tests.store.test_state import record

# --- sizes that layers dispute


def test_a_file_of_disputed_size_gets_no_inode_but_is_waited_for() -> None:
    of, numbers = contents(SMALL), MemoryNumbers()
    of.sizes[SMALL] = [100, 101]

    async def main() -> None:
        async with opened(of, numbers, patience_s=0.01) as gate:
            asked = Asked(gate)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(asked.one, SMALL)
                await trio.sleep(0.1)
                assert (asked.answers, asked.errors) == ([], [])
                of.arrived[SMALL].set()
            assert (asked.answers, numbers.files) == ([None], {})

    run(main)


def test_a_file_of_disputed_size_that_the_disk_does_not_take_is_an_io_error() -> None:
    of, numbers = contents(), MemoryNumbers()
    of.sizes[SMALL], of.outcomes[SMALL] = [100, 101], False

    async def main() -> None:
        async with opened(of, numbers) as gate:
            with pytest.raises(StoreError, match="disagree") as caught:
                await gate.lookup(DOMAIN, SMALL, READER)
            assert caught.value.errno == errno.EIO
            assert numbers.files == {}

    run(main)


@pytest.mark.parametrize(
    ("domain", "says", "expected"),
    [(DOMAIN, 101, True), (DOMAIN, 100, False), (DOMAIN, None, False), ("other", 101, False)],
)
def test_a_layer_that_contradicts_what_the_kernel_was_told_is_noticed(
    domain: str, says: int | None, expected: bool
) -> None:
    of = contents(SMALL)

    async def main() -> None:
        async with opened(of, patience_s=0.01) as gate:
            size_of = {bytes.fromhex(SMALL): says, bytes.fromhex(LARGE[:64]): 1}.get
            assert not gate.disputes(domain, size_of)
            await gate.lookup(DOMAIN, LARGE, READER)
            assert not gate.disputes(domain, size_of)
            await gate.lookup(DOMAIN, SMALL, READER)
            assert gate.disputes(domain, size_of) is expected

    run(main)


# --- numbers on disk


def test_a_later_daemon_gives_the_same_inodes(tmp_path: Path) -> None:
    state = State(tmp_path / "state.db")
    record(state, domain=DOMAIN)

    async def main(of: HeldContents) -> list[tuple[int, str, int]]:
        async with opened(of, state, patience_s=0.01) as gate:
            assert await gate.domain_number(DOMAIN) == 1
            files = [await gate.lookup(DOMAIN, name, READER) for name in (SMALL, LARGE)]
            assert all(file is not None and gate.file(file.number) is file for file in files)
            return [(file.number, file.name, file.size) for file in files if file is not None]

    first = run(lambda: main(contents(SMALL)))
    again = contents()
    assert len(first) == 2
    assert run(lambda: main(again)) == first
    assert again.brought == []
    state.close()


def test_two_lookups_at_the_same_time_give_one_inode() -> None:
    """Numbers are given by a thread; who comes second has the first one's."""
    of = contents()

    async def main() -> None:
        async with opened(of) as gate:
            asked = Asked(gate)
            async with trio.open_nursery() as nursery:
                for _ in range(2):
                    nursery.start_soon(asked.one, LARGE)
            one, other = asked.answers
            assert one is not None
            assert one is other is gate.file(one.number)

    run(main)


def test_a_number_that_cannot_be_kept_is_not_given() -> None:
    full = StoreError("no room to write state.db")

    async def main() -> None:
        async with opened(contents(), MemoryNumbers(fault=full)) as gate:
            with pytest.raises(StoreError, match="no room"):
                await gate.lookup(DOMAIN, LARGE, READER)

    run(main)


def test_a_domain_that_came_later_is_found() -> None:
    numbers = MemoryNumbers()

    async def main() -> None:
        async with opened(contents(), numbers) as gate:
            assert (await gate.domain_number(DOMAIN), gate.domain_name(1)) == (1, DOMAIN)
            assert (await gate.domain_number("late"), gate.domain_name(2)) == (None, None)
            numbers.known["late"] = 2
            assert (await gate.domain_number("late"), gate.domain_name(2)) == (2, "late")

    run(main)
