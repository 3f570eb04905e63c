"""`make demo`: one image pulled lazily and pulled whole, side by side, on this machine.

Everything runs below scratch folders that are gone at the end, also after Ctrl-C.
"""

import argparse
import os
import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import grpc
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from integration.harness.containerd import CommandFailed, run
from integration.harness.node import LAZY, PAUSE, WHOLE, Node, node, running_registry
from integration.harness.process import DidNotStart, wait_for
from integration.harness.registry import Registry
from integration.harness.scratch import drop_caches, termination_unwinds
from integration.images.convert import convert
from integration.images.sample import WORKLOAD, pause_image, sample_image

BUILD = Path(__file__).parent.parent / "build" / "images"
TOC_DIGEST = "containerd.io/snapshot/stargz/toc.digest"
# As podman and its kin annotate zstd:chunked, now and formerly.
ZSTD_TOC_DIGESTS = {f"{prefix}.zstd-chunked.manifest-checksum" for prefix in ("io.github.containers", "io.containers")}
INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Run:
    """One pull and one container. Times are seconds from the pull's beginning, sizes bytes."""

    how: str
    pulled_s: float
    output_s: float
    received: int
    image_size: int
    first_line: str


def main(argv: Sequence[str]) -> int:
    """Run the demonstration; return the exit code."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--image", help="a reference to pull instead of the sample image, as REGISTRY/NAME:TAG")
    parser.add_argument("--command", help="what the container runs; else what the image says")
    parser.add_argument("--round-trip-ms", type=float, default=0.0, help="make the line to the registry this slow")
    options = parser.parse_args(argv)
    try:
        options.words = tuple(shlex.split(options.command or ""))
    except ValueError as error:
        parser.error(f"argument --command: {options.command!r}: {error}")
    console = Console(stderr=True, soft_wrap=True)
    if os.geteuid() != 0:
        console.print("the demonstration mounts file systems and runs containers: run it as root (sudo make demo)")
        return 1
    try:
        with termination_unwinds(), running_registry() as registry:
            _demonstrate(console, registry, options)
    except KeyboardInterrupt:
        console.print("interrupted; everything is removed")
        return INTERRUPTED
    except (CommandFailed, DidNotStart, TimeoutError) as error:
        return _stopped(console, str(error))
    except grpc.RpcError as error:  # containerd's words on what it could not pull or start
        return _stopped(console, getattr(error, "details", lambda: "")() or str(error))
    return 0


def _stopped(console: Console, why: str) -> int:
    console.print("[red]the demonstration stopped[/]; everything is removed:", highlight=False)
    console.print(why, markup=False, highlight=False)
    return 1


def _demonstrate(console: Console, registry: Registry, options: argparse.Namespace) -> None:
    command = options.words or (() if options.image else WORKLOAD)
    with console.status("making the pause image") as status:
        with registry.client() as client:
            pause_image(BUILD / "pause").push(client, PAUSE)
        if options.image:
            status.update(f"copying {options.image} into the local registry")
            _copy(options.image, registry)
        else:
            status.update("making a sample image from what this machine has (only the first time)")
            image = sample_image(BUILD / "sample")
            with registry.client() as client:
                image.push(client, "demo:plain")
        lazy = "demo:plain"
        if not is_lazy(registry, "plain"):
            status.update("converting it with snapshotter image convert")
            convert(registry.host, "demo:plain", "demo:lazy")
            lazy = "demo:lazy"
        runs = []
        for how, name in ((WHOLE, "demo:plain"), (LAZY, lazy)):
            status.update(f"pulling with {how} and starting a container")
            with node(registry, snapshotter=how, round_trip_s=options.round_trip_ms / 1000) as this:
                runs.append(_run(this, name, command))
    Console().print(_table(runs, options.image or "sample image", command))


def _copy(reference: str, registry: Registry) -> None:
    """Copy an image as it is, with the credentials that docker and podman use too."""
    host = urlsplit(f"//{reference}").hostname
    plain = ["--src-tls-verify=false"] if host in {"localhost", "127.0.0.1"} else []
    target = f"docker://{registry.host}/demo:plain"
    try:
        run(
            ["skopeo", "copy", "--quiet", *plain, "--dest-tls-verify=false", f"docker://{reference}", target],
            timeout_s=3600,
        )
    except CommandFailed as error:
        raise CommandFailed(
            f"{error}\n{reference} cannot be copied: check its name and that this machine reaches the registry; "
            "credentials are those of `docker login` or `podman login`"
        ) from None


def is_lazy(registry: Registry, tag: str) -> bool:
    """Whether every layer says itself where its table of contents is."""
    with registry.client() as client:
        layers = client.manifest("demo", tag)["layers"]
    return all(({TOC_DIGEST} | ZSTD_TOC_DIGESTS) & layer.get("annotations", {}).keys() for layer in layers)


def _run(this: Node, name: str, command: Sequence[str]) -> Run:
    """Pull and start on a node whose pod already runs; caches are cold."""
    this.sandbox()
    repository, _, tag = name.partition(":")
    with this.registry.client() as client:
        size = sum(layer["size"] for layer in client.manifest(repository, tag)["layers"])
    with suppress(OSError):  # not allowed everywhere; the comparison is then less cold, for both
        drop_caches()
    before, began = this.traffic(), time.monotonic()
    image = this.pull(name)
    pulled = time.monotonic() - began
    container = this.start(image, *command)
    wait_for(lambda: container.has_printed() or container.ended(), "the container's first output", 120)
    output = time.monotonic() - began
    received = this.traffic().since(before).received
    printed = container.output()
    first = next(iter((printed.stdout + printed.stderr).splitlines()), f"(no output, exit code {printed.exit_code})")
    return Run(this.snapshotter, pulled, output, received, size, first)


def _table(runs: Sequence[Run], image: str, command: Sequence[str]) -> Table:
    ordinary = runs[0].image_size  # of both rows: a converted image may be larger, which would flatter its share
    table = Table(title=f"{image}: {decimal(ordinary)} of layers", title_justify="left", caption_justify="left")
    words = " ".join(f'"{word}"' if " " in word else word for word in command)
    table.caption = f"command: {words or 'the image’s own'}\nfirst line: {runs[-1].first_line}"
    table.add_column("pulled with", no_wrap=True)
    for heading in ("pulled after", "first output after", "over the wire until then", "share of the image"):
        table.add_column(heading, justify="right")
    for one in runs:
        name = f"{one.how} ({'lazy' if one.how == LAZY else 'whole'})"
        share = f"{one.received / ordinary:.1%}"
        table.add_row(name, f"{one.pulled_s:.2f} s", f"{one.output_s:.2f} s", decimal(one.received), share)
    return table


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
