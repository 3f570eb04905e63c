"""`snapshotter teardown`: unmount everything, unless containers use it."""

# ruff: noqa: PLC0415 (imported where it is needed: no other command waits for gRPC)

from pathlib import Path
from typing import Any

import click

from snapshotter.cli import show
from snapshotter.cli.connection import NAME_IT, DaemonAbsent, daemon
from snapshotter.cli.options import AbsolutePath, daemon_options, timeout_option
from snapshotter.config import Config, load, override
from snapshotter.errors import DaemonUnreachable, FailedPrecondition, StoreLocked


@click.command()
@click.option("--force", is_flag=True, help="Detach also what is in use; containers on it see errors from then on.")
@click.option("--root", type=AbsolutePath(), metavar="DIR", help="Where the state lives, if no daemon runs.")
@click.option("--run-dir", type=AbsolutePath(), metavar="DIR", help="Where the mounts are, if no daemon runs.")
@timeout_option
@daemon_options
def teardown(
    *,
    force: bool,
    root: Path | None,
    run_dir: Path | None,
    config_path: Path | None,
    address: Path | None,
    timeout_s: float,
    as_json: bool,
) -> None:
    """Unmount everything that the daemon mounted, and end it; refuse while containers use it, and name them.

    Works also when no daemon runs. The state and the fetched files stay: the next start of the daemon mounts all
    layers again. To get rid of the files too, remove the images first, then the root directory.
    """
    config = override(load(config_path), root=root, run_dir=run_dir, address=address)
    try:
        with daemon(config_path, config.socket) as stub:
            from snapshotter.api import control_pb2 as pb

            result = show.plain(stub.Teardown(pb.TeardownRequest(force=force), timeout=timeout_s))
    except DaemonAbsent:
        result = _without_daemon(config, force=force)
    if as_json:
        show.print_json(result)
    else:
        _print(result)
    if not result["done"]:
        raise FailedPrecondition(
            "nothing was unmounted, because containers or mounts stand on the layers: stop them first, "
            "or detach the layers under them with --force"
        )


def _without_daemon(config: Config, *, force: bool) -> dict[str, Any]:
    """Do the daemon's work, under its locks: one that runs, but listens elsewhere, makes this fail, as it should."""
    from dataclasses import asdict

    from snapshotter.daemon.teardown import teardown_stopped

    try:
        return asdict(teardown_stopped(config, force=force))
    except StoreLocked as error:
        raise DaemonUnreachable(f"no daemon at {config.socket}, but one runs elsewhere: {error}; {NAME_IT}") from None


def _print(result: dict[str, Any]) -> None:
    console = show.console()
    if result["users"]:
        table = show.table("CONTAINER", "NAMESPACE", "PROCESSES", "MOUNT")
        for user in result["users"]:
            pids = ", ".join(map(str, user["pids"][:5])) + (", …" if len(user["pids"]) > 5 else "")
            name = user["name"] if len(user["name"]) <= 16 else user["name"][:12]
            table.add_row(
                show.cell(name),
                show.cell(user["namespace"] or "-"),
                pids or "-",
                show.cell(show.brief(user["mountpoint"])),
            )
        show.emit(table)
    for mountpoint in result["unmounted"]:
        console.print(show.cell(f"unmounted {mountpoint}"))
    if result["done"] and not result["unmounted"]:
        console.print("Nothing was mounted.")
