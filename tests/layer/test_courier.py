"""How much one demand read asks for."""

from dataclasses import dataclass, field
from pathlib import Path

import trio
import trio.testing

from snapshotter.layer.counters import Counters
from snapshotter.layer.courier import WINDOW_GROWTH, Courier
from snapshotter.layer.priority import Gates, Priority
from snapshotter.store.cache_db import CacheDB
from snapshotter.store.objects import ObjectStore
from tests.layer.world import QUIET

KIB = 1 << 10


@dataclass
class Answers:
    """Feeds latencies into a courier under a clock that only moves when told."""

    courier: Courier
    clock: trio.testing.MockClock = field(default_factory=trio.testing.MockClock)

    def take(self, *latencies_s: float) -> None:
        async def main() -> None:
            for latency_s in latencies_s:
                asked = trio.current_time()
                self.clock.jump(latency_s)
                self.courier._answered("slow.test", asked, Priority.DEMAND)

        trio.run(main, clock=self.clock)


def courier(tmp_path: Path) -> Courier:
    store = ObjectStore(tmp_path, CacheDB(tmp_path / "cache.db"), QUIET.cache)
    store.close()
    return Courier(store, Gates(), Counters(), 0)


def test_the_window_is_the_configured_one_where_answers_are_quick(tmp_path: Path) -> None:
    made = courier(tmp_path)
    Answers(made).take(0.001, 0.001)
    assert made.window("slow.test", 128 * KIB) == 128 * KIB
    assert made.window("never.asked", 128 * KIB) == 128 * KIB


def test_the_window_grows_with_latency_up_to_its_bound(tmp_path: Path) -> None:
    made = courier(tmp_path)
    Answers(made).take(0.02)
    assert made.window("slow.test", 128 * KIB) == 500_000
    Answers(made).take(*[10.0] * 20)
    assert made.window("slow.test", 128 * KIB) == WINDOW_GROWTH * 128 * KIB


def test_no_window_stays_no_window(tmp_path: Path) -> None:
    made = courier(tmp_path)
    Answers(made).take(5.0)
    assert made.window("slow.test", 0) == 0
