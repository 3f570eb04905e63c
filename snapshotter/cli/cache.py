"""`snapshotter cache`: the fetched files of this node."""

# ruff: noqa: PLC0415 (imported where it is needed: no other command waits for gRPC)

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from snapshotter.cli import show
from snapshotter.cli.connection import daemon
from snapshotter.cli.options import daemon_options, size_option, timeout_option
from snapshotter.errors import IntegrityError

if TYPE_CHECKING:
    from snapshotter.api.control_pb2_grpc import ControlStub

Row = dict[str, Any]

ORDERS: dict[str, Callable[[Row], tuple[Any, ...]]] = {
    "image": lambda row: (row["image"],),
    "size": lambda row: (-row["size"], row["image"]),
    "here": lambda row: (-row["present"], row["image"]),
    "share": lambda row: (-row["present"] / row["size"] if row["size"] else 1, row["image"]),
    "last-use": lambda row: (-row["last_use_ns"], row["image"]),
}
"""How `cache list` may be sorted: names upwards, sizes and times downwards."""


@click.group()
def cache() -> None:
    """Look at the fetched files, delete or verify them."""


@cache.command()
@timeout_option
@daemon_options
def usage(*, config_path: Path | None, address: Path | None, timeout_s: float, as_json: bool) -> None:
    """Show what the cache holds, by sharing domain, and its limits."""
    with daemon(config_path, address) as stub:
        from snapshotter.api import control_pb2 as pb

        answer = stub.CacheUsage(pb.CacheUsageRequest(), timeout=timeout_s)
    if as_json:
        show.print_json(show.plain(answer))
        return
    console = show.console()
    if answer.domains:
        table = show.table(
            "FILES", "BYTES", "PARTIAL", "BYTES THERE", "DOMAIN", right=("FILES", "BYTES", "PARTIAL", "BYTES THERE")
        )
        for row in answer.domains:
            table.add_row(
                str(row.objects),
                show.human(row.object_bytes),
                str(row.partials),
                show.human(row.partial_bytes),
                show.cell(row.domain),
            )
        show.emit(table)
    quota = f" of {show.human(answer.quota)}" if answer.quota else ", no quota"
    console.print(f"used {show.human(answer.used)}{quota}")
    if answer.quota:
        console.print(f"files leave at {show.human(answer.high_water)}, down to {show.human(answer.low_water)}")
    console.print(f"named by no layer {show.human(answer.unreferenced)}")
    if answer.deleted_open:
        console.print(f"deleted but still open {show.human(answer.deleted_open)}")
    console.print(
        f"file system: {show.human(answer.free)} of {show.human(answer.capacity)} free, "
        f"{show.human(answer.min_free)} kept free"
    )


@cache.command("list", short_help="Show what each image has in the cache, or every file.")
@click.option("--files", "by_file", is_flag=True, help="Show every file instead of every image.")
@click.option(
    "--sort", "order", type=click.Choice(list(ORDERS)), default="image", show_default=True, help="Order of the images."
)
@timeout_option
@daemon_options
def list_content(
    *, by_file: bool, order: str, config_path: Path | None, address: Path | None, timeout_s: float, as_json: bool
) -> None:
    """Show what each image has on this node: its layers, the size of its files, and how much of them is here.

    A file that several layers of an image have counts once, one that several images have counts for each of them. Sizes
    are those of lazy layers; what containerd unpacked the ordinary way is not in the cache.
    """
    with daemon(config_path, address) as stub:
        if by_file:
            _list_files(stub, timeout_s, as_json=as_json)
        else:
            _list_images(stub, timeout_s, order, as_json=as_json)


def _list_images(stub: "ControlStub", timeout_s: float, order: str, *, as_json: bool) -> None:
    from snapshotter.api import control_pb2 as pb

    answers = stub.CacheImages(pb.CacheImagesRequest(), timeout=timeout_s)
    rows = sorted((show.plain(image) for answer in answers for image in answer.images), key=ORDERS[order])
    unnamed = stub.CacheUsage(pb.CacheUsageRequest(), timeout=timeout_s).unreferenced
    if as_json:
        show.print_json({"images": rows, "unnamed": unnamed})
        return
    if not rows and not unnamed:
        show.console().print("The cache is empty, and no image has been pulled through this daemon.")
        return
    kinds = ["lazy", "ordinary", *(["failed"] if any(row["failed"] for row in rows) else [])]
    numbers = (*(kind.upper() for kind in kinds), "SIZE", "HERE", "SHARE")
    table = show.table(*numbers, "LAST USE", "IMAGE", right=numbers)
    for row in rows:
        known = bool(row["lazy"])
        table.add_row(
            *(str(row[kind]) for kind in kinds),
            show.human(row["size"]) if known else "-",
            show.human(row["present"]) if known else "-",
            show.share(row["present"], row["size"]),
            show.ago(row["last_use_ns"]) if known else "-",
            show.cell(row["image"] or "(image unknown)"),
        )
    table.add_row(*("" for _ in kinds), "", show.human(unnamed), "", "", show.cell("not named by any image"))
    show.emit(table)


def _list_files(stub: "ControlStub", timeout_s: float, *, as_json: bool) -> None:
    from snapshotter.api import control_pb2 as pb

    answers = stub.CacheList(pb.CacheListRequest(), timeout=timeout_s)
    rows = [show.plain(file) for answer in answers for file in answer.files]
    if as_json:
        show.print_json(rows)
        return
    console = show.console()
    if not rows:
        console.print("The cache is empty.")
        return
    table = show.table("FILE", "SIZE", "HERE", "NAMED", "LAST USE", "DOMAIN", right=("SIZE", "HERE"))
    for row in rows:
        table.add_row(
            show.short(row["name"]),
            show.human(row["size"]),
            show.share(row["present"], row["size"]),
            "yes" if row["referenced"] else "no",
            show.ago(row["last_use_ns"]),
            show.cell(row["domain"]),
        )
    show.emit(table)


@cache.command()
@click.option("--all", "include_referenced", is_flag=True, help="Also what mounted layers name; it is fetched again.")
@click.option(
    "--keep", callback=size_option, default="0", metavar="SIZE", help="Stop when the cache holds no more than this."
)
@daemon_options
def prune(
    *, include_referenced: bool, keep: int, config_path: Path | None, address: Path | None, as_json: bool
) -> None:
    """Delete fetched files that no layer names.

    Files that are open are never deleted under a reader's hands: containers go on, and what they miss later is
    fetched again. Only containers that are older than the daemon's last start cannot fetch any more: with --all
    they lose what they have not open. Ctrl-C stops the work.
    """
    with daemon(config_path, address) as stub, show.progress("deleting") as advance:
        from snapshotter.api import control_pb2 as pb

        last = pb.CachePruneResponse()
        request = pb.CachePruneRequest(include_referenced=include_referenced, keep=keep)
        for last in stub.CachePrune(request):
            advance(last.bytes_removed, last.bytes_total)
    if as_json:
        show.print_json(show.plain(last))
    else:
        show.console().print(f"deleted {last.files_removed} files, {show.human(last.bytes_removed)}")


@cache.command(short_help="Compare every fetched file with its digest.")
@daemon_options
def verify(*, config_path: Path | None, address: Path | None, as_json: bool) -> None:
    """Read every fetched file and compare it with its digest; what differs is deleted and fetched again when needed.

    Files that somebody else has deleted are named too; they are fetched again when needed.

    Exit code 11 if a file differed or was missing. Ctrl-C stops the work.
    """
    bad: list[dict[str, Any]] = []
    missing: list[dict[str, Any]] = []
    with daemon(config_path, address) as stub, show.progress("verifying") as advance:
        from snapshotter.api import control_pb2 as pb

        last = pb.CacheVerifyResponse()
        for last in stub.CacheVerify(pb.CacheVerifyRequest()):
            advance(last.bytes_checked, last.bytes_total)
            bad += [show.plain(file) for file in last.bad]
            missing += [show.plain(file) for file in last.missing]
    if as_json:
        show.print_json({**show.plain(last), "bad": bad, "missing": missing})
    else:
        console = show.console()
        for file in bad:
            console.print(show.cell(f"{file['name']} ({file['domain']}): {file['problem']}", "red"))
        for file in missing:
            console.print(show.cell(f"{file['name']} ({file['domain']}): missing, the daemon did not delete it", "red"))
        console.print(f"checked {last.files_checked} files, {show.human(last.bytes_checked)}")
    found = []
    if bad:
        found.append(
            f"{len(bad)} cached files were not what their names say and were deleted: "
            "look after the disk, then let containers that read them start again"
        )
    if missing:
        found.append(
            f"{len(missing)} cached files were missing and are fetched again when needed: find out who deletes below "
            "the daemon's root, and use `snapshotter cache prune` to delete"
        )
    if found:
        raise IntegrityError("; ".join(found))
