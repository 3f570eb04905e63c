"""`snapshotter version`: of this program and of the daemon."""

# ruff: noqa: PLC0415 (imported where it is needed: no other command waits for gRPC)

import platform
from pathlib import Path

import click

from snapshotter import __version__
from snapshotter.cli import show
from snapshotter.cli.connection import daemon
from snapshotter.cli.options import daemon_options, timeout_option
from snapshotter.errors import DaemonUnreachable


@click.command()
@timeout_option
@daemon_options
def version(*, config_path: Path | None, address: Path | None, timeout_s: float, as_json: bool) -> None:
    """Show the versions of this program and of the daemon; a daemon that does not run is no error here."""
    answer, absent = None, ""
    try:
        with daemon(config_path, address) as stub:
            from snapshotter.api import control_pb2 as pb

            answer = show.plain(stub.Version(pb.VersionRequest(), timeout=timeout_s))
    except DaemonUnreachable as error:
        absent = str(error)
    if as_json:
        client = {"version": __version__, "python": platform.python_version()}
        show.print_json({"client": client, "daemon": answer, "daemon_error": absent})
        return
    console = show.console()
    console.print(f"snapshotter {__version__}, Python {platform.python_version()}")
    if answer is None:
        console.print(show.cell(f"daemon      {absent}"))
    else:
        console.print(
            show.cell(f"daemon      {answer['version']}, Python {answer['python']}, Linux {answer['kernel']}")
        )
