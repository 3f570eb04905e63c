"""What `snapshotter image inspect` prints: for people as wide as their terminal is, for programs all of it."""

import shlex
import time
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from snapshotter.cli import show
from snapshotter.cli.printing import printable
from snapshotter.format.footer import Flavor
from snapshotter.image.convert.twins import COMPRESSED_BY_ZSTD
from snapshotter.image.inspect.contents import Row, SizedDirectory, SizedFile, is_first
from snapshotter.image.inspect.inspection import ImageLook, Inspection, config_summary
from snapshotter.image.inspect.tables import LayerLook

WIDE = 110
"""Columns from which on the table of layers has all of its own."""
_FORMATS = {Flavor.EXTERNAL: "external-toc"}
_KINDS = {"dir": "d", "reg": "-", "hardlink": "h", "symlink": "l", "char": "c", "block": "b", "fifo": "p"}
_RIGHTS = "rwxrwxrwx"
_FACTS = {
    "created": "created",
    "user": "user",
    "working_dir": "workdir",
    "entrypoint": "entry",
    "cmd": "cmd",
    "exposed_ports": "ports",
    "volumes": "volumes",
    "stop_signal": "signal",
}
_WIDEST_FACT = 7
"""With a digest behind it 80 columns are full."""


def show_inspection(name: str, found: Inspection, host: str, *, files: bool) -> None:
    """Print everything as tables."""
    console = show.console()
    console.print(show.cell(name, "bold"))
    _facts(console, [("digest", found.top.digest), ("type", found.top.media_type)])
    if found.members:
        _members(console, found)
        if not found.images:
            console.print(f"\nIt has no image for {host}; --platform shows another, --all-platforms all of them.")
    for image in found.images:
        console.print()
        _image(console, found, image, files=files)
    fetched = f"{show.human(found.fetched)} of layers were fetched for this."
    if found.images:
        console.print(f"\n{fetched}")


def _members(console: Console, found: Inspection) -> None:
    shown = {image.descriptor.digest for image in found.images}
    table = show.table("  PLATFORM", "DIGEST", "SIZE", "", right=("SIZE",))
    for member in found.members:
        one = member.descriptor
        what = "attestation" if member.attests else "shown below" if one.digest in shown else ""
        if not what and COMPRESSED_BY_ZSTD in one.annotations:
            what = "the same for podman"
        table.add_row(f"  {one.platform or '-'}", show.short(one.digest), show.human(one.size), what)
    console.print("\nIndex of:")
    show.emit(table)


def _image(console: Console, found: Inspection, image: ImageLook, *, files: bool) -> None:
    console.print(show.cell(f"Image for {image.platform}", "bold"))
    config = config_summary(image.config)
    _facts(
        console,
        [("digest", image.descriptor.digest)] * bool(found.members)
        + [(word, _words(config[key])) for key, word in _FACTS.items() if config[key] is not None],
    )
    console.print()
    show.emit(_layers(image, wide=console.width >= WIDE))
    console.print()
    for line in _verdict(image):
        _line(console, show.cell(line), 2)
    _biggest("Biggest files", image.files, console)
    _biggest("Biggest directories", image.directories, console)
    if files:
        for layer in image.layers:
            console.print()
            console.print(show.cell(f"Layer {layer.number}", "bold"))
            _entries(layer, console)


def _facts(console: Console, facts: Sequence[tuple[str, str]]) -> None:
    for key, value in facts:
        _line(console, Text(f"{key:<{_WIDEST_FACT}}  ", style="dim").append(printable(value), style="not dim"))


def _line(console: Console, text: Text, indent: int = 0) -> None:
    """A line of text, which goes on below where a terminal is too narrow for it."""
    if console.is_terminal:
        console.print(Padding(text, (0, 0, 0, indent)))
    else:
        console.print(Text(" " * indent).append(text), soft_wrap=True)


def _words(value: Any) -> str:
    if isinstance(value, list):
        return shlex.join(map(str, value))
    return str(value)


def _layers(image: ImageLook, *, wide: bool) -> Any:
    columns = ["  #", "LAYER", "SIZE", "UNPACKED", "FORMAT", "ENTRIES"]
    columns += ["CHUNKS", "TOC", "IN FRONT", "FILES"] if wide else ["IN FRONT"]
    table = show.table(*columns, "LAZY", right=("  #", *columns[2:4], *columns[5:]))
    for layer in image.layers:
        toc = layer.toc
        cells = [f"  {layer.number}", show.short(layer.descriptor.digest), show.human(layer.descriptor.size)]
        cells += [show.human(toc.listing.content_size) if toc else "?", _format(layer)]
        cells += [str(toc.listing.entries) if toc else "?"]
        if wide:
            cells += [str(toc.listing.chunks) if toc else "?", show.human(toc.size) if toc else "-"]
        cells += [_in_front(layer)]
        if wide:
            cells += [str(toc.listing.prefetch_files) if toc and toc.listing.landmark else "-"]
        lazy = layer.reason is None
        table.add_row(*map(show.cell, cells), show.cell("yes" if lazy else "no", "green" if lazy else "yellow"))
    if len(image.layers) > 1:
        tocs = [layer.toc for layer in image.layers if layer.toc]
        unknown = "+" if len(tocs) < len(image.layers) else ""
        cells = ["", "all", show.human(sum(layer.descriptor.size for layer in image.layers))]
        cells += [show.human(sum(toc.listing.content_size for toc in tocs)) + unknown if tocs else "?", ""]
        cells += [f"{sum(toc.listing.entries for toc in tocs)}{unknown}" if tocs else "?"]
        if wide:
            cells += [f"{sum(toc.listing.chunks for toc in tocs)}{unknown}" if tocs else "?"]
            cells += [show.human(sum(toc.size for toc in tocs)) if tocs else "-"]
        front = sum(toc.listing.prefetch_size or 0 for toc in tocs)
        cells += [show.human(front) if front else "none" if tocs else "-"]
        if wide:
            cells += [str(sum(toc.listing.prefetch_files for toc in tocs)) if tocs else "-"]
        table.add_row(*cells, style="dim")
    return table


def _format(layer: LayerLook) -> str:
    return next((word for flavor, word in _FORMATS.items() if flavor == layer.format), layer.format)


def _in_front(layer: LayerLook) -> str:
    """How much is fetched in one go at the start."""
    listing = layer.toc.listing if layer.toc else None
    if listing is None or listing.prefetch_size is None:
        return "-"
    return show.human(listing.prefetch_size) if listing.prefetch_size else "none"


def _verdict(image: ImageLook) -> Iterator[str]:
    """Whether the image can be lazy, and why not."""
    if image.is_lazy:
        yield "Every layer can be pulled lazily; each table of contents is the one that the manifest promises."
    elif all(layer.reason is not None for layer in image.layers):
        yield "No layer can be pulled lazily."
    else:
        yield "Some layers cannot be pulled lazily; containerd 1.x downloads those above them, too."
    why: dict[str, list[str]] = {}
    for layer in image.layers:
        if layer.reason is not None:
            why.setdefault(f"{layer.reason}: {show.brief(layer.why)}", []).append(str(layer.number))
    for reason, numbers in why.items():
        yield f"layer{'s' if len(numbers) > 1 else ''} {', '.join(numbers)}: {reason}"
    unknown = [layer for layer in image.layers if layer.toc is None]
    if unknown and len(unknown) < len(image.layers):
        yield "What is below counts the other layers only: what is in these cannot be told without fetching them."


def _biggest(title: str, rows: Sequence[SizedFile | SizedDirectory], console: Console) -> None:
    if not rows:
        return
    with_layer = isinstance(rows[0], SizedFile)
    table = show.table("  SIZE", *(["LAYER"] if with_layer else []), "PATH", right=("  SIZE", "LAYER"))
    for row in rows:
        layer = [str(row.layer)] if isinstance(row, SizedFile) else []
        table.add_row(f"  {show.human(row.size)}", *layer, show.cell(f"/{row.path}"))
    console.print(f"\n{title}")
    show.emit(table)


def _entries(layer: LayerLook, console: Console) -> None:
    """Every entry on a line, as `tar tv` has it, with where its content begins in the blob; `*` marks what is fetched first."""
    if layer.toc is None:
        console.print(show.cell(f"  cannot be looked into: {layer.why}"))
        return
    first = layer.toc.listing.prefetch_size
    for row in layer.toc.listing.rows:
        mark = "*" if is_first(row, first) else " "
        offset = "-" if row.offset is None else str(row.offset)
        when = time.strftime("%Y-%m-%d %H:%M", time.gmtime(row.mtime_ns // 10**9))
        size = f"{row.device[0]},{row.device[1]}" if row.type in ("char", "block") else str(row.size)
        owner = f"{row.uid}/{row.gid}"
        line = f"{mark}{_rights(row)} {owner:<11} {size:>10} {when} {offset:>11} {printable(row.name)}"
        if row.link_name:
            line += f" {'link to' if row.type == 'hardlink' else '->'} {printable(row.link_name)}"
        console.print(Text(line), soft_wrap=True)


def _rights(row: Row) -> str:
    """A mode as ls shows it."""
    marks = [letter if row.mode >> (8 - at) & 1 else "-" for at, letter in enumerate(_RIGHTS)]
    for bit, at, letter in ((0o4000, 2, "s"), (0o2000, 5, "s"), (0o1000, 8, "t")):
        if row.mode & bit:
            marks[at] = letter if marks[at] == "x" else letter.upper()
    return _KINDS.get(row.type, "?") + "".join(marks)


def as_json(name: str, found: Inspection, *, files: bool) -> dict[str, Any]:
    """The same for programs: sizes are bytes, what is not known is null."""
    return {
        "location": name,
        "digest": found.top.digest,
        "media_type": found.top.media_type,
        "manifests": [
            {
                "platform": str(one.descriptor.platform) if one.descriptor.platform else None,
                "digest": one.descriptor.digest,
                "media_type": one.descriptor.media_type,
                "size": one.descriptor.size,
                "attestation": one.attests,
            }
            for one in found.members
        ],
        "images": [_image_json(image, files=files) for image in found.images],
        "fetched_layer_bytes": found.fetched,
    }


def _image_json(image: ImageLook, *, files: bool) -> dict[str, Any]:
    return {
        "platform": image.platform,
        "digest": image.descriptor.digest,
        "media_type": image.descriptor.media_type,
        "config": config_summary(image.config),
        "lazy": image.is_lazy,
        "size": sum(layer.descriptor.size for layer in image.layers),
        "seen_size": image.seen_size,
        "layers": [_layer_json(layer, files=files) for layer in image.layers],
        "biggest_files": [{"path": one.path, "size": one.size, "layer": one.layer} for one in image.files],
        "biggest_directories": [{"path": one.path, "size": one.size} for one in image.directories],
    }


def _layer_json(layer: LayerLook, *, files: bool) -> dict[str, Any]:
    toc = layer.toc
    listing = toc.listing if toc else None
    made: dict[str, Any] = {
        "number": layer.number,
        "digest": layer.descriptor.digest,
        "media_type": layer.descriptor.media_type,
        "size": layer.descriptor.size,
        "diff_id": layer.diff_id,
        "annotations": dict(layer.descriptor.annotations),
        "format": layer.format,
        "lazy": layer.reason is None,
        "reason": layer.reason,
        "why": layer.why or None,
        "toc_digest": toc.digest if toc else None,
        "toc_size": toc.size if toc else None,
        "toc_json_size": toc.json_size if toc else None,
        "toc_as_promised": toc.agrees if toc else None,
        "content_size": listing.content_size if listing else None,
        "entries": listing.entries if listing else None,
        "chunks": listing.chunks if listing else None,
        "landmark": listing.landmark if listing else None,
        "prefetch_size": listing.prefetch_size if listing else None,
        "prefetch_files": listing.prefetch_files if listing and listing.landmark else None,
    }
    if files:
        made["files"] = [_row_json(row, listing.prefetch_size) for row in listing.rows] if listing else None
    return made


def _row_json(row: Row, first: int | None) -> dict[str, Any]:
    return {
        "path": row.name,
        "type": row.type,
        "size": row.size,
        "mode": row.mode,
        "uid": row.uid,
        "gid": row.gid,
        "mtime_ns": row.mtime_ns,
        "link_name": row.link_name or None,
        "device": list(row.device) if row.type in ("char", "block") else None,
        "offset": row.offset,
        "chunks": row.chunks,
        "first": is_first(row, first),
    }
