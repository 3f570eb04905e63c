"""Figures of what images share: memory and disk for two that have most files in common, the wire for the next version."""

import hashlib
import json
import os
import statistics
import zlib
from collections.abc import Collection, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path

from integration.bench.figure import BUILD, EROFS, FILLING, Figure, fetched_node, push_lazy, until_complete
from integration.harness.leftovers import CGROUPS
from integration.harness.node import WHOLE, Node, node
from integration.harness.registry import Registry, RegistryClient
from integration.harness.scratch import drop_caches
from integration.images.versions import Series, busybox
from snapshotter.format.footer import Footer, parse_footer, toc_json

# Nine files in ten are the same in both, 100 MB of them.
PAIR = Series(files=1200, smallest=2_000, largest=180_000, changed=120)
PAIR_ROUNDS = 3
PAGE = 4096
BLOCK = 512
"""What st_blocks counts in."""
MOST_COPIES = 1.05
"""The file systems' own blocks and what else the machine reads meanwhile are counted too."""

# One file in twenty is another one in the next version.
RELEASE = Series(files=2000, smallest=2_000, largest=40_000, changed=100)
MOST_UPDATE = 1.1
GZIP = 31
CONTENTS = ("objects", "partial", "late", "unproven", "snapshots")
"""Where in a daemon's root contents may lie."""

READ_ALL = ("/bin/busybox", "sh", "-c", "/bin/busybox find /files -type f -exec /bin/busybox cat {} + >/dev/null")
SLEEP = ("/bin/busybox", "sleep", "600")


def copies(registry: Registry) -> Figure:
    """How often what two images share lies on the disk and, after containers of both have read everything, in memory."""
    names = _push(registry, "pair", PAIR)
    contents = [_sizes(PAIR, version) for version in (1, 2)]
    with ExitStack() as stay:
        lazy = stay.enter_context(fetched_node(registry, *names))
        whole = stay.enter_context(node(registry, snapshotter=WHOLE))
        lazy_memory, whole_memory = (_copies_in_memory(this, names, contents) for this in (lazy, whole))
        lazy_disk = _copies(_bytes_below(*(lazy.daemon.root / name for name in CONTENTS)) - _pages(busybox()), contents)
        unpacked = whole.containerd.folder / "root" / "io.containerd.snapshotter.v1.overlayfs"
        whole_disk = _copies(_bytes_below(unpacked) - _pages(busybox()), contents)
    return Figure(
        "copies of what two images share (90 % of their files): on the disk, in the page cache",
        "1, 1",
        f"{lazy_disk:.2f}, {lazy_memory:.2f}",
        max(lazy_disk, lazy_memory) <= MOST_COPIES,
        f"unpacked {whole_disk:.2f}, {whole_memory:.2f}; {sum(_common(contents).values()) / 1e6:.0f} MB are shared",
    )


def update(registry: Registry) -> Figure:
    """Pull the next version of an image that is on the node, run a container of it and wait until all of it is there."""
    old, new = _push(registry, "release", RELEASE)
    with node(registry, settings=FILLING, plane=EROFS) as lazy:
        lazy.pull(old)
        until_complete(lazy, old)
        lazy.sandbox()
        before, fetched = lazy.traffic(), _fetched(lazy)
        image = lazy.pull(new)
        first, *_ = changed = RELEASE.changing()
        printed = lazy.run(image, "/bin/busybox", "cat", f"/{first}")
        until_complete(lazy, new)
        traffic, fetched = lazy.traffic().since(before), _fetched(lazy) - fetched
    if printed.stdout != dict(RELEASE.contents(2))[first].decode():
        message = f"the container read something else: {printed.stderr or printed.stdout[:100]!r}"
        raise RuntimeError(message)
    with registry.client() as client:
        files, tocs, config, manifest = _parts(client, new, changed)
    needed = files + tocs + config
    ratio = traffic.received / needed
    return Figure(
        f"next version of an image ({RELEASE.changed} of {RELEASE.files} files differ): bytes received until all of it is there",
        f"≤ {MOST_UPDATE} × files, TOC and config",
        f"{ratio:.3f} ×",
        ratio <= MOST_UPDATE,
        f"{traffic.received} bytes with HTTP headers; {(fetched + manifest + config) / needed:.3f} × without, manifest included; "
        f"files {files}, TOC {tocs}, config {config}",
    )


def _push(registry: Registry, name: str, series: Series) -> list[str]:
    """Two versions of an image in one repository, as `name`:lazy-1 and `name`:lazy-2."""
    for version in (1, 2):
        push_lazy(registry, series.image(BUILD / f"{name}-{version}", version), name, f"-{version}")
    return [f"{name}:lazy-{version}" for version in (1, 2)]


def _sizes(series: Series, version: int) -> Mapping[bytes, int]:
    """Bytes of whole pages of each content, by its hash."""
    contents = (content for _, content in series.contents(version))
    return {hashlib.sha256(content).digest(): _pages(content) for content in contents}


def _pages(content: bytes | Path) -> int:
    """Bytes of the whole pages that a content or a file takes."""
    size = content.stat().st_size if isinstance(content, Path) else len(content)
    return -(-size // PAGE) * PAGE


def _common(contents: Iterable[Mapping[bytes, int]]) -> dict[bytes, int]:
    one, other = contents
    return {digest: size for digest, size in one.items() if digest in other}


def _copies(occupied: float, contents: Iterable[Mapping[bytes, int]]) -> float:
    """How often the common contents are in what is occupied, beside one copy of everything else."""
    one, other = contents
    common = sum(_common((one, other)).values())
    return (occupied - (sum(one.values()) + sum(other.values()) - 2 * common)) / common


def _copies_in_memory(this: Node, names: Iterable[str], contents: Iterable[Mapping[bytes, int]]) -> float:
    containers = [this.start(this.pull(name), *SLEEP) for name in names]
    grown = []
    for _ in range(PAIR_ROUNDS):
        drop_caches()
        for container in containers:  # what starts a program in a container comes back into memory
            container.exec(["/bin/busybox", "true"])
        before = _cached(this)
        for container in containers:
            container.exec(READ_ALL)
        grown.append(_cached(this) - before)
    return _copies(statistics.median(grown), contents)


def _cached(this: Node) -> int:
    """Bytes of page cache that the node's containers have brought into memory, each page counted where it was read first.

    Source: Linux admin-guide/cgroup-v1/memory.rst, total_cache; admin-guide/cgroup-v2.rst, memory.stat, file.
    """
    for top in (CGROUPS / "memory", CGROUPS):
        counts = top / this.place.name / "memory.stat"
        if counts.exists():
            numbers = dict(line.split() for line in counts.read_text().splitlines())
            return int(numbers.get("total_cache") or numbers["file"])
    message = "there is no memory controller of control groups, by which containers' page cache is counted"
    raise RuntimeError(message)


def _bytes_below(*folders: Path) -> int:
    """What the regular files below `folders` occupy, hard links counted once."""
    found = {}
    for folder in folders:
        for place, _, names in os.walk(folder):
            for name in names:
                status = os.lstat(Path(place, name))
                found[status.st_dev, status.st_ino] = status.st_blocks * BLOCK
    return sum(found.values())


def _fetched(lazy: Node) -> int:
    """Bytes of layers that the daemon has received."""
    status = lazy.daemon.json("status")
    return sum(int(status[f"fetched_{why}"]) for why in ("demand", "prefetch", "background"))


def _parts(client: RegistryClient, name: str, changed: Collection[str]) -> tuple[int, int, int, int]:
    """Compressed bytes that are new in an image: of the changed files, of the TOCs of layers with some, config, manifest."""
    repository, _, tag = name.partition(":")
    manifest = client.manifest(repository, tag)
    files = tocs = 0
    for layer in manifest["layers"]:
        blob = client.blob(repository, layer["digest"])
        footer: Footer = parse_footer(blob, len(blob))
        entries = json.loads(toc_json(footer, blob[footer.toc_offset : footer.toc_end]))["entries"]
        offsets = [entry["offset"] for entry in entries if entry["name"] in changed]
        if offsets:
            files += sum(_member_size(blob[offset:]) for offset in offsets)
            tocs += len(blob) - footer.toc_offset
    return files, tocs, manifest["config"]["size"], len(json.dumps(manifest))


def _member_size(data: bytes) -> int:
    """Bytes of the gzip member that `data` begins with."""
    member = zlib.decompressobj(GZIP)
    member.decompress(data)
    return len(data) - len(member.unused_data)
