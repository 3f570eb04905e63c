"""The daemon: whether it answers, what it complains of, what a past one left, and how systemd runs it."""

import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from snapshotter import __version__
from snapshotter.api import control_pb2 as pb
from snapshotter.config import DEFAULT_PATH
from snapshotter.doctor.examination import Once
from snapshotter.doctor.findings import Answer, Check, Group, fault, note, ok, skipped, warning
from snapshotter.doctor.subject import Listener, Subject, who_listens
from snapshotter.plane.fuse.kernel import FS_TYPE
from snapshotter.plane.mounts import mounts_below

UNIT: Final = "estargz-snapshotter.service"

_SYSTEMCTL_TIMEOUT_S: Final = 8.0
_OFF: Final = frozenset({"", "no", "0", "false", "default", "[not set]", "[unprintable]", "shared"})
_HIDING: Final = (
    *("PrivateMounts", "PrivateTmp", "PrivateDevices", "PrivateUsers", "ProtectSystem", "ProtectHome"),
    *("ProtectKernelTunables", "ProtectKernelModules", "ProtectKernelLogs", "ProtectControlGroups", "ProtectProc"),
    *("ReadOnlyPaths", "ReadWritePaths", "InaccessiblePaths", "TemporaryFileSystem", "BindPaths", "BindReadOnlyPaths"),
    *("RootDirectory", "RootImage", "DynamicUser", "MountFlags"),
)
"""Settings that give a unit a mount namespace of its own. Source: systemd.exec(5)."""
_STATE: Final = ("LoadState", "ActiveState", "SubState", "Result", "UnitFileState", "NRestarts", "RuntimeDirectory")


def checks(subject: Subject, status: Once[pb.StatusResponse]) -> list[Check]:
    """The checks of the daemon and its unit."""
    service = _Service(subject, status)
    return [
        Check(Group.INSTALLATION, "daemon", service.daemon),
        Check(Group.INSTALLATION, "leftovers", service.leftovers),
        Check(Group.INSTALLATION, "unit", service.unit),
    ]


class _Service:
    def __init__(self, subject: Subject, status: Once[pb.StatusResponse]) -> None:
        self._subject = subject
        self._status = status

    def daemon(self) -> Iterator[Answer]:
        listener = who_listens(self._subject.address)
        if listener is Listener.NOBODY:
            address = self._subject.address
            left = f"the one that had {address} has ended" if address.is_socket() else f"there is no {address}"
            yield fault(
                f"no daemon runs: {left}",
                "systemctl start estargz-snapshotter, or `snapshotter serve`; or name its socket with --address",
            )
            return
        if listener is Listener.DENIED:
            yield skipped("the daemon may be asked by root alone", "run this command as root (sudo)")
            return
        answer = self._status.get()
        if answer.version != __version__:
            yield warning(
                f"version {answer.version} runs (pid {answer.pid}), version {__version__} is installed",
                "restart it: systemctl restart estargz-snapshotter",
            )
        else:
            yield ok(f"version {answer.version} answers (pid {answer.pid})")
        yield from self._configured_otherwise(answer)
        for problem in answer.problems:
            yield warning(problem, "`snapshotter layers` and the daemon's log say more", name="daemon says")

    def _configured_otherwise(self, answer: pb.StatusResponse) -> Iterator[Answer]:
        """What is configured now and not what the daemon began with."""
        config, name = self._subject.config, "daemon's files"
        for key, runs, wanted in (("root", answer.root, config.root), ("run_dir", answer.run_dir, config.run_dir)):
            if runs != str(wanted) and not self._subject.config_fault:
                yield warning(
                    f"the daemon uses {key} {runs}, the configuration says {wanted}",
                    "name the daemon's own configuration with --config, or restart the daemon",
                    name=name,
                )
                return
        try:
            edited_ns = (self._subject.config_path or DEFAULT_PATH).stat().st_mtime_ns
        except OSError:
            return
        if edited_ns > answer.started_at_ns:
            yield note(
                "the configuration file is younger than the daemon, which reads it at its start only",
                "restart it: systemctl restart estargz-snapshotter",
                name=name,
            )

    def leftovers(self) -> Iterator[Answer]:
        run_dir = self._subject.config.run_dir
        if who_listens(self._subject.address) is not Listener.NOBODY:
            yield skipped("a daemon runs: the mounts are its own")
            return
        stacks = mounts_below(run_dir, self._subject.machine.own_mounts)
        left = sum(
            1 for path, stack in stacks.items() for one in stack if one.fs_type == FS_TYPE or path.startswith(b"e/")
        )
        if left:
            yield warning(
                f"{left} mounts of a daemon that has ended are below {run_dir}; containers that need it wait, until the "
                "keeper gives up (take_over.abort_after_s)",
                "start the daemon, which takes them over; or `snapshotter teardown`, once no container needs them",
            )
        else:
            yield ok(f"no mounts without a daemon below {run_dir}")

    def unit(self) -> Iterator[Answer]:
        if not (self._subject.machine.top / "run/systemd/system").is_dir():
            yield note("this node does not run systemd", "start `snapshotter serve` by what starts containerd here")
            return
        shown = self._shown()
        if shown.get("LoadState") == "not-found":
            yield warning(
                f"{UNIT} is not installed: nothing starts the daemon with the node",
                "make install, then systemctl enable --now estargz-snapshotter",
            )
            return
        yield _how_it_runs(shown)
        if shown.get("UnitFileState") not in ("enabled", "enabled-runtime", "static", "generated", "indirect"):
            yield warning(
                f"{UNIT} is {shown.get('UnitFileState') or 'not enabled'}: nothing starts it with the node",
                "systemctl enable estargz-snapshotter",
                name="unit at boot",
            )
        yield from _hiding(shown)

    def _shown(self) -> Mapping[str, str]:
        argv = [
            self._subject.machine.systemctl,
            "show",
            UNIT,
            "--no-pager",
            f"--property={','.join((*_STATE, *_HIDING))}",
        ]
        try:
            done = subprocess.run(
                argv,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_SYSTEMCTL_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"systemctl did not answer within {_SYSTEMCTL_TIMEOUT_S:g} s") from None
        if done.returncode:
            raise OSError(f"systemctl ended with {done.returncode}: {done.stderr.strip()[:200]}")
        lines = (line.partition("=") for line in done.stdout.splitlines())
        return {name: value for name, _, value in lines}


def _how_it_runs(shown: Mapping[str, str]) -> Answer:
    state, sub, restarts = shown.get("ActiveState", ""), shown.get("SubState", ""), shown.get("NRestarts", "0")
    if state == "active":
        often = f", restarted {restarts} times" if restarts not in ("", "0") else ""
        return ok(f"{UNIT} is active{often}")
    if sub == "auto-restart" or state == "failed":
        return fault(
            f"{UNIT} does not stay up ({state}, {sub}, result {shown.get('Result', 'unknown')}, {restarts} restarts)",
            "journalctl -u estargz-snapshotter -n 50 says why",
        )
    return warning(f"{UNIT} is {state or 'unknown'} ({sub})", "systemctl start estargz-snapshotter")


def _hiding(shown: Mapping[str, str]) -> Iterator[Answer]:
    found = [f"{name}={shown[name]}" for name in _HIDING if shown.get(name, "").strip().lower() not in _OFF]
    if found:
        yield fault(
            f"{', '.join(found)}: the unit has a mount namespace of its own, so containerd does not see the layers",
            f"take it out of the unit or its drop-ins (systemctl cat {Path(UNIT).stem}), daemon-reload, restart",
            name="unit's mounts",
        )
    if shown.get("RuntimeDirectory"):
        yield fault(
            f"RuntimeDirectory={shown['RuntimeDirectory']}: systemd deletes it, with what is mounted there, at each stop",
            "take it out of the unit or its drop-ins: the daemon makes its run directory by itself",
            name="unit's mounts",
        )
