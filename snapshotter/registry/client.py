"""The registry client of a process: every registry, through one pool of connections."""

import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Self, TypeVar

import httpx
import trio

from snapshotter.config import RegistryConfig
from snapshotter.errors import FormatError, HostsError, IntegrityError, RegistryError, RegistryUntrusted
from snapshotter.registry import push
from snapshotter.registry.auth import Authenticator, Need, pull_scope, push_scope
from snapshotter.registry.blob import Blob
from snapshotter.registry.certs_d import CertsDirectories
from snapshotter.registry.credentials import CredentialSource, DockerConfig
from snapshotter.registry.exchange import Call, Exchange, at_endpoint, refusal
from snapshotter.registry.health import Complaints, Health
from snapshotter.registry.hosts import Endpoint, HostsResolver
from snapshotter.registry.knock import knock
from snapshotter.registry.manifest import ACCEPTED, MANIFEST_MAX, Manifest, parse_manifest
from snapshotter.registry.push import OnProgress, Source
from snapshotter.registry.redirect import Resolve
from snapshotter.registry.reference import Reference, checked_digest
from snapshotter.registry.retry import RetryPolicy, Transient
from snapshotter.registry.wire import Wire, read_bounded

_T = TypeVar("_T")


class Registry:
    """All registries. Make it inside the trio run that uses it, and close it there."""

    def __init__(
        self,
        config: RegistryConfig,
        connections_per_host: int = 24,
        *,
        hosts: HostsResolver | None = None,
        credentials: CredentialSource | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        resolve: Resolve | None = None,
        policy: RetryPolicy | None = None,
    ) -> None:
        """`connections_per_host` bounds the idle connections that are kept, not the busy ones: whoever schedules reads
        decides how many run, and a demand read never waits in a pool. The keyword arguments replace the parts that
        configuration and network would give.
        """
        self._hosts = hosts or CertsDirectories(config.config_path, config.plain_http)
        self._health = Health()
        self._wire = Wire(
            policy or RetryPolicy(config.retries),
            connect_timeout_s=config.connect_timeout_s,
            read_timeout_s=config.read_timeout_s,
            # A registry, its token server and its store.
            idle_connections=2 * connections_per_host,
            transport=transport,
            resolve=resolve,
        )
        self._credentials = credentials or DockerConfig(
            config.docker_config, helper_timeout_s=config.credential_helper_timeout_s
        )
        self._exchange = Exchange(self._wire, Authenticator(self._wire, self._credentials))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close every connection."""
        await self._wire.aclose()

    def endpoints(self, ref: Reference) -> Sequence[Endpoint]:
        """The servers that are asked for the image, best first. Raises HostsError."""
        return self._hosts.endpoints(ref.host)

    def credential_problems(self) -> Mapping[str, str]:
        """What credential helpers failed with lately, by server. From any thread."""
        return self._credentials.problems()

    def sick(self) -> Mapping[str, bool]:
        """Each server (host and port) that was asked lately, and whether it is passed over because it did not answer."""
        return self._health.sick()

    def blob(self, ref: Reference, digest: str, size: int) -> Blob:
        """The blob `digest` of `size` bytes in the repository of `ref`. No request is made, no file looked at."""
        needs = partial(self._needs, ref, "pull", pull_scope(ref.repository))
        return Blob(self._exchange, self._health, ref, checked_digest(digest), size, needs)

    async def manifest(self, ref: Reference, digest: str | None = None) -> Manifest:
        """The manifest or index that `digest`, else the reference's digest, else its tag names: raw and verified.

        Raises:
            IntegrityError: twice, the bytes did not have the digest asked for, or the one the registry named.
            RegistryUnreachable: no answer after all retries.
            RegistryDenied: credentials missing or refused.
            BlobMissing: no such image.
            RegistryError: larger than 8 MiB.
            FormatError: a document that is no manifest.
            HostsError: the registry's hosts.toml is wrong.
        """
        selector = checked_digest(digest) if digest is not None else ref.selector
        what = f"manifest {selector} of {ref.name}"

        async def once(need: Need) -> Manifest:
            url = at_endpoint(need, f"manifests/{selector}")
            call = Call(need, "GET", url, what, headers={"accept": ", ".join((*ACCEPTED, "*/*"))})
            async with self._exchange.open(call) as answer:
                if answer.response.status_code != 200:
                    raise await refusal(answer, what)
                raw = await read_bounded(answer.response, MANIFEST_MAX)
                return _verified(raw, answer.response.headers, selector, what)

        async def twice(need: Need) -> Manifest:
            try:
                return await once(need)
            except IntegrityError:
                return await once(need)

        # A mirror that may be behind says what a digest is, but not what a tag is.
        capability = "pull" if selector.startswith("sha256:") else "resolve"
        return await self._first(self._needs(ref, capability, pull_scope(ref.repository)), what, twice)

    async def open_connections(self, ref: Reference, count: int) -> None:
        """Have `count` connections to the registry of `ref` at hand: opened side by side, without a credential.

        Requests that follow each other share one connection, requests side by side each open their own, a round trip
        (with TLS three) that can be spent while something else is waited for. Faults are passed over.
        """
        try:
            needs = self._needs(ref, "pull", pull_scope(ref.repository))
        except HostsError:
            return  # whoever makes a request is told
        endpoint = next((need for need in needs if self._health.is_well(need)), needs[0]).endpoint
        async with trio.open_nursery() as nursery:
            for _ in range(count):
                nursery.start_soon(self._open_connection, endpoint)

    async def _open_connection(self, endpoint: Endpoint) -> None:
        with suppress(RegistryError, Transient):
            await knock(self._wire, endpoint)

    async def blob_exists(self, ref: Reference, digest: str) -> bool:
        """Whether the repository of `ref` has the blob."""
        needs = self._push_needs(ref, push_scope(ref.repository))
        checked_digest(digest)
        return await self._first(needs, f"blob {digest}", lambda need: push.blob_exists(self._exchange, need, digest))

    async def mount_blob(self, ref: Reference, digest: str, mount_from: str) -> bool:
        """Have the repository of `ref` take a blob from the repository `mount_from` at the same registry, if it will.

        Raises:
            RegistryError: and its subclasses, as `manifest`.
        """
        needs = self._push_needs(ref, *sorted((push_scope(ref.repository), pull_scope(mount_from))))
        checked_digest(digest)
        return await self._first(
            needs,
            f"mount of {digest} from {mount_from}",
            lambda need: push.mount_blob(self._exchange, need, digest, mount_from),
        )

    async def push_blob(
        self, ref: Reference, digest: str, size: int, source: Source, on_progress: OnProgress = push.unheard
    ) -> bool:
        """Store a blob unless the repository of `ref` has it; whether bytes were sent.

        The registry verifies the digest; `source` is begun anew on each try.

        Raises:
            FormatError: the source has not `size` bytes.
            RegistryError: and its subclasses, as `manifest`.
        """
        checked_digest(digest)
        sent = False

        async def once(need: Need) -> None:
            nonlocal sent
            # Before each try: one whose answer was lost may have stored it.
            if not await push.blob_exists(self._exchange, need, digest):
                sent = True
                await push.push_blob(self._exchange, need, digest, size, source, on_progress)

        await self._first(self._push_needs(ref, push_scope(ref.repository)), f"upload of {digest}", once)
        return sent

    async def push_manifest(self, ref: Reference, raw: bytes, media_type: str) -> str:
        """Store a manifest under the tag of `ref` (under its digest if it has no tag), and return its digest.

        Raises:
            FormatError: `ref` has a digest, and it is not that of `raw`.
            RegistryError: and its subclasses, as `manifest`.
        """
        digest = f"sha256:{hashlib.sha256(raw).hexdigest()}"
        if ref.digest is not None and ref.digest != digest:
            raise FormatError(f"{ref} cannot be stored: the manifest's digest is {digest}")
        selector = ref.tag or digest
        needs = self._push_needs(ref, push_scope(ref.repository))
        return await self._first(
            needs,
            f"manifest {selector} of {ref.name}",
            lambda need: push.push_manifest(self._exchange, need, selector, raw, media_type),
        )

    def _needs(self, ref: Reference, capability: str, *scopes: str) -> tuple[Need, ...]:
        """The servers that may be asked for this, best first. Raises HostsError."""
        endpoints = self._hosts.endpoints(ref.host)
        able = tuple(Need(one, ref.repository, scopes) for one in endpoints if capability in one.capabilities)
        if not able:
            raise HostsError(
                f"the hosts.toml of {ref.host} gives no server the capability {capability}: add it to `capabilities` of one"
            )
        return able

    def _push_needs(self, ref: Reference, *scopes: str) -> tuple[Need, ...]:
        """The server that is pushed to: the registry itself if it may be, for what a mirror has must come from there."""
        able = self._needs(ref, "push", *scopes)
        # Two where both https and http are to be tried.
        return tuple(need for need in able if need.endpoint.host == able[-1].endpoint.host)

    async def _first(self, needs: Sequence[Need], what: str, operation: Callable[[Need], Awaitable[_T]]) -> _T:
        """The result of the first server that has one. All are asked before one of them is asked again.

        Raises the error of the last one, which is the registry itself; it tells of the others as well.
        """
        attempts = self._wire.attempts(what)
        complaints = Complaints()
        refused: dict[int, RegistryError | FormatError] = {}
        while True:
            fault: Transient | None = None
            open_to_us = [(at, need) for at, need in enumerate(needs) if at not in refused]
            for at, need in self._health.ordered(open_to_us, lambda one: one[1]):
                self._health.asking(need)
                try:
                    result = await operation(need)
                except Transient as broken:
                    fault = broken
                    complaints.note(need, broken)
                    self._health.failed(need)
                except (RegistryError, FormatError) as error:
                    refused[at] = error
                    complaints.note(need, error)
                    if isinstance(error, RegistryUntrusted):
                        self._health.failed(need)
                else:
                    self._health.answered(need)
                    return result
            if fault is None:
                last = refused[max(refused)]
                raise type(last)(complaints.beside(last))
            await attempts.pause(Transient(complaints.beside(fault), fault.retry_after_s))


def _verified(raw: bytes, headers: httpx.Headers, selector: str, what: str) -> Manifest:
    digest = f"sha256:{hashlib.sha256(raw).hexdigest()}"
    named = headers.get("docker-content-digest", "")
    expected = selector if selector.startswith("sha256:") else named if named.startswith("sha256:") else digest
    if digest != expected:
        raise IntegrityError(f"{what}: the registry sends a document with the digest {digest}, not {expected}")
    called = headers.get("content-type", "").partition(";")[0].strip().lower()
    return Manifest(raw, parse_manifest(raw, called or None).media_type, digest)
