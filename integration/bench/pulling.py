"""The figure of pulling: how many round trips a pull costs."""

from integration.bench.figure import BUILD, QUIET, Figure, push_lazy
from integration.bench.turns import alternate, seconds
from integration.harness.node import node
from integration.harness.registry import Registry
from integration.images.sample import sample_image

ROUND_TRIP_S = 0.020
# One round trip is 20 ms, and so is what two busy cores add or take from one pull to the next.
ROUNDS = 9
MOST_ROUND_TRIPS = 8.0


def round_trips(registry: Registry) -> Figure:
    """Pull three layers through a line with 20 ms round trip, and through one without; each time on a new node."""
    push_lazy(registry, sample_image(BUILD / "sample"), "sample")
    near, far = alternate(lambda: _pull(registry, 0.0), lambda: _pull(registry, ROUND_TRIP_S), rounds=ROUNDS)
    trips = (far - near) / ROUND_TRIP_S
    what = "pull of 3 layers, (time through 20 ms − time without) ÷ 20 ms"
    detail = f"{far:.3f} s and {near:.3f} s"
    return Figure(what, f"≤ {MOST_ROUND_TRIPS:.0f}", f"{trips:.1f}", trips <= MOST_ROUND_TRIPS, detail)


def _pull(registry: Registry, round_trip_s: float) -> float:
    with node(registry, settings=QUIET, round_trip_s=round_trip_s) as lazy:
        return seconds(lambda: lazy.pull("sample:lazy"))
