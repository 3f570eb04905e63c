"""Figures of starting: a program in a fetched image's next container, and an image that its node has never seen."""

import statistics
import subprocess
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from integration.bench.figure import BUILD, EROFS, FUSE, Figure, fetched_node, push_lazy
from integration.bench.turns import Comparison, in_turns
from integration.harness.cri import Container
from integration.harness.node import CRI_NAMESPACE, LAZY, WHOLE, Node, node
from integration.harness.process import wait_for
from integration.harness.registry import Registry
from integration.harness.scratch import drop_caches
from integration.images.sample import WORKLOAD, sample_image
from integration.images.tools import COMMANDS, READY, RUN, tools_image

NEXT_ROUNDS = 21
MOST_NEXT = 1.05
COLD_ROUNDS = 7
COLD_TIMEOUT_S = 120


def next_container(registry: Registry) -> Figure:
    """Start programs in containers of an image that other containers have used; what those have read is in memory."""
    return _next_container(registry, cold=False)


def next_container_cold(registry: Registry) -> Figure:
    """The same with nothing in memory."""
    return _next_container(registry, cold=True)


def cold_start(registry: Registry) -> Figure:
    """Pull an image to a node that has nothing, and wait for its container's first output: the demonstration's workload."""
    push_lazy(registry, sample_image(BUILD / "sample"), "sample")
    kinds = {EROFS: "sample:lazy", FUSE: "sample:lazy", WHOLE: "sample:plain"}
    pulls: dict[str, list[float]] = {kind: [] for kind in kinds}
    runs = [partial(_cold_start, registry, name, kind, pulls[kind]) for kind, name in kinds.items()]
    erofs, fuse, whole = (statistics.median(one) for one in in_turns(runs, rounds=COLD_ROUNDS))
    pulled = ", ".join(f"{statistics.median(one):.2f} s" for one in pulls.values())
    return Figure(
        "new node, pull to the container's first output: the erofs plane against the fuse plane and a whole pull",
        "-",
        f"{erofs / fuse:.2f} ×, {erofs / whole:.2f} ×",
        None,
        f"{erofs:.2f} s, {fuse:.2f} s and {whole:.2f} s, of which for pulling {pulled}; {COLD_ROUNDS} rounds",
    )


def _next_container(registry: Registry, *, cold: bool) -> Figure:
    """Each run in a new container; the time is from the command's start in the running container to its first output."""
    push_lazy(registry, tools_image(BUILD / "tools"), "tools")
    found = {}
    with ExitStack() as stay:
        nodes = (
            stay.enter_context(node(registry, snapshotter=WHOLE)),
            stay.enter_context(fetched_node(registry, "tools:lazy")),
            stay.enter_context(node(registry, snapshotter=WHOLE)),
        )
        images = {one: one.pull("tools:lazy") for one in nodes}
        for name in COMMANDS:
            runs = [partial(_first_output, one, images[one], name, cold=cold) for one in nodes]
            for run in runs:
                run()
            found[name] = Comparison(*in_turns(runs, rounds=NEXT_ROUNDS))
    spreads = ", ".join(f"{one.spread:.2f}" for one in found.values())
    times = ("{1:.3f} s, native {0:.3f} s".format(*one.seconds) for one in found.values())
    return Figure(
        f"command to first output in a fetched image's next container ({', '.join(found)}), "
        + ("nothing in memory" if cold else "what others read is in memory"),
        "-" if cold else f"≤ {MOST_NEXT} × beyond native's spread of {spreads}",
        ", ".join(f"{one.ratio:.3f}" for one in found.values()) + " ×",
        None if cold else all(one.ratio <= MOST_NEXT * one.spread for one in found.values()),
        f"{'; '.join(times)}; {NEXT_ROUNDS} rounds" + (f", native's spread {spreads}" if cold else ""),
    )


def _first_output(one: Node, image: str, name: str, *, cold: bool) -> float:
    """Seconds from a command's start in the namespaces of a container that nothing has been read through."""
    container = one.start(image, "/usr/bin/sleep", "600")
    try:
        if cold:
            drop_caches()
        enter = ["nsenter", "--target", str(_pid(one, container)), "--mount", "--pid", "--root", "--wd"]
        environment = dict(word.split("=", 1) for word in RUN["Env"])
        began = time.perf_counter()
        with subprocess.Popen([*enter, *COMMANDS[name]], stdout=subprocess.PIPE, env=environment) as process:
            output = process.stdout.read(1) if process.stdout else b""
            took = time.perf_counter() - began
            output += process.communicate()[0]
        if output != READY:
            message = f"{name} printed {output!r} and ended with {process.returncode}"
            raise RuntimeError(message)
    finally:
        container.remove()
    return took


def _pid(one: Node, container: Container) -> int:
    """The container's first process. Source: containerd's runtime v2, which leaves it in the folder of the task."""
    tasks = one.containerd.folder / "state" / "io.containerd.runtime.v2.task" / CRI_NAMESPACE
    return int(Path(tasks, container.id, "init.pid").read_text())


def _cold_start(registry: Registry, name: str, kind: str, pulls: list[float]) -> float:
    """Seconds from the pull's beginning to the first output, on a new node whose pod runs; those of the pull to `pulls`.

    `kind` is a plane, or the snapshotter of a whole pull.
    """
    whole = kind == WHOLE
    with node(registry, snapshotter=WHOLE if whole else LAZY, plane="auto" if whole else kind) as this:
        this.sandbox()
        drop_caches()
        began = time.perf_counter()
        image = this.pull(name)
        pulls.append(time.perf_counter() - began)
        container = this.start(image, *WORKLOAD)
        wait_for(lambda: container.has_printed() or container.ended(), "the container's first output", COLD_TIMEOUT_S)
        took = time.perf_counter() - began
        if not container.output().stdout.startswith("ready"):
            message = f"the workload failed: {container.output()}"
            raise RuntimeError(message)
        return took
