"""The command `snapshotter`: finds the commands, and turns every error into a sentence and an exit code.

A command's module is imported when it is called, so that `--help` and completion do not wait for gRPC.
"""

import os
import sys
from typing import Any, NoReturn

import click

from snapshotter import __version__
from snapshotter.cli.lazy_group import LazyGroup, Place
from snapshotter.cli.printing import printable
from snapshotter.errors import SnapshotterError

COMMANDS = {
    name: Place(name, name, what)
    for name, what in {
        "serve": "Run the daemon that containerd talks to.",
        "keeper": "Keep the connection to the kernel while no daemon has it.",
        "status": "Show how the daemon is.",
        "layers": "Show every layer: how much of it is here, or why it is not lazy.",
        "top": "Show live who waits for which file, and what crosses the wire.",
        "cache": "Look at the fetched files, delete or verify them.",
        "image": "Pull images into containerd, make them lazy, look into them.",
        "teardown": "Unmount everything, unless containers use it.",
        "config": "Print or check a configuration, this program's or containerd's.",
        "doctor": "Check the node from kernel to registry, and say what to do.",
        "version": "Show the versions of this program and of the daemon.",
    }.items()
}

EXIT_CODES = """\b
Exit codes:
   0  done
   1  an error that is not in this table; the message says what happened
   2  a wrong option, argument or configuration file
   3  the daemon ended because of a teardown
   4  doctor found something that must be mended
  10  bytes do not follow their format       11  bytes do not have their digest
  12  the layer cannot be lazy
  20  the registry answered something odd    21  the registry does not answer
  22  the registry refuses the credentials   23  the registry does not have it
  24  the registry cannot serve ranges       25  TLS with the registry failed
  30  a disk or database failed              31  no room left
  32  another instance uses the directory    33  the directory is of a newer version
  40  no such thing                          41  it exists already
  42  it is in use, or in another state      43  a wrong request
  50  the kernel refused a mount
  60  no daemon answers
  61  containerd refused                     62  containerd does not answer
  63  containerd is too old, or not configured for this snapshotter
  64  the kernel does not tell which files a container reads
 130  interrupted                           141  the reader of the output went away
"""

INTERRUPTED = 130
OUTPUT_CLOSED = 141


class _Commands(LazyGroup):
    """All commands."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; a reader of our output that went away, as `head` does, is no error to talk about."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            # The flush at exit would fail again, and say so.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise click.exceptions.Exit(OUTPUT_CLOSED) from None
        return result


@click.group(
    cls=_Commands, places=COMMANDS, epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(__version__, prog_name="snapshotter")
def snapshotter() -> None:
    """Start containers from images that are fetched while they run."""


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run one command and exit with its code. One of the three doors: no error leaves it as a traceback.

    `ESTARGZ_TRACEBACK=1` shows the traceback of an unexpected error, for a report.
    """
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            # Names in images are bytes; a terminal that cannot show one gets its escape instead of an error.
            reconfigure(errors="backslashreplace")
    sys.exit(_run(arguments))


def _run(arguments: list[str] | None) -> int:
    try:
        code = snapshotter.main(args=arguments, prog_name="snapshotter", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.exceptions.Abort:
        return INTERRUPTED
    except KeyboardInterrupt:
        return INTERRUPTED
    except click.ClickException as error:
        error.show(sys.stderr)
        return error.exit_code
    except SnapshotterError as error:
        _complain(str(error))
        return error.exit_code
    except Exception as error:  # noqa: BLE001 (the door: see main)
        if os.environ.get("ESTARGZ_TRACEBACK"):
            sys.excepthook(type(error), error, error.__traceback__)
        _complain(f"unexpected {type(error).__name__}: {error}; ESTARGZ_TRACEBACK=1 shows where")
        return SnapshotterError.exit_code


def _complain(message: str) -> None:
    # It may quote an image, a registry or a file; what these say must not move a terminal's cursor.
    shown = "\n".join(map(printable, message.split("\n")))
    click.echo(f"snapshotter: {shown}", err=True)
