"""A pull cut off at each of its calls in turn: no name, no lease, nothing active, and the next pull succeeds."""

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import grpc
import pytest
import trio

from snapshotter.containerd import leases
from snapshotter.errors import SnapshotterError
from tests.image.images import Image
from tests.image.pulls import TARS, World, an_image, digests, push_index, world

Code = grpc.StatusCode
Cuts = list[tuple[str, int]]


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(leases, "_DELETE_PAUSE_S", 0.001)
    with world(tmp_path) as made:
        made.namespace = "k8s.io"
        yield made


@pytest.fixture
def image(there: World) -> Image:
    """Below an index, with layers of both kinds."""
    made = an_image(lazy=(0,), tars=TARS[:2])
    there.target = push_index(there.registry, {"amd64": made})
    there.node.lazy = {digests(made)[0]}
    return made


@pytest.fixture
def cuts(there: World, image: Image) -> Cuts:
    """Every call of a pull: its name, and which one of that name it is."""
    there.pull()
    counts = Counter(there.node.calls)
    there.forget()
    assert counts.keys() == {
        "Leases.Create", "Leases.AddResource", "Leases.Delete", "Content.Write", "Content.WRITE", "Content.COMMIT",
        "Content.Info", "Content.Update", "Snapshots.Stat", "Snapshots.Prepare", "Snapshots.Commit", "Diff.Apply",
        "Images.Create",
    }  # fmt: skip
    return [(name, number) for name, count in sorted(counts.items()) for number in range(1, count + 1)]


@pytest.mark.parametrize("code", [Code.UNKNOWN, Code.UNAVAILABLE])
def test_call_that_is_refused_leaves_nothing_and_the_next_pull_succeeds(
    there: World, image: Image, cuts: Cuts, code: grpc.StatusCode
) -> None:
    for cut in cuts:
        there.node.at_call = lambda name, number, cut=cut: code if (name, number) == cut else None
        if cut[0] == "Leases.Delete":  # asked once more
            there.pull()
        else:
            with pytest.raises(SnapshotterError):
                there.pull()
            there.node.at_call = None
            there.assert_nothing()
            there.pull()
        there.assert_whole(image)
        there.forget()


def test_call_whose_answer_is_lost_leaves_no_lease_and_the_next_pull_succeeds(
    there: World, image: Image, cuts: Cuts
) -> None:
    for cut in cuts:
        there.node.at_call = lambda name, number, cut=cut: (Code.UNAVAILABLE, True) if (name, number) == cut else None
        with suppress(SnapshotterError):
            there.pull()
            there.assert_whole(image)
        there.node.at_call = None
        assert (there.node.leases, there.node.active()) == ({}, [])
        there.pull()
        there.assert_whole(image)
        there.forget()


def test_interruption_at_any_call_leaves_nothing_or_a_whole_image(there: World, image: Image, cuts: Cuts) -> None:
    for cut in cuts:
        named = trio.run(interrupted_pull, there, cut)
        there.node.at_call = None
        # Names are given to the end, and what comes after does not matter any more.
        assert named == (cut[0] in {"Images.Create", "Leases.Delete"})
        if not named:
            there.assert_nothing()
            there.pull()
        there.assert_whole(image)
        there.forget()


async def interrupted_pull(there: World, cut: tuple[str, int]) -> bool:
    """Pull, and give up when the call `cut` arrives; whether the image has its name."""
    token, scope = trio.lowlevel.current_trio_token(), trio.CancelScope()

    def fate(name: str, number: int) -> None:
        if (name, number) == cut:
            with suppress(trio.RunFinishedError):
                trio.from_thread.run_sync(scope.cancel, trio_token=token)

    there.node.at_call = fate
    with scope:
        await there.pulling(":v1")
        return True
    return False
