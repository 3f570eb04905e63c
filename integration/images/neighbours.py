"""Two lazy images that have nothing in common but a node: one to get stuck on, one that must not notice."""

import random

from integration.harness.registry import RegistryClient
from integration.images.dialects import push_built
from integration.images.trial import programs
from tests.doubles.layers import BuiltLayer, dir, file, layer

STUCK = "neighbours-stuck:lazy"
CALM = "neighbours-calm:lazy"
READERS = 200
"""As many processes or threads can wait in reads, and as many in lookups."""

ROUNDS = 3
"""Files that each of those in lookups has: at the gate of the erofs plane one lookup ends after 1.5 s."""

SMALL = 40
PHASES = ("quiet", "reads", "lookups", "mapped")
_CHUNK = 4096
_LARGE = 3 << 20


def small(phase: str, number: int) -> bytes:
    """What `/<phase>/<number>` of the calm image holds."""
    return f"file {number} of {phase}\n".encode() * (50 * number + 1)


def large(phase: str) -> bytes:
    """What `/<phase>/large` of the calm image holds, in chunks of 1 MiB."""
    return random.Random(phase).randbytes(_LARGE)


def contents(phase: str) -> dict[str, bytes]:
    """The files of one phase, by path."""
    return {f"/{phase}/large": large(phase), **{f"/{phase}/{n}": small(phase, n) for n in range(SMALL)}}


def push_neighbours(client: RegistryClient) -> None:
    """Put both into a registry."""
    push_built(client, STUCK, [layer(*programs()), *_stuck()])
    calm = layer(
        *programs(),
        *(dir(name) for name in PHASES),
        *(file(f"{p}/{n}", small(p, n)) for p in PHASES for n in range(SMALL)),
    )
    push_built(client, CALM, [calm, layer(*(file(f"{p}/large", large(p)) for p in PHASES), chunk_size=1 << 20)])


def _stuck() -> list[BuiltLayer]:
    """Many small files, which the gate fetches while they are opened, and as many of two chunks, which it serves."""
    names = [f"{number}-{turn}" for number in range(READERS) for turn in range(ROUNDS)]
    single = (file(f"small/{name}", f"small {name}\n".encode()) for name in names)
    double = (file(f"large/{n}", random.Random(n).randbytes(2 * _CHUNK)) for n in range(READERS))
    return [layer(dir("small"), *single), layer(dir("large"), *double, chunk_size=_CHUNK)]
