"""`snapshotter top`: who waits for which file at this moment, and what crosses the wire."""

# ruff: noqa: PLC0415 (imported where it is needed: no other command waits for gRPC)

import json
import os
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from snapshotter.cli import show
from snapshotter.cli.connection import daemon
from snapshotter.cli.options import daemon_options, timeout_option
from snapshotter.errors import SnapshotterError

if TYPE_CHECKING:
    from types import FrameType

    from snapshotter.api import control_pb2 as pb
    from snapshotter.cli.top_picture import Rates

COLUMNS = """\b
Columns:
  WAITS      seconds since somebody began to wait for this file
  CONTAINER  namespace/pod/container in Kubernetes, else the container's id
  FOR        read: bytes of an open file; open: the first open of a file
  FILE       its path in the container, or that of a file with equal content
"""


@click.command(epilog=COLUMNS)
@click.option(
    "--interval",
    "interval_s",
    type=click.FloatRange(min=0.1, max=3600),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Time between two pictures; rates are measured over it.",
)
@click.option("--once", is_flag=True, help="Print one picture and end; so it is without a terminal, too.")
@timeout_option
@daemon_options
def top(
    *, interval_s: float, once: bool, config_path: Path | None, address: Path | None, timeout_s: float, as_json: bool
) -> None:
    """Show live which process of which container waits for which file, and what crosses the wire.

    q or Ctrl-C ends it. With --json each picture is one line, or a whole document with --once.
    """
    source = _Source(config_path, address, timeout_s)
    if as_json and not once:
        _stream(source, interval_s)
    elif as_json:
        from snapshotter.cli.top_picture import as_json as plain

        show.print_json(plain(*source.measure(interval_s)))
    elif once or not sys.stdout.isatty() or os.environ.get("TERM") in (None, "", "dumb"):
        _print_once(source, interval_s)
    else:
        _live(source, interval_s)


class _Source:
    """Asks the daemon; a connection for each answer, so that a daemon that was started anew is found again."""

    def __init__(self, config_path: Path | None, address: Path | None, timeout_s: float) -> None:
        self._config_path = config_path
        self._address = address
        self._timeout_s = timeout_s

    def ask(self) -> "pb.ActivityResponse":
        """What goes on now. Raises as `daemon`."""
        with daemon(self._config_path, self._address) as stub:
            from snapshotter.api import control_pb2 as pb

            answer: pb.ActivityResponse = stub.Activity(pb.ActivityRequest(), timeout=self._timeout_s)
            return answer

    def measure(self, interval_s: float) -> "tuple[pb.ActivityResponse, Rates | None]":
        """An answer, and the rates since one that came `interval_s` before it."""
        from snapshotter.cli.top_picture import rates

        earlier = self.ask()
        time.sleep(interval_s)
        later = self.ask()
        return later, rates(earlier, later)


def _print_once(source: _Source, interval_s: float) -> None:
    from snapshotter.cli.top_picture import picture

    console = show.console()
    with console.capture() as captured:
        console.print(picture(*source.measure(interval_s), console.width, None))
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))


def _stream(source: _Source, interval_s: float) -> None:
    from snapshotter.cli.top_picture import as_json, rates

    earlier = source.ask()
    while True:
        time.sleep(interval_s)
        later = source.ask()
        sys.stdout.write(json.dumps(as_json(later, rates(earlier, later))) + "\n")
        sys.stdout.flush()
        earlier = later


def _live(source: _Source, interval_s: float) -> None:
    from rich.console import Console
    from rich.live import Live

    from snapshotter.cli.top_picture import picture, rates

    # Asked before the screen is taken: no daemon is an error here as with every command.
    answer, measured, trouble = source.ask(), None, ""
    console = Console(highlight=False, markup=False, emoji=False)
    with (
        suppress(KeyboardInterrupt),
        _keyboard() as wait,
        Live(console=console, screen=True, auto_refresh=False) as live,
    ):
        due = time.monotonic() + interval_s
        while True:
            live.update(picture(answer, measured, console.width, console.height, trouble), refresh=True)
            if wait(max(0.0, due - time.monotonic())):
                return
            if time.monotonic() < due:
                continue  # the terminal has another size
            try:
                earlier, answer = answer, source.ask()
                measured, trouble = rates(earlier, answer), ""
            except SnapshotterError as error:
                # It may be started anew, or busy: the last picture stays, and says so.
                measured, trouble = None, str(error)
            due = time.monotonic() + interval_s


@contextmanager
def _keyboard() -> Iterator[Callable[[float], bool]]:
    """Yield what waits so many seconds, or less if the terminal changes its size; True if somebody wants to end.

    The terminal is as it was when the block ends, also by SIGTERM or SIGHUP.
    """
    keys = sys.stdin.fileno() if sys.stdin.isatty() else None
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(woken, False)

    def end(number: int, _frame: "FrameType | None") -> None:
        raise SystemExit(128 + number)

    def wait(seconds: float) -> bool:
        ready, _, _ = select.select([woken] if keys is None else [woken, keys], [], [], seconds)
        if woken in ready:
            os.read(woken, 4096)
        return keys in ready and (os.read(keys, 4096) if keys is not None else b"")[:1] in (b"q", b"Q", b"")

    handlers = {signal.SIGWINCH: lambda _number, _frame: None, signal.SIGTERM: end, signal.SIGHUP: end}
    with ExitStack() as undo:
        undo.callback(os.close, wake)
        undo.callback(os.close, woken)
        undo.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(wake, warn_on_full_buffer=False))
        for number, handler in handlers.items():
            undo.callback(signal.signal, number, signal.signal(number, handler))
        if keys is not None:
            undo.callback(termios.tcsetattr, keys, termios.TCSADRAIN, termios.tcgetattr(keys))
            tty.setcbreak(keys)
            mode = termios.tcgetattr(keys)
            # Ctrl-Z would leave the shell with the alternate screen.
            mode[6][termios.VSUSP] = b"\0"
            termios.tcsetattr(keys, termios.TCSADRAIN, mode)
        yield wait
