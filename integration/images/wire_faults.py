"""Images for the tests of wire faults: for each kind of fault a layer of its own, whose files nobody else reads."""

import random
from collections.abc import Iterable, Mapping, Sequence
from functools import cache

from tests.doubles.layers import BuiltLayer, dir, file, layer

CHUNK = 64 << 10
SIZES: Mapping[str, int] = {"small": 20_000, "large": CHUNK + 1234}
"""One member, and two."""


@cache
def content(kind: str, name: str) -> bytes:
    """What `/wire/<kind>/<name>` holds: noise, so that a range of the blob is as long as what it brings."""
    return random.Random(f"{kind} {name}").randbytes(SIZES[name.partition("-")[0]])


def faulty_layers(kinds: Iterable[str], names: Sequence[str]) -> dict[str, BuiltLayer]:
    """By kind: a layer with a file of each name, such as `large-once`."""
    return {kind: _layer(kind, tuple(names)) for kind in kinds}


@cache
def _layer(kind: str, names: tuple[str, ...]) -> BuiltLayer:
    files = (file(f"wire/{kind}/{name}", content(kind, name)) for name in names)
    return layer(dir("wire"), dir(f"wire/{kind}"), *files, chunk_size=CHUNK)
