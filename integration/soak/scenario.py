"""A soak put together: nodes of different kinds on one flaky line, each with its crew, its watcher and maybe its killer."""

import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from integration.conftest import BUILD
from integration.harness.daemon import Table
from integration.harness.node import PAUSE, Node, node
from integration.harness.registry import Registry
from integration.harness.scratch import scratch
from integration.images.sample import pause_image
from integration.soak.crew import Crew
from integration.soak.ending import leftovers
from integration.soak.flaky import FlakyLine, flaky_line
from integration.soak.images import SoakImage, push_soak, soak_images
from integration.soak.killer import Killer
from integration.soak.ledger import Ledger
from integration.soak.plan import KINDS, Kind, Plan
from integration.soak.watcher import Watcher

QUOTA = 12 << 20
"""Bytes of the cache; the images' files are several times as many."""

SAY_EVERY_S = 30.0


@dataclass(frozen=True, slots=True)
class Findings:
    """What came of it. `left` is by node, as are the watchers."""

    plan: Plan
    ledger: Ledger
    watchers: Mapping[str, Watcher]
    left: Mapping[str, list[str]]
    outages: int
    failed_requests: int


class _Crowd:
    """Threads that work until `stop`; an exception of one is a fault."""

    def __init__(self, ledger: Ledger) -> None:
        self.stop = threading.Event()
        self._ledger = ledger
        self._pool = ThreadPoolExecutor(64)
        self._futures: list[Future[None]] = []

    def add(self, name: str, work: Callable[[], None]) -> None:
        def guarded() -> None:
            try:
                work()
            except Exception:  # noqa: BLE001 (whatever it is, it is reported)
                self._ledger.fault(name, traceback.format_exc())

        self._futures.append(self._pool.submit(guarded))

    def end(self) -> None:
        self.stop.set()
        self._pool.shutdown()


def soak(registry: Registry, plan: Plan) -> Findings:
    """Run it; what was found is in the findings, and nothing of it runs any more."""
    images, ledger = soak_images(), Ledger()
    with registry.client() as client:
        push_soak(client, images)
        pause_image(BUILD / "pause").push(client, PAUSE)
    with flaky_line(plan.seed, plan.outage_s) as line, ExitStack() as undo:
        for image in images:
            for one in image.layers:
                line.registry.add_blob(one.blob)
        nodes = {name: undo.enter_context(_node(registry, line, KINDS[name], images)) for name in plan.kinds}
        watchers = _run(plan, nodes, images, line, ledger)
        print(f"soak: time is up; what is left on {', '.join(nodes)}?", flush=True)
        with ThreadPoolExecutor(len(nodes)) as threads:
            judge = partial(leftovers, names=[image.name for image in images])
            left = dict(zip(nodes, threads.map(judge, nodes.values()), strict=True))
        return Findings(plan, ledger, watchers, left, line.registry.outages, line.registry.failed)


@contextmanager
def _node(registry: Registry, line: FlakyLine, kind: Kind, images: list[SoakImage]) -> Iterator[Node]:
    """A node that has the images, led to the flaky line for what is in them."""
    with scratch() as place:
        settings: Table = {
            "fetch": {"background": kind.background, "background_delay_s": 0.5},
            "cache": {"quota": QUOTA, "min_free": 0},
            "registry": {"connect_timeout_s": 3.0, "read_timeout_s": 3.0, "config_path": [str(place.folder)]},
        }
        with node(registry, settings=settings, plane=kind.plane) as made:
            made.sandbox()
            hosts = Path(place.folder, made.reference("").partition("/")[0], "hosts.toml")
            hosts.parent.mkdir()
            hosts.write_text(f'server = "http://{line.relay.address}"\n')
            for image in images:
                made.pull(image.name)
            yield made


def _run(
    plan: Plan, nodes: Mapping[str, Node], images: list[SoakImage], line: FlakyLine, ledger: Ledger
) -> dict[str, Watcher]:
    """Let everything happen at once for the plan's time."""
    crowd, watchers, began = _Crowd(ledger), dict[str, Watcher](), time.monotonic()
    try:
        crowd.add("line", lambda: line.run(crowd.stop))
        for name, one in nodes.items():
            killer = Killer(name, one, ledger, seed=plan.seed, life_s=plan.daemon_life_s)
            watchers[name] = Watcher(one, killer.age_s, began)
            if KINDS[name].killed:
                crowd.add(name, lambda killer=killer: killer.run(crowd.stop))  # type: ignore[misc]
            crowd.add(name, lambda watcher=watchers[name]: watcher.run(crowd.stop, plan.sample_every_s))  # type: ignore[misc]
            crew = Crew(name, one, images, ledger, plan=plan, undisturbed=not KINDS[name].killed)
            for slot in range(plan.slots):
                crowd.add(name, lambda crew=crew, slot=slot: crew.run(slot, crowd.stop))  # type: ignore[misc]
        while (left_s := began + plan.seconds - time.monotonic()) > 0:
            time.sleep(min(left_s, SAY_EVERY_S))
            _say(time.monotonic() - began, line, ledger)
    finally:
        crowd.end()
    return watchers


def _say(passed_s: float, line: FlakyLine, ledger: Ledger) -> None:
    counts = ledger.counts
    print(
        f"soak: {passed_s:.0f} s: {counts['containers']} containers, {counts['bytes verified'] / 1e6:.0f} MB verified, "
        f"{counts['kills'] + counts['kills of a daemon that starts']} kills, {line.registry.outages} outages, "
        f"{counts['faults']} faults",
        flush=True,
    )
