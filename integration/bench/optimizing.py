"""The figure of optimizing: what a container of an optimized image still has to ask for before its first output."""

import json
from collections.abc import Mapping
from itertools import takewhile

from integration.bench.figure import BUILD, EROFS, FUSE, Figure, push_lazy
from integration.harness.daemon import Table, snapshotter
from integration.harness.node import WHOLE, Node, node
from integration.harness.process import wait_for
from integration.harness.registry import Registry, RegistryClient
from integration.images.sample import WORKLOAD, sample_image
from snapshotter.format.footer import Footer, parse_footer, toc_json
from snapshotter.format.tar_entries import PREFETCH_LANDMARK

# What is in front comes by itself, and then nothing but what somebody opens or reads.
IN_FRONT_ONLY: Table = {"fetch": {"background": False, "demand_window": 0}, "cache": {"min_free": 0}}
PLAIN, LAZY_IMAGE, OPTIMIZED = "sample:plain", "sample:lazy", "sample:optimized"
TIMEOUT_S = 120
FIRST_WORD = "ready"


def first_files(registry: Registry) -> Figure:
    """Start a container of an optimized image where what is in front is there, and see which files come besides.

    The daemon is asked before the container is made and after its first output. On the erofs plane whoever opens a file
    makes it come, on the fuse plane whoever reads it.
    """
    push_lazy(registry, sample_image(BUILD / "sample"), "sample")
    _optimize(registry)
    with registry.client() as client:
        in_front, names = _in_front(client, OPTIMIZED)
    more = {plane: _fetched_by_a_start(registry, OPTIMIZED, plane, in_front) for plane in (EROFS, FUSE)}
    without = _fetched_by_a_start(registry, LAZY_IMAGE, EROFS, {})
    missed = [names.get(name, name) for found in more.values() for name in found]
    return Figure(
        "files opened before the first output of an optimized image's container that were not in front: "
        "on the erofs plane, on the fuse plane",
        "0, 0",
        ", ".join(str(len(found)) for found in more.values()),
        not missed,
        f"{len(in_front)} files are in front; of an image that is not optimized {len(without)} are fetched"
        + (f"; {', '.join(sorted(missed)[:10])}" if missed else ""),
    )


def _optimize(registry: Registry) -> None:
    """Put what a run of the workload reads in front, and watch it until its first output."""
    with node(registry, snapshotter=WHOLE) as whole, registry.client() as client:
        if client.has(*OPTIMIZED.split(":")):
            return
        command = ["image", "optimize", "--containerd", str(whole.containerd.address), "--namespace", whole.place.name]
        run = ["--entrypoint", json.dumps(WORKLOAD), "--args", "[]", "--wait-on-line", FIRST_WORD]
        where = [f"{registry.host}/{name}" for name in (PLAIN, OPTIMIZED)]
        snapshotter([*command, *run, "--period", str(TIMEOUT_S), *where])


def _in_front(client: RegistryClient, image: str) -> tuple[Mapping[str, int], Mapping[str, str]]:
    """Digest and size of every content before the landmarks, and a path for each content of the image."""
    repository, _, tag = image.partition(":")
    in_front: dict[str, int] = {}
    names: dict[str, str] = {}
    for layer in client.manifest(repository, tag)["layers"]:
        blob = client.blob(repository, layer["digest"])
        footer: Footer = parse_footer(blob, len(blob))
        rows = json.loads(toc_json(footer, blob[footer.toc_offset : footer.toc_end]))["entries"]
        files = [row for row in rows if row["type"] == "reg"]
        names |= {row["digest"]: row["name"] for row in files if row.get("size")}
        if any(row["name"] == PREFETCH_LANDMARK for row in files):
            before = takewhile(lambda row: row["name"] != PREFETCH_LANDMARK, files)
            in_front |= {row["digest"]: row["size"] for row in before if row.get("size")}
    return in_front, names


def _fetched_by_a_start(registry: Registry, image: str, plane: str, in_front: Mapping[str, int]) -> list[str]:
    """Contents of which a container's start brought bytes, up to its first output."""
    with node(registry, settings=IN_FRONT_ONLY, plane=plane) as this:
        this.sandbox()
        pulled = this.pull(image)
        wait_for(lambda: in_front.items() <= _present(this).items(), "the end of prefetching", TIMEOUT_S)
        before = _present(this)
        container = this.start(pulled, *WORKLOAD)
        wait_for(lambda: container.has_printed() or container.ended(), "the container's first output", TIMEOUT_S)
        after = _present(this)
        container.wait()
        if not container.output().stdout.startswith(FIRST_WORD):
            message = f"the workload failed: {container.output()}"
            raise RuntimeError(message)
        return [name for name, present in after.items() if present > before.get(name, 0)]


def _present(this: Node) -> dict[str, int]:
    """Bytes that are on the node of each content; one that is not complete has another name."""
    return {row["name"]: row["present"] for row in this.daemon.json("cache", "list", "--files")}
