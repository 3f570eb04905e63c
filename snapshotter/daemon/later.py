"""The modules that containerd and the commands need, and the kernel does not: gRPC above all."""

from importlib import import_module
from typing import Final

SERVICES: Final = (
    "snapshotter.containerd.content",
    "snapshotter.daemon.activity",
    "snapshotter.daemon.node",
    "snapshotter.daemon.planes",
    "snapshotter.daemon.services",
    "snapshotter.daemon.stranded",
    "snapshotter.service.bridge",
)

METRICS: Final = ("snapshotter.daemon.monitoring", "snapshotter.daemon.numbers", "snapshotter.daemon.sampling")


def load_services(*, metrics: bool) -> None:
    """Have them, those for `metrics` too if there are any.

    Takes a tenth of a second and more; in a thread of its own it holds up nobody who reads.
    """
    for name in (*SERVICES, *METRICS) if metrics else SERVICES:
        import_module(name)
