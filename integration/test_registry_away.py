"""Registries that are away for a while: what goes on without them, who waits, and how soon it ends once they are back."""

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import count
from pathlib import Path

import grpc
import pytest

from integration.conftest import ALONE, StartNode
from integration.harness.cri import Container
from integration.harness.daemon import Table
from integration.harness.node import CRI_NAMESPACE, Node
from integration.harness.process import wait_for
from integration.harness.site import FAILING, HANGING, REFUSING, WAYS, Site, site
from integration.images.trial import PROBE, expected
from snapshotter.api import snapshots_pb2, snapshots_pb2_grpc

READERS = 8
PROMPT_S = 60.0
"""On a machine with too much to do. tests/registry/test_knock.py has the figure, by a clock of its own: 5 s."""
PROBES_PER_S = 8
NAMESPACE = (("containerd-namespace", CRI_NAMESPACE),)


def on_outage(word: str, **more: object) -> Table:
    return {**ALONE, "fetch": {**ALONE["fetch"], "on_outage": word}, "registry": more}


@pytest.fixture
def sites() -> Iterator[dict[str, Site]]:
    """A site for each way of being away."""
    with ExitStack() as undo:
        yield {way: undo.enter_context(site(way)) for way in WAYS}


def started(this: Node, reference: str) -> Container:
    """A running container whose tools are on the node."""
    image = this.cri.pull(reference)
    box = this.start(image, "/bin/busybox", "sleep", "1000")
    assert box.exec(["/bin/busybox", "sh", "-c", "/bin/probe uid"]).stdout == "0 0\n"
    return box


class Readers:
    """Processes of one container, each of which reads a file that nobody has read yet and notes when it is through."""

    def __init__(self, this: Node, box: Container, numbers: Sequence[int]) -> None:
        self._numbers = numbers
        self._notes = this.rootfs(box) / "tmp"
        script = f"""
            for n in {" ".join(map(str, numbers))}; do
              ( {PROBE} read /away/$n > /tmp/said-$n; cat /proc/uptime > /tmp/at.$n; mv /tmp/at.$n /tmp/at-$n
              ) < /dev/null > /dev/null 2>&1 &
            done"""
        box.exec(["/bin/busybox", "sh", "-c", script])
        wait_for(lambda: all(this.processes(f"/away/{n}") for n in numbers), "readers that wait", 60)

    def waiting(self) -> int:
        """How many are not through."""
        return sum(not (self._notes / f"at-{n}").exists() for n in self._numbers)

    def end(self) -> float:
        """When the last of them was through, on the clock that starts with the machine."""
        wait_for(lambda: not self.waiting(), "the end of those who read", 120)
        return max(float((self._notes / f"at-{n}").read_text().split()[0]) for n in self._numbers)

    def said(self) -> list[str]:
        """What each says that it has read."""
        return [(self._notes / f"said-{n}").read_text() for n in self._numbers]


def now() -> float:
    """As /proc/uptime."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def recovery(this: Node, sites: dict[str, Site], away_s: float) -> dict[str, float]:
    """By site: seconds from its return until all who had waited for it have read their files."""
    boxes = {way: started(this, one.reference) for way, one in sites.items()}
    numbers = range(READERS)
    since = now()
    for way, one in sites.items():
        one.server.forget()
        one.away(way)
    readers = {way: Readers(this, box, numbers) for way, box in boxes.items()}
    time.sleep(away_s)
    assert {way: some.waiting() for way, some in readers.items()} == dict.fromkeys(sites, READERS)
    # Whoever waits asks together with the others of his layer: at the one that fails at once this can be counted.
    assert len(sites[FAILING].server.requests) < READERS * 5 + PROBES_PER_S * (now() - since)
    returned = {}
    for way, one in sites.items():
        returned[way] = now()
        one.back()
    took = {way: some.end() - returned[way] for way, some in readers.items()}
    for way, some in readers.items():
        assert some.said() == [expected(sites[way].content(n)) for n in numbers]
    print(f"\nback after {away_s:.0f} s: " + ", ".join(f"{way} {took_s:.2f} s" for way, took_s in took.items()))
    return took


def test_readers_go_on_soon_after_the_return_of_their_registry(
    start_node: StartNode, sites: dict[str, Site], erofs: str
) -> None:
    assert max(recovery(start_node(on_outage("wait:300s"), plane=erofs), sites, 8.0).values()) < PROMPT_S


@pytest.mark.long
@pytest.mark.parametrize("away_s", [45.0, 180.0])
def test_readers_go_on_soon_after_a_long_absence(
    start_node: StartNode, sites: dict[str, Site], plane: str, away_s: float
) -> None:
    assert max(recovery(start_node(on_outage("wait"), plane=plane), sites, away_s).values()) < PROMPT_S


def test_mirrors_are_asked_in_order_and_one_that_is_sick_is_passed_over_until_another_is_too(
    start_node: StartNode, tmp_path: Path, erofs: str
) -> None:
    with site("own") as own, site("one", own) as one, site("two", own) as two:
        hosts = tmp_path / own.host / "hosts.toml"
        hosts.parent.mkdir()
        hosts.write_text(f'server = "http://{own.host}"\n[host."http://{one.host}"]\n[host."http://{two.host}"]\n')
        this = start_node(on_outage("wait", config_path=[str(tmp_path)]), plane=erofs)
        box = started(this, own.reference)

        numbers = count()

        def read() -> list[int]:
            """Read a file that nobody has read; how many requests for it each server was sent."""
            for server in (one, two, own):
                server.server.forget()
            number = next(numbers)
            assert box.exec([PROBE, "read", f"/away/{number}"]).stdout == expected(own.content(number))
            asked = [server.server.requests for server in (one, two, own)]
            return [sum("range" in request.headers for request in requests) for requests in asked]

        def reads(*asked: int) -> None:
            """One read after the other, until one is asked for so: a server that is slow is not asked alone, and one that is
            sick is asked now and then.
            """
            wait_for(lambda: read() == [*asked], f"a read that takes {asked} requests")

        reads(1, 0, 0)
        one.away(HANGING)
        first, second, _ = read()
        assert first
        assert second
        reads(0, 1, 0)
        two.away(FAILING)
        assert read()[2]
        reads(0, 0, 1)
        own.away(REFUSING)
        later = [next(numbers) for _ in range(3)]
        readers = Readers(this, box, later)
        time.sleep(6.0)
        assert readers.waiting() == 3
        returned = now()
        two.back()
        took_s = readers.end() - returned
        print(f"\nback through the second mirror: {took_s:.2f} s")
        assert took_s < PROMPT_S
        assert readers.said() == [expected(own.content(n)) for n in later]


def labels(this: Node, name: str) -> list[dict[str, str]]:
    """What containerd says of each layer of a pulled image, lowest first."""
    repository, _, tag = name.partition(":")
    with this.registry.client() as client:
        digests = [layer["digest"] for layer in client.manifest(repository, tag)["layers"]]
        manifest = client.descriptor(repository, tag)["digest"]
    prefix = "containerd.io/snapshot/cri."
    image = {f"{prefix}image-ref": this.reference(name), f"{prefix}manifest-digest": manifest}
    return [
        {**image, f"{prefix}layer-digest": digest, f"{prefix}image-layers": ",".join(digests[depth:])}
        for depth, digest in enumerate(digests)
    ]


def committed(stub: snapshots_pb2_grpc.SnapshotsStub, of_layers: Sequence[dict[str, str]], chain: str) -> str:
    """Prepare each layer as for a pull, where all are lazy at once; return the name of the topmost."""
    parent = ""
    for depth, of_layer in enumerate(of_layers):
        target = f"{CRI_NAMESPACE}/9/{chain}-{depth}"
        request = snapshots_pb2.PrepareSnapshotRequest(
            key=f"{CRI_NAMESPACE}/9/extract-{chain}-{depth}",
            parent=parent,
            labels={**of_layer, "containerd.io/snapshot.ref": target},
        )
        with pytest.raises(grpc.RpcError) as caught:
            stub.Prepare(request, metadata=NAMESPACE, timeout=20)
        assert caught.value.code() == grpc.StatusCode.ALREADY_EXISTS, caught.value.details()
        # As containerd finds it, which has not made it.
        wanted = snapshots_pb2.ListSnapshotsRequest(filters=[f'labels."containerd.io/snapshot.ref"=={target}'])
        (found,) = (info for part in stub.List(wanted, metadata=NAMESPACE, timeout=20) for info in part.info)
        parent = found.name
    return parent


def test_layers_that_are_here_are_prepared_and_mounted_while_the_registry_is_away(
    start_node: StartNode, trial_image: str, plane: str
) -> None:
    this = start_node(on_outage("wait"), plane=plane)
    this.pull(trial_image)
    of_layers = labels(this, trial_image)
    with this.outage():
        for number in (signal.SIGTERM, signal.SIGKILL):
            this.restart_snapshotter(number)
            with grpc.insecure_channel(f"unix://{this.daemon.address}") as channel:
                stub = snapshots_pb2_grpc.SnapshotsStub(channel)  # type: ignore[no-untyped-call]
                parent = committed(stub, of_layers, f"chain-{number}")
                active = snapshots_pb2.PrepareSnapshotRequest(key=f"{CRI_NAMESPACE}/9/box-{number}", parent=parent)
                given = stub.Prepare(active, metadata=NAMESPACE, timeout=20).mounts
                asked = snapshots_pb2.MountsRequest(key=active.key)
                assert stub.Mounts(asked, metadata=NAMESPACE, timeout=20).mounts == given
                (mount,) = given
                assert mount.type == "overlay"


def test_reader_that_waits_is_gone_when_it_is_killed_and_the_others_are_not(start_node: StartNode, plane: str) -> None:
    with site("killed") as one:
        this = start_node(on_outage("wait:60s"), plane=plane)
        box = started(this, one.reference)
        one.away(HANGING)
        readers = Readers(this, box, range(4))
        for number in (0, 2):
            for pid in this.processes(f"/away/{number}"):
                os.kill(pid, signal.SIGKILL)
        wait_for(lambda: readers.waiting() == 2, "the end of those who were killed", 20)
        assert [bool(this.processes(f"/away/{number}")) for number in range(4)] == [False, True, False, True]
        one.back()
        readers.end()
        assert readers.said() == ["", expected(one.content(1)), "", expected(one.content(3))]


def test_nobody_waits_where_nobody_shall(start_node: StartNode, plane: str) -> None:
    with site("error") as one:
        this = start_node(on_outage("error", retries=1, read_timeout_s=4.0, connect_timeout_s=4.0), plane=plane)
        box = started(this, one.reference)
        assert box.exec([PROBE, "read", "/away/0"]).stdout == expected(one.content(0))
        for number, way in enumerate(WAYS, 1):
            one.away(way)
            assert box.exec([PROBE, "read", f"/away/{number}"]).stdout in {"open EIO\n", "read EIO\n"}
            assert box.exec([PROBE, "read", "/away/0"]).stdout == expected(one.content(0))
            one.back()
            read = lambda n=number: box.exec([PROBE, "read", f"/away/{n}"]).stdout == expected(one.content(n))  # noqa: E731
            wait_for(read, "the return of the registry", 20)
