"""Manifests: fetched once for an image, verified, and kept on disk as they came."""

import logging
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import trio

from snapshotter.errors import FormatError, NotLazy, Reason
from snapshotter.format.digest import digest_of
from snapshotter.layer.sources import RegistryAccess
from snapshotter.registry.manifest import ImageIndex, ImageManifest, Manifest, choose_platform, parse_manifest
from snapshotter.registry.platform import host_platform
from snapshotter.registry.reference import Reference

log = logging.getLogger(__name__)

INDEX_DEPTH = 3
"""Indexes within indexes that are followed."""

LocalContent = Callable[[str, str], bytes | None]
"""(containerd namespace, digest) to bytes that containerd has, unchecked; blocks for seconds at most."""


@dataclass(frozen=True, slots=True)
class Found:
    """A verified manifest."""

    manifest: ImageManifest
    digest: str
    answer: Manifest


class ManifestStore:
    """Used on the trio thread."""

    def __init__(self, registry: RegistryAccess, directory: Path, local: LocalContent | None = None) -> None:
        self._registry = registry
        self._directory = directory
        self._local = local
        self._lock = threading.Lock()  # keeps one from being removed that is just being named

    async def open_connections(self, reference: Reference, count: int) -> None:
        """Open connections for what follows the manifest. Never fails: it is a head start, nothing more."""
        try:
            await (await self._registry.get()).open_connections(reference, count)
        except Exception:
            # A task of the node's nursery: a fault here must not end every mount.
            log.exception("opening connections ahead failed")

    async def at_hand(self, namespace: str, digest: str | None) -> Manifest | None:
        """The manifest with this digest if it need not be fetched: kept here, or in containerd's own store."""
        if digest is None:
            return None
        return await trio.to_thread.run_sync(self._load, namespace, digest)

    async def containing(
        self, reference: Reference, digest: str | None, layer: str, kept: Manifest | None = None
    ) -> Found:
        """The manifest that `digest` names; without one, the manifest behind the reference that has `layer`.

        `kept` is what `at_hand` gave.

        Raises:
            NotLazy: `digest` names an index, or no manifest behind the reference has the layer.
            RegistryError, FormatError: it cannot be had, or is not a manifest.
        """
        if digest is not None:
            answer = kept or await (await self._registry.get()).manifest(reference, digest)
            manifest = parse_manifest(answer.raw, answer.media_type)
            if isinstance(manifest, ImageIndex):
                raise NotLazy(Reason.BAD_LABELS, f"the label's manifest digest {digest} names an index of manifests")
            if kept is None:
                await trio.to_thread.run_sync(self._keep, answer)
            return Found(manifest, digest, answer)
        answer = await (await self._registry.get()).manifest(reference)
        found = await self._search(reference, answer, layer, INDEX_DEPTH)
        if found is None:
            raise NotLazy(Reason.NOT_IN_MANIFEST, f"no manifest of {reference} has layer {layer}")
        return found

    async def _search(self, reference: Reference, answer: Manifest, layer: str, depth: int) -> Found | None:
        manifest = parse_manifest(answer.raw, answer.media_type)
        if isinstance(manifest, ImageManifest):
            if all(descriptor.digest != layer for descriptor in manifest.layers):
                return None
            await trio.to_thread.run_sync(self._keep, answer)
            return Found(manifest, answer.digest, answer)
        if not depth:
            return None
        for descriptor in _host_first(manifest):
            inner = await (await self._registry.get()).manifest(reference, descriptor)
            found = await self._search(reference, inner, layer, depth - 1)
            if found is not None:
                return found
        return None

    def keep_named(self, answer: Manifest) -> None:
        """Have a manifest on disk that a layer's source names from now on: without a name it may have been removed meanwhile.

        Blocking; never fails.
        """
        with self._lock:
            if not self._path(answer.digest).exists():
                self._keep(answer)

    def drop_unnamed(self, named: Callable[[], set[str]]) -> None:
        """Remove the manifests that no layer's source names any more. Blocking. Raises StoreError."""
        with self._lock:
            wanted = named()
            for path in self._directory.iterdir():
                if f"sha256:{path.name.partition('.')[0]}" not in wanted:
                    path.unlink(missing_ok=True)

    def _path(self, digest: str) -> Path:
        return self._directory / f"{digest.removeprefix('sha256:')}.json"

    def _load(self, namespace: str, digest: str) -> Manifest | None:
        try:
            raw = self._path(digest).read_bytes()
        except OSError:
            raw = None
        if raw is not None and digest_of(raw) != digest:
            log.warning("the kept manifest %s is damaged; it is fetched again", digest)
            raw = None
        if raw is None and self._local is not None:
            raw = self._local(namespace, digest)
            if raw is None or digest_of(raw) != digest:
                return None
            self._keep(Manifest(raw, "", digest))
        return None if raw is None else Manifest(raw, "", digest)

    def _keep(self, answer: Manifest) -> None:
        path = self._path(answer.digest)
        aside = path.with_name(f"{path.name}.new")
        try:
            with open(aside, "wb", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, 0o600)) as file:
                file.write(answer.raw)
            os.replace(aside, path)
        except OSError as error:
            log.warning("the manifest %s cannot be kept: %s", answer.digest, error)


def _host_first(index: ImageIndex) -> list[str]:
    """Digests of an index's manifests, the one for this machine first."""
    digests = [descriptor.digest for descriptor in index.manifests]
    try:
        best = choose_platform(index, host_platform(os.uname().machine)).digest
    except FormatError:
        return digests
    return [best, *(digest for digest in digests if digest != best)]
