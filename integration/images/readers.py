"""A lazy image for programs that read all the time and know what every byte must be (`reader.c`).

Each image has files of its own, so that what one test has fetched is not there for another.
"""

import random
import subprocess
import tempfile
import zlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from integration.harness.cri import Container
from integration.harness.node import Node
from integration.harness.registry import RegistryClient
from integration.images.dialects import push_built
from integration.images.trial import programs
from tests.doubles.layers import dir, file, layer

READER = "/bin/reader"
STOP = "/tmp/stop"
PROBED = "/probed/large"
"""Never read as a whole: on the erofs plane it stays with FUSE in the container that has it open."""

VICTIM = "/victim"
"""A file that no reader asks for."""
VICTIM_DATA = b"what a request asks for that ends badly\n"

_SOURCE = Path(__file__).with_name("reader.c")
_BLOCK = 1 << 16
_CHUNK = 1 << 19


@dataclass(frozen=True, slots=True)
class Gap:
    """A read that took long: when it began, by the monotonic clock, and how long it took, in seconds."""

    began_s: float
    took_s: float


@cache
def _reader() -> bytes:
    with tempfile.TemporaryDirectory() as place:
        made = Path(place, "reader")
        subprocess.run(["gcc", "-O2", "-static", "-s", "-o", made, _SOURCE], check=True)
        return made.read_bytes()


def push_readers_image(
    client: RegistryClient, name: str, *, seed: int, small: int = 400, large: int = 6, large_size: int = 3 << 20
) -> None:
    """Put an image into the registry: `small` files of up to 60 kB in 20 directories, `large` ones in chunks of 512 KiB."""
    chance = random.Random(seed)
    files = {f"data/{number % 20}/{number}": chance.randbytes(chance.randrange(1, 60_000)) for number in range(small)}
    files |= {f"large/{number}": chance.randbytes(large_size + chance.randrange(_BLOCK)) for number in range(large)}
    probed = chance.randbytes(4 * _CHUNK)
    folders = ["data", *(f"data/{number}" for number in range(20)), "large", "probed"]
    truth = [f"/{path} {len(data)} {_sums(data)}\n" for path, data in files.items()]
    truth += [f"/data/{number} - {sum(path.startswith(f'data/{number}/') for path in files)}\n" for number in range(20)]
    lower = layer(
        *programs(),
        file("bin/reader", _reader(), mode=0o755),
        *(dir(folder) for folder in folders),
        *(file(path, data) for path, data in files.items() if path.startswith("data/")),
        file("truth", "".join(truth).encode()),
        file(VICTIM[1:], VICTIM_DATA),
    )
    upper = layer(
        dir("large"),
        dir("probed"),
        *(file(path, data) for path, data in files.items() if path.startswith("large/")),
        file(PROBED[1:], probed),
        chunk_size=_CHUNK,
    )
    push_built(client, name, [lower, upper])


def _sums(data: bytes) -> str:
    return " ".join(str(zlib.crc32(data[at : at + _BLOCK])) for at in range(0, len(data), _BLOCK))


def start_reader(node: Node, image: str, seed: int) -> Container:
    """A container that reads at random until `stop_readers`."""
    return node.start(image, READER, "read", "/truth", STOP, str(seed))


def start_probe(node: Node, image: str) -> Container:
    """A container that reads the same page again and again, from the daemon each time."""
    return node.start(image, READER, "probe", PROBED, STOP)


def stop_readers(node: Node, containers: list[Container]) -> list[list[str]]:
    """End them and return what each has printed, in lines."""
    for container in containers:
        (node.rootfs(container) / STOP[1:]).touch()
    return [container.wait().stdout.splitlines() for container in containers]


def faults_of(lines: list[str]) -> list[str]:
    """What a reader found wrong, and its end if that is not as it should be."""
    found = [line for line in lines if line.startswith("fault")]
    return found if lines and lines[-1].startswith("done") else [*found, f"no end: {lines[-3:]}"]


def gaps_of(lines: list[str]) -> list[Gap]:
    """The reads of a probe that took long."""
    rows = (line.split() for line in lines if line.startswith("gap"))
    return [Gap(int(began) / 1e9, int(took) / 1e9) for _, began, took in rows]
