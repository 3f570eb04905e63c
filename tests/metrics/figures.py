"""Figures in which every series that can be has a value of its own."""

from snapshotter.metrics.figures import CacheFigures, Distribution, Figures

WAITS = Distribution((0.1, 1.0), (3, 2, 1), 7.5)

CACHE = CacheFigures(
    bytes_by_kind={"object": 11, "partial": 12, "deleted-open": 13},
    files_by_kind={"object": 14, "partial": 15},
    used=36,
    quota=100,
    high_water=95,
    unproven=16,
    disk_free=1000,
    disk_min_free=100,
    disk_capacity=5000,
)

FIGURES = Figures(
    version="1.2.3",
    python="3.11.0",
    plane="erofs",
    session=4,
    problems=2,
    loop_delay=0.25,
    pulled={("lazy", ""): 5, ("ordinary", "timeout"): 1},
    layers={"lazy": 3, "failed": 1},
    layers_through_fuse=1,
    snapshots={"active": 2},
    fetched={("demand", "registry.test"): 1234, ("background", "other"): 5},
    fetches={"registry.test": 6},
    fetch_failures={"registry.test": 1},
    host_failing={"registry.test": 1},
    host_passed_over={"mirror.test": 1},
    breaker_open={"registry.test": 0},
    first_byte={"demand": WAITS},
    whole_fetch={"demand": WAITS},
    retries=7,
    retries_given_up=1,
    reads=8,
    read_bytes={"cache": 80, "registry": 9},
    waits={"read": WAITS},
    waiting={"read": 2},
    verification_failures=1,
    served_from_memory=3,
    fuse_operations={"lookup": 10},
    fuse_errors={"read": 4},
    cache=CACHE,
    evicted_bytes=17,
    evicted_files={"object": 2},
    cache_faults={"torn": 1},
    calls={("Snapshots/Prepare", "OK"): WAITS},
)


class Fixed:
    """Numbers that do not change, unless the test says so."""

    def __init__(self, figures: Figures = FIGURES) -> None:
        self.figures = figures

    def read(self) -> Figures:
        return self.figures
