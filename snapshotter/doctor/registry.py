"""Registries: which images they are asked for, and in whose surroundings, the daemon's or this shell's."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from snapshotter.api import control_pb2 as pb
from snapshotter.config import RegistryConfig
from snapshotter.doctor import clock
from snapshotter.doctor.examination import Once
from snapshotter.doctor.findings import Answer, Check, Group, note, of_error, ok, warning
from snapshotter.doctor.image_checks import ImageChecks
from snapshotter.doctor.reach import proxy_settings, without_secret
from snapshotter.doctor.subject import Listener, Subject, who_listens
from snapshotter.errors import ConfigError, SnapshotterError
from snapshotter.registry.reference import parse_reference

IMAGES_ASKED: Final = 3
"""Images of the daemon that are looked at where none is named."""


class Images:
    """The images that are looked at: those named, else some of the daemon's, which is asked for them now."""

    def __init__(self, subject: Subject, status: Once[pb.StatusResponse]) -> None:
        self._environ = _environ(subject, status)
        self._images: list[ImageChecks] = []
        self._wrong: list[tuple[str, Answer]] = []
        config = _with_credentials_of(subject.config.registry, self._environ)
        for name in subject.images or _images_of_daemon(subject):
            try:
                self._images.append(ImageChecks(parse_reference(name), subject, config, self._environ or os.environ))
            except ConfigError as error:
                self._wrong.append((name, of_error(error, "name an image as host/name:tag")))
        self._subject = subject

    def clock_checks(self) -> Iterator[Check]:
        """The clock of this node against that of each registry."""
        hosts = {image.reference.host: image for image in reversed(self._images)}
        for host in sorted(hosts):
            yield clock.check_against(host, hosts[host].knocked, self._subject)

    def checks(self) -> Iterator[Check]:
        """Proxies, then image by image."""
        yield Check(Group.REGISTRY, "proxies", lambda: _proxies(self._environ))
        if not self._images and not self._wrong:
            yield Check(Group.REGISTRY, "images", _no_image)
        for name, answer in self._wrong:
            yield Check(Group.REGISTRY, "reference", partial(tuple, [answer]), name)
        for image in self._images:
            yield from image.checks()


def _no_image() -> Iterator[Answer]:
    yield note("no image was named, and the daemon told of none: no registry was asked", "name one with --image")


def _images_of_daemon(subject: Subject) -> tuple[str, ...]:
    if who_listens(subject.address) is not Listener.SOMEBODY:
        return ()
    try:
        return tuple(subject.daemon.images(IMAGES_ASKED))
    except SnapshotterError:
        return ()


def _environ(subject: Subject, status: Once[pb.StatusResponse]) -> Mapping[str, str] | None:
    """The environment of the daemon: its proxies and its home decide, not those of whoever asks. None if not known."""
    if who_listens(subject.address) is not Listener.SOMEBODY:
        return None
    try:
        raw = (subject.machine.proc / str(status.get().pid) / "environ").read_bytes()
    except (SnapshotterError, OSError):
        return None
    pairs = (os.fsdecode(entry).partition("=") for entry in raw.split(b"\0"))
    return {name: value for name, _, value in pairs if name}


def _proxies(environ: Mapping[str, str] | None) -> Iterator[Answer]:
    ours = proxy_settings(os.environ)
    theirs = proxy_settings(environ) if environ is not None else ours
    if ours != theirs:
        yield warning(
            f"the daemon asks {_said(theirs)}, this shell {_said(ours)}: what is found below may not hold for the daemon",
            "run this command with the daemon's variables, or give the unit those of this shell (systemctl edit "
            "estargz-snapshotter)",
        )
    else:
        yield ok(f"registries are asked {_said(theirs)}")


def _said(settings: Mapping[str, str]) -> str:
    said = [f"{name}={value if name == 'no_proxy' else without_secret(value)}" for name, value in settings.items()]
    return f"through {', '.join(said)}" if said else "without a proxy"


def _with_credentials_of(config: RegistryConfig, environ: Mapping[str, str] | None) -> RegistryConfig:
    """`config` with the docker configuration file that the daemon with this environment reads."""
    if config.docker_config is not None or environ is None:
        return config
    directory = environ.get("DOCKER_CONFIG") or (f"{environ['HOME']}/.docker" if environ.get("HOME") else "")
    return replace(config, docker_config=Path(directory) / "config.json") if directory else config
