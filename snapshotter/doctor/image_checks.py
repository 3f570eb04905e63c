"""The checks of one image: its hosts, credentials, manifest, layers, ranges, speed."""

import os
import platform
from collections.abc import Iterator, Mapping
from typing import Final

from snapshotter.config import RegistryConfig
from snapshotter.doctor.examination import Once
from snapshotter.doctor.findings import Answer, Check, Group, Verdict, fault, note, of_error, ok, skipped, warning
from snapshotter.doctor.image import Contents, ImageLook, LayerLook, Speed
from snapshotter.doctor.reach import Knock, addresses, knock, proxy_for
from snapshotter.doctor.subject import Subject
from snapshotter.errors import (
    BlobMissing,
    ConfigError,
    FormatError,
    HostsError,
    RangeUnsupported,
    RegistryDenied,
    RegistryError,
    RegistryUnreachable,
    SnapshotterError,
)
from snapshotter.registry.certs_d import CertsDirectories
from snapshotter.registry.credentials import DockerConfig
from snapshotter.registry.hosts import Endpoint, is_loopback, split_port
from snapshotter.registry.reference import Reference

CONVERT: Final = "convert it (`snapshotter image convert`), and push it under this name or another"
FAR_S: Final = 0.3
"""From here on each first read of a file is felt."""
SLOW: Final = 4 << 20
"""Bytes a second below which a program that starts waits for its files."""


class ImageChecks:
    """The checks of one image; each fact is asked for once."""

    def __init__(
        self, reference: Reference, subject: Subject, config: RegistryConfig, environ: Mapping[str, str] = os.environ
    ) -> None:
        """`config` is the daemon's, with the docker configuration that it reads; helpers are looked for in its `environ`."""
        self.reference = reference
        self._environ = environ
        self._subject = subject
        self._look = ImageLook(
            reference,
            config,
            subject.timeout_s,
            machine=platform.machine(),
            unverified=subject.config.lazy.allow_unverified,
        )
        self._config = config
        self._endpoints = Once(self._look.endpoints)
        self.knocked: Once[Knock] = Once(lambda: knock(self._endpoints.get()[0], subject.timeout_s / 2))
        self._contents: Once[Contents] = Once(self._look.contents)
        self._layers: Once[list[LayerLook]] = Once(lambda: self._look.layers(self._contents.get()))

    def checks(self) -> Iterator[Check]:
        """One after the other, from the name of the registry to the speed of a layer."""
        about = str(self.reference)
        for name, look in (
            ("hosts", self.hosts),
            ("host", self.host),
            ("credentials", self.credentials),
            ("manifest", self.manifest),
            ("lazy", self.lazy),
            ("ranges", self.ranges),
            ("speed", self.speed),
        ):
            yield Check(Group.REGISTRY, name, look, about)

    def hosts(self) -> Iterator[Answer]:
        """Which file says where the registry is reached, and which servers that are, best first."""
        endpoints = self._endpoints.get()
        directories = self._config.config_path
        found = CertsDirectories(directories, self._config.plain_http).directory(self.reference.host)
        servers = ", then ".join(f"{one.base}{_only(one)}" for one in endpoints)
        if found is None:
            yield ok(
                f"{servers}; no directory for {self.reference.host} in {', '.join(map(str, directories)) or 'none'}"
            )
        else:
            yield ok(f"{servers}; {found} says so")
        for one in endpoints:
            if one.tls.skip_verify and not is_loopback(split_port(one.host)[0]):
                yield note(f"the certificate of {one.base} is not verified (skip_verify): anybody may stand in for it")

    def host(self) -> Iterator[Answer]:
        """Every server that stands for the registry, best first; one that answers is enough."""
        try:
            endpoints = self._endpoints.get()
        except HostsError:
            yield skipped("see `hosts` above")
            return
        timeout_s = self._subject.timeout_s / (len(endpoints) + 1)
        tried = [self._knock_at(one, timeout_s, first=number == 0) for number, one in enumerate(endpoints)]
        verdict = Verdict.WARNING if any(isinstance(answer, Answer) for answer in tried) else Verdict.FAULT
        for answer in tried:
            if isinstance(answer, Answer):
                yield answer
            else:
                advice = "check name server, routes, firewall and proxy of this node, and whether the registry runs"
                yield Answer(verdict, str(answer), advice)

    def _knock_at(self, endpoint: Endpoint, timeout_s: float, *, first: bool) -> Answer | RegistryUnreachable:
        try:
            proxy = proxy_for(endpoint)
            way = f"through {proxy}" if proxy else ", ".join(addresses(split_port(endpoint.host)[0])[:3])
            answer = self.knocked.get() if first else knock(endpoint, timeout_s)
        except RegistryUnreachable as error:
            return error
        return ok(f"{endpoint.base} ({way}) answers in {_ms(answer.took_s)}")

    def credentials(self) -> Iterator[Answer]:
        """Who this node is to the registry, and where that is written. No secret is shown."""
        host = self.reference.host
        source = DockerConfig(self._config.docker_config, self._environ, self._config.credential_helper_timeout_s)
        try:
            found = source.describe(host, self.reference.repository)
        except (ConfigError, RegistryDenied) as error:
            yield of_error(error, "mend it, or log in again")
            return
        if found.source == "none":
            yield ok(f"none for {host}: it is asked anonymously ({found.detail})")
        else:
            yield ok(f"those of {found.username or 'a token'} for {host}, from {found.source}, {found.detail}")

    def manifest(self) -> Iterator[Answer]:
        """The manifest, asked for as the daemon asks."""
        try:
            contents = self._contents.get()
        except RegistryDenied as error:
            yield of_error(error, f"docker login {self.reference.host}, as the daemon's user; or mend docker_config")
        except BlobMissing as error:
            yield of_error(error, "check the name; a private image that needs a login looks like this too")
        except HostsError:
            yield skipped("see `hosts` above")
        except (RegistryError, FormatError) as error:
            if isinstance(error, RegistryUnreachable) and self._is_silent():
                yield skipped("see `host` above")
            else:
                yield of_error(error, "see `host` above")
        else:
            yield ok(f"{len(contents.layers)} layers, in {_ms(contents.took_s)}")

    def lazy(self) -> Iterator[Answer]:
        """Whether each layer can be mounted before it is here."""
        if not self._subject.config.lazy.admits(str(self.reference)):
            yield warning(
                "lazy.allow and lazy.deny of the configuration keep it from being lazy", "change them if it should be"
            )
        looks = self._looks()
        if looks is None:
            yield skipped("its layers could not be looked at")
            return
        lazy = [look for look in looks if look.flavor]
        if len(lazy) == len(looks):
            yield ok(f"{len(lazy)} of {len(looks)} layers: {', '.join(sorted({look.flavor for look in lazy}))}")
            return
        number, first = next((number, look) for number, look in enumerate(looks) if not look.flavor)
        yield warning(
            f"{len(looks) - len(lazy)} of {len(looks)} layers cannot be lazy, and with the first of them containerd "
            f"downloads all above it: layer {number} ({first.digest[:19]}): {first.why_not.partition('; ')[0]}",
            CONVERT,
        )

    def ranges(self) -> Iterator[Answer]:
        """Whether parts of layers are served, by the registry or by where it redirects to."""
        looks = self._looks()
        if not looks:
            yield skipped("there is no layer to ask for")
            return
        refused = [look for look in looks if isinstance(look.range_error, RangeUnsupported)]
        failed = [look for look in looks if look.range_error is not None and look not in refused]
        if refused:
            yield fault(
                f"{len(refused)} of {len(looks)} layers: {refused[0].range_error}",
                "images of this registry are pulled whole: let it, its storage and every proxy before it serve HTTP ranges",
            )
        elif failed:
            advice = "check that this node reaches the registry's storage, through its proxy if there is one"
            yield fault(f"{len(failed)} of {len(looks)} layers: {failed[0].range_error}", advice)
        else:
            yield _served(looks)

    def speed(self) -> Iterator[Answer]:
        """How soon and how fast a longer stretch comes."""
        looks = self._looks()
        if not looks or any(look.range_error for look in looks):
            yield skipped("ranges come first")
            return
        yield _speed(self._look.speed(self._contents.get()))

    def _is_silent(self) -> bool:
        try:
            self.knocked.get()
        except SnapshotterError:
            return True
        return False

    def _looks(self) -> list[LayerLook] | None:
        try:
            return self._layers.get()
        except SnapshotterError:
            return None


def _only(endpoint: Endpoint) -> str:
    """What a server is asked for, if not for everything that a pull needs."""
    missing = {"pull", "resolve"} - endpoint.capabilities
    return f" (not asked to {' or '.join(sorted(missing))})" if missing else ""


def _served(looks: list[LayerLook]) -> Answer:
    times = sorted(look.took_s for look in looks)
    median_s = times[len(times) // 2]
    redirects = sorted({look.redirect for look in looks if look.redirect})
    where = f" by {', '.join(redirects)}, to where it redirects" if redirects else ""
    text = f"the end of each layer was served{where}, in {_ms(median_s)} (median)"
    if median_s > FAR_S:
        return note(text, "a mirror nearer to this node would make starts faster (hosts.toml)")
    return ok(text)


def _speed(speed: Speed) -> Answer:
    if not speed.size:
        return warning("no byte of the largest layer came in the time there was", "give more --timeout, and look again")
    rate = speed.size / max(speed.whole_s, 1e-6)
    text = f"first bytes after {_ms(speed.first_s)}, then {rate / (1 << 20):.1f} MiB/s over {speed.size / (1 << 20):.1f} MiB"
    if rate < SLOW and speed.whole_s > 1:
        return note(text, "a mirror nearer to this node would make starts faster (hosts.toml)")
    return ok(text)


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 10 else f"{seconds:.0f} s"
