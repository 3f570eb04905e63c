"""How a conversion looks: bars with rates on a terminal, elsewhere a line for each layer; at the end what came of it."""

import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from snapshotter.cli.printing import printable
from snapshotter.cli.show import human, print_json
from snapshotter.image.convert.conversion import Conversion, ConvertedImage
from snapshotter.image.convert.layers import ConvertedLayer, Watcher
from snapshotter.image.places.ends import OnProgress
from snapshotter.image.places.location import Location, with_suffix
from snapshotter.layer.opening import EXTERNAL_SUFFIX


class _Moved(ProgressColumn):
    """How much is done, of how much if that is known, and how fast it goes."""

    def render(self, task: Task) -> Text:
        """Sizes and rate in the units of all our tables."""
        if task.total is None and not task.completed:
            return Text("")  # whoever does it may not say how far it is
        whole = f" of {human(int(task.total))}" if task.total is not None else ""
        rate = f", {human(int(task.speed))}/s" if task.speed is not None else ""
        return Text(f"{human(int(task.completed))}{whole}{rate}")


class _Shown:
    """Progress for people; with `bars` None, a line for each layer that is done."""

    def __init__(self, bars: Progress | None, *, quiet: bool) -> None:
        self._bars = bars
        self._quiet = quiet
        self._lock = threading.Lock()  # guards the order of lines on standard error

    @contextmanager
    def working(self, what: str, total: int | None) -> Iterator[OnProgress]:
        """Show a bar while the block runs."""
        if self._bars is None:
            yield lambda _size: None
            return
        bars = self._bars
        task = bars.add_task(what, total=total)
        try:
            yield lambda size: bars.advance(task, size)
        finally:
            bars.remove_task(task)

    def image(self, platform: str) -> None:
        """Say which image the layers belong to that come now."""
        self._say(f"image for {printable(platform)}:")

    def layer_done(self, number: int, count: int, layer: ConvertedLayer, *, stored: bool) -> None:
        """Say what became of a layer."""
        self._say(f"layer {number}/{count}: {_outcome(layer)}" + ("" if stored else " (was there already)"))

    def _say(self, line: str) -> None:
        if self._quiet:
            return
        with self._lock:
            if self._bars is not None:
                self._bars.console.print(line)
            else:
                click.echo(line, err=True)


@contextmanager
def watching(*, quiet: bool) -> Iterator[Watcher]:
    """Show a conversion while the block runs; `quiet`: a program reads the result."""
    if quiet or not sys.stderr.isatty():
        yield _Shown(None, quiet=quiet)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), _Moved())
    console = Console(stderr=True, markup=False, highlight=False, emoji=False)
    with Progress(*columns, console=console, transient=True) as bars:
        yield _Shown(bars, quiet=False)


def interrupted(target: Location) -> NoReturn:
    """Say that a signal came before the target had its name, and end."""
    click.echo(f"snapshotter: interrupted; {target} was not changed", err=True)
    raise click.Abort


def conclude(
    conversion: Conversion,
    target: Location,
    seconds: float,
    *,
    as_json: bool,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Say what is new at the target, and what was left out; `more` goes with the JSON."""
    for line in conversion.left_out:
        click.echo(f"snapshotter: left out: {printable(line)}", err=True)
    for one in conversion.images:
        platform = printable(str(one.platform))
        for path in one.missing:
            click.echo(f"snapshotter: the image for {platform} has no {printable(path)} to prefetch", err=True)
        for number, (layer, names) in enumerate(zip(one.layers, one.front, strict=True), 1):
            if names and layer.written is None:
                kept = f"layer {number} of the image for {platform} is kept"
                click.echo(f"snapshotter: {kept}: {len(names)} files of the list are not moved to its front", err=True)
    if as_json:
        print_json({**_as_json(target, conversion, seconds), **(more or {})})
        return
    for one in conversion.images:
        click.echo(_summary(one, seconds if len(conversion.images) == 1 else None), err=True)
    if conversion.tocs is not None:
        click.echo(f"tables of contents: {with_suffix(target, EXTERNAL_SUFFIX)}@{conversion.tocs.digest}", err=True)
    click.echo(f"{target}@{conversion.descriptor.digest}")


def _outcome(layer: ConvertedLayer) -> str:
    if layer.reused:
        return f"{human(layer.descriptor.size)}, left as it is: in the wanted format already"
    if layer.written is None:
        return f"stays an ordinary layer: {printable(layer.why_kept)}"
    written = layer.written
    parts = (
        f"{human(layer.source.size)} → {human(layer.descriptor.size)}",
        f"{written.entries} entries",
        f"{human(written.prefetch_size)} prefetched" if written.prefetch_size else "",
        f"{human(int(written.plain_size / layer.seconds))}/s" if layer.seconds > 0 else "",
    )
    return ", ".join(filter(None, parts))


def _summary(image: ConvertedImage, seconds: float | None) -> str:
    before = sum(layer.source.size for layer in image.layers)
    after = sum(layer.descriptor.size for layer in image.layers)
    layers = f"{len(image.layers)} layer" + ("s" if len(image.layers) != 1 else "")
    took = f" in {seconds:.1f} s" if seconds is not None else ""
    return f"{printable(str(image.platform))}: {layers}, {human(before)} → {human(after)}{took}"


def _as_json(target: Location, conversion: Conversion, seconds: float) -> dict[str, Any]:
    return {
        "target": str(target),
        "digest": conversion.descriptor.digest,
        "media_type": conversion.descriptor.media_type,
        "seconds": round(seconds, 3),
        "left_out": list(conversion.left_out),
        "toc_image": str(with_suffix(target, EXTERNAL_SUFFIX)) if conversion.tocs else None,
        "images": [
            {
                "platform": str(one.platform),
                "digest": one.descriptor.digest,
                "missing": list(one.missing),
                "layers": [_layer_json(layer) for layer in one.layers],
            }
            for one in conversion.images
        ],
    }


def _layer_json(layer: ConvertedLayer) -> dict[str, Any]:
    written = layer.written
    return {
        "source_digest": layer.source.digest,
        "source_size": layer.source.size,
        "digest": layer.descriptor.digest,
        "size": layer.descriptor.size,
        "media_type": layer.descriptor.media_type,
        "diff_id": layer.diff_id,
        "toc_digest": layer.toc_digest,
        "plain_size": written.plain_size if written else None,
        "entries": written.entries if written else None,
        "prefetch_size": written.prefetch_size if written else None,
        "seconds": round(layer.seconds, 3),
        "reused": layer.reused,
        "why_kept": layer.why_kept or None,
    }
