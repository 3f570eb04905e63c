"""Our daemon as the harness runs it: a configuration file, a root and a run directory below one folder."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc

from integration.harness.containerd import CommandFailed
from integration.harness.leftovers import MARKER
from integration.harness.process import Process, accepts
from snapshotter.api import control_pb2, control_pb2_grpc

Table = Mapping[str, Mapping[str, object]]
SNAPSHOTTER = (sys.executable, "-m", "snapshotter")


class Daemon:
    """`snapshotter serve` below `folder`; `settings` are tables of the configuration file, `environ` is laid over our own."""

    def __init__(
        self, folder: Path, settings: Table, *, plane: str = "auto", environ: Mapping[str, str] | None = None
    ) -> None:
        folder.mkdir()
        self.folder = folder
        self.root = folder / "root"
        self.run_dir = folder.parent / "r"
        self.address = self.run_dir / "snapshotter.sock"
        self.program: Sequence[str] = SNAPSHOTTER
        self._config = folder / "config.toml"
        self._settings = settings
        self.set_plane(plane)
        # The docker configuration of whoever runs the tests must not decide anything.
        self._env = {"DOCKER_CONFIG": str(folder / "docker"), "HOME": str(folder), "ESTARGZ_TRACEBACK": "1"}
        self._env |= environ or {}
        # Started again in the middle of another node's life it does not end with that one.
        self._env[MARKER] = os.environ.get(MARKER, "")
        self._process: Process | None = None

    @property
    def process(self) -> Process:
        """The running daemon."""
        if self._process is None:
            message = "the snapshotter is not running"
            raise RuntimeError(message)
        return self._process

    def set_plane(self, plane: str) -> None:
        """Configure which plane the next start takes."""
        top = {"root": str(self.root), "run_dir": str(self.run_dir), "plane": plane}
        self._config.write_text(_toml(top, self._settings))

    def start(self) -> None:
        """Serve; returns when containerd could call it."""
        self.begin()
        self.process.wait_until(lambda: accepts(str(self.address)))

    def begin(self) -> None:
        """Start the process and wait for nothing."""
        argv = [*self.program, "serve", "--config", str(self._config)]
        self._process = Process("snapshotter", argv, self.folder / "log", self._env)

    def begin_standby(self) -> Process:
        """Start another one that waits for the end of this one; returns when it does."""
        log = self.folder / "standby.log"
        log.unlink(missing_ok=True)
        argv = [*self.program, "serve", "--standby", "--config", str(self._config)]
        standby = Process("standby", argv, log, self._env)
        standby.wait_until(lambda: "standing by" in log.read_text())
        return standby

    def succeed(self, standby: Process, number: int) -> None:
        """End the running one with a signal; from now on `standby` is the daemon."""
        self.stop(number)
        self._process = standby
        standby.wait_until(lambda: accepts(str(self.address)))

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End it with a signal."""
        if self._process:
            self._process.stop(number)
            self._process = None

    def log(self) -> str:
        """Everything it said so far."""
        return (self.folder / "log").read_text(errors="replace")

    def command(self, *args: str) -> str:
        """Run a `snapshotter` command against this daemon and return its standard output.

        Raises:
            CommandFailed: it ended with an error.
        """
        return snapshotter([*args, "--address", str(self.address)], self._env)

    def json(self, *args: str) -> Any:
        """The same with --json, parsed."""
        return json.loads(self.command(*args, "--json"))

    def fuse_requests(self) -> Counter[str]:
        """What the kernel has asked since the start, by kind of request; asked without a command, for those who ask often."""
        with grpc.insecure_channel(f"unix://{self.address}") as channel:
            stub = control_pb2_grpc.ControlStub(channel)  # type: ignore[no-untyped-call]
            answer = stub.Status(control_pb2.StatusRequest(), timeout=30)
        return Counter(dict(answer.fuse_requests))

    def verify_cache(self) -> tuple[int, Any]:
        """The exit code of `snapshotter cache verify`, and what it found."""
        argv = [*SNAPSHOTTER, "cache", "verify", "--json", "--address", str(self.address)]
        done = subprocess.run(argv, capture_output=True, check=False, env={**os.environ, **self._env})
        return done.returncode, json.loads(done.stdout)


def snapshotter(args: Sequence[str], env: Mapping[str, str] | None = None) -> str:
    """Run a `snapshotter` command that needs no daemon, such as `image convert`; return its standard output.

    Raises:
        CommandFailed: it ended with an error.
    """
    done = subprocess.run(
        [*SNAPSHOTTER, *args], capture_output=True, text=True, check=False, env={**os.environ, **(env or {})}
    )
    if done.returncode:
        message = f"snapshotter {' '.join(args)} ended with {done.returncode}: {done.stderr.strip()}"
        raise CommandFailed(message)
    return done.stdout


def _toml(top: Mapping[str, object], tables: Table) -> str:
    """TOML of strings, numbers, booleans and lists of them, which JSON writes alike."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in top.items()]
    for name, table in tables.items():
        lines += ["", f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
    return "\n".join(lines) + "\n"
