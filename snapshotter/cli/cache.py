"""`snapshotter cache`: the fetched files of this node."""

# ruff: noqa: PLC0415 (imported where it is needed: no other command waits for gRPC)

from pathlib import Path
from typing import Any

import click

from snapshotter.cli import show
from snapshotter.cli.connection import daemon
from snapshotter.cli.options import daemon_options, size_option, timeout_option
from snapshotter.errors import IntegrityError


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


@cache.command("list")
@timeout_option
@daemon_options
def list_files(*, config_path: Path | None, address: Path | None, timeout_s: float, as_json: bool) -> None:
    """Show every file of the cache."""
    with daemon(config_path, address) as stub:
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
    fetched again. Ctrl-C stops the work.
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
