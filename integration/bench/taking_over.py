"""Figures of a daemon that dies: how long those wait who read at that moment, and a restart with many layers."""

import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

from integration.bench.figure import BUILD, EROFS, FUSE, QUIET, Figure
from integration.harness.cri import Container
from integration.harness.daemon import Table
from integration.harness.node import PAUSE, Node, node
from integration.harness.process import Process, wait_for
from integration.harness.registry import Registry
from integration.images.dialects import push_built
from integration.images.readers import Gap, faults_of, gaps_of, push_readers_image, start_probe, stop_readers
from integration.images.sample import pause_image
from integration.images.trial import programs
from tests.doubles.layers import dir, file, layer

KILLS = 25
BETWEEN_S = 0.7
MET_S = 0.05
MEDIAN_S, WORST_S, STANDBY_S = 0.3, 1.0, 0.05
IMAGES, LAYERS, FILES = 10, 10, 300
RESTARTS = 5
RESTART_S = 2.0
ALONE: Table = {**QUIET, "fetch": {"background": False, "demand_window": 0}}


def pause(registry: Registry) -> Figure:
    """What a reader waits when the daemon is killed and started at once, on both planes."""
    found = {plane: _pauses(registry, plane, standby=False) for plane in (EROFS, FUSE)}
    loading = _loading_s()
    both = [*found[EROFS], *found[FUSE]]
    median, worst = statistics.median(both), max(both)
    return Figure(
        "pause of a reader when the daemon is killed and started at once",
        f"< {MEDIAN_S} s, worst < {WORST_S} s",
        f"{median:.3f} s, worst {worst:.3f} s",
        median < MEDIAN_S and worst < WORST_S,
        f"{median / loading:.1f} × the {loading:.3f} s in which Python imports trio and pyfuse3; "
        + ", ".join(f"{plane} {statistics.median(one):.3f} s" for plane, one in found.items())
        + f"; {KILLS} kills each",
    )


def pause_with_standby(registry: Registry) -> Figure:
    """The same with another daemon standing by."""
    found = {plane: _pauses(registry, plane, standby=True) for plane in (EROFS, FUSE)}
    loading = _loading_s()
    median = statistics.median([*found[EROFS], *found[FUSE]])
    return Figure(
        "pause of a reader when another daemon stands by",
        f"< {STANDBY_S} s",
        f"{median:.3f} s",
        median < STANDBY_S,
        f"{median / loading:.2f} × the {loading:.3f} s in which Python imports trio and pyfuse3; "
        + ", ".join(f"{plane} {statistics.median(one):.3f} s, worst {max(one):.3f} s" for plane, one in found.items()),
    )


def restart(registry: Registry) -> Figure:
    """From the start of a daemon with many layers, without a registry, to its answer to a reader and to containerd."""
    _push_many(registry)
    answered, served = [], []
    with node(registry, settings=ALONE) as one:
        _push_readers(registry, "readers:restart")
        probe = _begin_probe(one, "readers:restart")
        for number in range(IMAGES):
            one.pull(f"many:{number}")
        with one.outage():
            for _ in range(RESTARTS):
                one.daemon.stop(signal.SIGKILL)
                began = time.monotonic()
                one.daemon.start()
                served.append(time.monotonic() - began)
                time.sleep(BETWEEN_S)
        (lines,) = stop_readers(one, [probe])
        answered = [gap.took_s for gap in gaps_of(lines)][-RESTARTS:]
        layers = len(one.daemon.json("layers"))
    loading = _loading_s()
    return Figure(
        f"restart with {layers} layers mounted and no registry, until commands and containerd are answered",
        f"< {RESTART_S:.0f} s",
        f"{statistics.median(served):.2f} s",
        statistics.median(served) < RESTART_S and not faults_of(lines),
        f"{statistics.median(served) / loading:.1f} × the {loading:.3f} s in which Python imports trio and pyfuse3; readers "
        f"wait {statistics.median(answered or [0.0]):.2f} s; {RESTARTS} rounds",
    )


def _pauses(registry: Registry, plane: str, *, standby: bool) -> list[float]:
    """How long a probe waited at each kill, in seconds."""
    name = f"readers:pause-{plane}"
    _push_readers(registry, name)
    with node(registry, settings=ALONE, plane=plane) as one:
        probe = _begin_probe(one, name)
        killed = [
            _kill(one, waiting) for waiting in (one.daemon.begin_standby() if standby else None for _ in range(KILLS))
        ]
        (lines,) = stop_readers(one, [probe])
    if faults := faults_of(lines):
        message = f"a reader saw a fault: {faults[0]}"
        raise RuntimeError(message)
    return [_pause(gaps_of(lines), moment) for moment in killed]


def _pause(gaps: list[Gap], moment: float) -> float:
    """From the kill to the end of the read that met it: the one under way, or the next, 2 ms later."""
    return next((gap.began_s + gap.took_s - moment for gap in gaps if -gap.took_s < gap.began_s - moment < MET_S), 0.0)


def _kill(one: Node, standby: Process | None) -> float:
    """Kill the daemon and have the next one; returns when that was, by the monotonic clock."""
    moment = time.monotonic()
    if standby is None:
        one.daemon.stop(signal.SIGKILL)
        one.daemon.start()
    else:
        one.daemon.succeed(standby, signal.SIGKILL)
    time.sleep(BETWEEN_S)
    return moment


def _begin_probe(one: Node, name: str) -> Container:
    probe = start_probe(one, one.pull(name))
    wait_for(probe.has_printed, "the beginning of a probe", 60)
    return probe


def _loading_s() -> float:
    """What any daemon of ours takes at least."""
    took = []
    for _ in range(9):
        began = time.monotonic()
        subprocess.run([sys.executable, "-c", "import trio, pyfuse3"], check=True, cwd=Path("/"))
        took.append(time.monotonic() - began)
    return statistics.median(took)


def _push_readers(registry: Registry, name: str) -> None:
    with registry.client() as client:
        pause_image(BUILD / "pause").push(client, PAUSE)
        push_readers_image(client, name, seed=5, small=20, large=1)


def _push_many(registry: Registry) -> None:
    with registry.client() as client:
        for image in range(IMAGES):
            built = [
                layer(
                    *(programs() if not number else ()),
                    dir(f"d{number}"),
                    *(file(f"d{number}/{n}", f"{n} of {image}.{number}\n".encode()) for n in range(FILES)),
                )
                for number in range(LAYERS)
            ]
            push_built(client, f"many:{image}", built)
