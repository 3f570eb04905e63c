"""Whatever the wire does between daemon and registry, a container reads the right bytes, or an I/O error in time.

Each kind of fault has a layer of its own, and all kinds happen at once: what one layer's blob suffers concerns no other.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field

import pytest

from integration.conftest import ALONE
from integration.harness.cri import Container
from integration.harness.node import Node, node
from integration.harness.process import wait_for
from integration.harness.registry import Registry
from integration.images.dialects import push_built
from integration.images.trial import expected as said
from integration.images.trial import programs
from integration.images.wire_faults import content, faulty_layers
from integration.wire_kinds import EIO, KINDS, RIGHT, ROUNDS, Kind, Words, in_round, lasting, once
from tests.doubles.closed_port import ClosedPort
from tests.doubles.layers import BuiltLayer, layer
from tests.doubles.registry import LoopbackRegistry
from tests.doubles.token_server import TokenServer

WAIT_S = 10
LAST_TRY_S = 5
DEADLINE_S = WAIT_S + LAST_TRY_S
RESOLVE_S = 15.0
"""Longer than a loaded machine takes for an image of which each layer meets with a fault once."""

SLACK_S = 20
"""What a loaded machine may take longer. What hangs, hangs longer."""
SMALL, LARGE, PULLED = "small", "large", "small-pulled"
TIMES = ("once", "lasting")


@dataclass
class Wire:
    """A node whose daemon is led by hosts.toml to a registry that follows scripts. containerd asks the real one."""

    node: Node
    registry: LoopbackRegistry
    store: LoopbackRegistry
    digests: dict[str, list[str]] = field(default_factory=dict)
    """By kind: the blobs that suffer from it."""

    def push(self, name: str, layers: Mapping[str, BuiltLayer]) -> None:
        """An image of the usual programs and these layers, into both registries."""
        built = [layer(*programs()), *layers.values()]
        with self.node.registry.client() as client:
            push_built(client, name, built)
        for one in built:
            self.registry.add_blob(one.blob)
        for kind, one in layers.items():
            self.digests.setdefault(kind, []).append(one.digest)

    def arm(self, words: Words) -> None:
        """Let the requests for each kind's blobs go so."""
        for kind, digests in self.digests.items():
            own, store = words(KINDS[kind])
            for digest in digests:
                self.registry.script(f"blobs/{digest}", own)
                self.store.script(f"blobs/{digest}", store)

    def mend(self) -> None:
        """Everything is well again."""
        self.arm(lambda _: ("ok", "ok"))

    def start(self, name: str, image: str) -> "Reader":
        """A container of a pulled image."""
        return Reader(self.node.start(image, "/bin/busybox", "sleep", "1000"), name)


@pytest.fixture(scope="module")
def wire(registry: Registry, plane: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wire]:
    """On each plane in turn."""
    certs = tmp_path_factory.mktemp("certs")
    settings = {
        **ALONE,
        "fetch": {**ALONE["fetch"], "on_outage": f"wait:{WAIT_S}s"},
        "registry": {"connect_timeout_s": 2.0, "read_timeout_s": 2.0, "retries": 2, "config_path": [str(certs)]},
        "lazy": {"resolve_timeout_s": RESOLVE_S},
    }
    with ExitStack() as undo:
        faulty, store = (undo.enter_context(LoopbackRegistry()) for _ in range(2))
        tokens, dead = undo.enter_context(TokenServer()), undo.enter_context(ClosedPort())
        faulty.tokens, faulty.challenge = tokens, tokens.challenge()
        store.blobs = faulty.blobs
        faulty.redirects |= {"dead": f"http://127.0.0.1:{dead.port}", "home": faulty.url, "store": store.url}
        faulty.redirects |= {"tls": f"https://{store.host}", "metadata": "http://169.254.169.254"}
        this = undo.enter_context(node(registry, settings=settings, plane=plane))
        hosts = certs / this.reference("").partition("/")[0] / "hosts.toml"
        hosts.parent.mkdir()
        hosts.write_text(f'server = "{faulty.url}"\n')
        yield Wire(this, faulty, store)


READ_ALL = """
for kind in {kinds}; do
  ( read began _ < /proc/uptime; said=$(/bin/probe read /wire/$kind/{file} 2>&1)
    read ended _ < /proc/uptime; echo "$kind $began $ended $said" ) &
done
wait
"""


class Reader:
    """A container that reads a file of every kind at once."""

    def __init__(self, box: Container, name: str) -> None:
        self._box = box
        self.name = name
        # What it reads with comes before the faults.
        assert box.exec(["/bin/busybox", "sh", "-c", "/bin/probe uid"]).stdout == "0 0\n"

    def read(self, file: str) -> dict[str, tuple[str, float]]:
        """By kind: what it came to, and how many seconds it took."""
        script = READ_ALL.format(kinds=" ".join(KINDS), file=file)
        output = self._box.exec(["/bin/busybox", "sh", "-c", script])
        results = {}
        for line in output.stdout.splitlines():
            kind, began, ended, told = line.split(" ", 3)
            right = said(content(kind, file)).strip()
            answer = {right: RIGHT, "open EIO": EIO, "read EIO": EIO}.get(told, told)
            results[kind] = answer, float(ended) - float(began)
        assert results.keys() == KINDS.keys(), output.stderr
        return results

    def check(self, file: str, allowed: Callable[[Kind], set[str]]) -> None:
        """Each kind comes to what its row allows, within the deadline."""
        found = self.read(file)
        wrong = {kind: answer for kind, (answer, _) in found.items() if answer not in allowed(KINDS[kind])}
        late = {kind: took_s for kind, (_, took_s) in found.items() if took_s > DEADLINE_S + SLACK_S}
        assert not wrong, wrong
        assert not late, late

    def comes_right(self, *files: str) -> None:
        """From a sane registry everything can be read."""
        for file in files:
            right = lambda: {answer for answer, _ in self.read(file).values()} == {RIGHT}  # noqa: B023, E731
            wait_for(right, f"the return of {file} in {self.name}", 30)


@pytest.fixture(scope="module")
def reader(wire: Wire) -> Reader:
    """A container of an image that was pulled from a sane registry."""
    wire.push("wire:faults", faulty_layers(KINDS, [f"{size}-{times}" for size in (SMALL, LARGE) for times in TIMES]))
    image = wire.node.pull("wire:faults")
    assert set(wire.node.layer_states("wire:faults")) == {"lazy"}
    return wire.start("wire:faults", image)


class Pull:
    """A pull of an image of its own, beside reads of another one."""

    def __init__(self, wire: Wire, times: str) -> None:
        self._wire = wire
        self.name = f"wire:pulled-{times}"
        self.file = f"{PULLED}-{times}"
        self._layers = faulty_layers(KINDS, [self.file])
        wire.push(self.name, self._layers)

    def go(self) -> str:
        """Pull; return the image once it is clear that it took no longer than a pull may."""
        began = time.monotonic()
        image = self._wire.node.pull(self.name)
        assert time.monotonic() - began < RESOLVE_S + SLACK_S
        return image

    def states(self) -> dict[str, str]:
        """By kind: what became of the layer."""
        rows = self._wire.node.daemon.json("layers")
        found = {row["digest"]: row["state"] for row in rows if row["image"].endswith(f"/{self.name}")}
        return {kind: found[one.digest] for kind, one in self._layers.items()}

    def why(self) -> list[str]:
        """What the daemon says of layers that are not lazy."""
        return [line for line in self._wire.node.daemon.log().splitlines() if " is not lazy: " in line]


def test_fault_that_passes_is_not_seen_but_where_it_was_the_registrys_last_word(wire: Wire, reader: Reader) -> None:
    pull = Pull(wire, "once")
    wire.arm(once)
    with ThreadPoolExecutor() as threads:
        pulled = threads.submit(pull.go)
        # The kernel repeats a read that failed when it read ahead, and may be luckier.
        reader.check("small-once", lambda kind: {kind.once, RIGHT})
        image = pulled.result()
    wire.arm(once)
    reader.check("large-once", lambda kind: {kind.once, RIGHT})
    wire.mend()
    states = pull.states()
    assert {kind for kind, row in KINDS.items() if row.once == RIGHT and states[kind] != "lazy"} == set(), pull.why()
    reader.comes_right("small-once", "large-once")
    wire.start(pull.name, image).comes_right(pull.file)


def test_fault_that_stays_is_an_io_error_in_time_and_right_once_it_is_mended(wire: Wire, reader: Reader) -> None:
    pull = Pull(wire, "lasting")
    wire.arm(lasting)
    with ThreadPoolExecutor() as threads:
        pulled = threads.submit(pull.go)
        large = threads.submit(reader.check, "large-lasting", lambda kind: {kind.lasting})
        reader.check("small-lasting", lambda kind: {kind.lasting})
        large.result()
        image = pulled.result()
    wire.mend()
    states = pull.states()
    assert {kind for kind, row in KINDS.items() if row.lasting == RIGHT and states[kind] != "lazy"} == set(), pull.why()
    assert "ordinary" in states.values()
    reader.comes_right("small-lasting", "large-lasting")
    wire.start(pull.name, image).comes_right(pull.file)


@pytest.mark.long
def test_faults_at_other_moments_end_in_the_right_bytes_or_an_io_error_in_time(wire: Wire) -> None:
    names = [f"{size}-{name}" for size in (SMALL, LARGE) for name in ROUNDS]
    wire.push("wire:long", faulty_layers(KINDS, names))
    reader = wire.start("wire:long", wire.node.pull("wire:long"))
    for name in names:
        wire.arm(in_round(name.partition("-")[2]))
        reader.check(name, lambda _: {RIGHT, EIO})
        wire.mend()
        reader.comes_right(name)
    for name in ROUNDS:
        pull = Pull(wire, name)
        wire.arm(in_round(name))
        image = pull.go()
        wire.mend()
        wire.start(pull.name, image).comes_right(pull.file)


def test_there_are_as_many_kinds_as_were_promised() -> None:
    assert len({kind.word.partition("@")[0] for kind in KINDS.values()}) >= 30
