"""Images for power losses: many alike, of small files and of large ones in several chunks, each content in one image only."""

import random
from functools import cache

from integration.harness.registry import RegistryClient
from integration.images.dialects import push_built
from integration.images.trial import programs
from tests.doubles.layers import BuiltLayer, dir, file, layer

SMALL_FILES = 40
LARGE_FILES = 4
CHUNK = 128 << 10


def name_of(number: int) -> str:
    """`repository:tag` of an image."""
    return f"power:{number}"


@cache
def contents(number: int) -> dict[str, bytes]:
    """Files of an image by path, but for the programs that all have."""
    dice = random.Random(f"power {number}")
    files = {f"small/{n}": dice.randbytes(dice.choice((30, 900, 5_000, 40_000))) for n in range(SMALL_FILES)}
    return files | {f"large/{n}": dice.randbytes(dice.randint(8, 24) * CHUNK + 777) for n in range(LARGE_FILES)}


def _layers(number: int) -> list[BuiltLayer]:
    files = contents(number)
    small = [file(path, data) for path, data in files.items() if path.startswith("small/")]
    large = [file(path, data) for path, data in files.items() if path.startswith("large/")]
    own = file("number", b"%d\n" % number)
    return [
        layer(*programs(), own),
        layer(dir("small"), *small),
        layer(dir("large"), *large, chunk_size=CHUNK, level=0),
    ]


def push(client: RegistryClient, count: int) -> None:
    """Put so many images into a registry, as far as it does not have them."""
    for number in range(count):
        repository, _, tag = name_of(number).partition(":")
        if not client.has(repository, tag):
            push_built(client, name_of(number), _layers(number))
