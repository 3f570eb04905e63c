"""From what containerd's labels say to attached layers: one manifest for an image, all its layers at once."""

import logging
import weakref
from dataclasses import dataclass, field

import trio

from snapshotter.config import LazyConfig
from snapshotter.errors import ConfigError, NotLazy, Reason, SnapshotterError
from snapshotter.format.index import INDEX_REVISION
from snapshotter.layer.fill import Fill
from snapshotter.layer.layer import Layer
from snapshotter.layer.manifests import ManifestStore
from snapshotter.layer.opening import Anchor, Opener, anchor_of, lazy_reasons
from snapshotter.layer.shelf import Shelf
from snapshotter.registry.manifest import Descriptor, ImageManifest, Manifest
from snapshotter.registry.reference import Reference, parse_reference
from snapshotter.request import LayerRequest
from snapshotter.store.domains import sharing_domain
from snapshotter.store.state import LayerRecord, LayerSource, State

log = logging.getLogger(__name__)

LAYER_TYPES = frozenset(
    {
        "application/vnd.oci.image.layer.v1.tar+gzip",
        "application/vnd.oci.image.layer.v1.tar+zstd",
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
        "application/vnd.docker.image.rootfs.diff.tar.zstd",
    }
)

IMAGES_KEPT = 64
"""Images whose manifest and layer outcomes stay in memory between the Prepares of one pull."""

FAILURE_LIFE_S = 30.0
"""How long a failure stands for Prepares that did not hear of it: those of one pull follow each other at once, and
containerd does not ask for the layers above one that it unpacks until the image is pulled another day."""

CONNECTIONS_AHEAD = 7
"""Connections opened while an image's manifest is on its way; containerd's labels say how many layers will follow."""


@dataclass(slots=True)
class _Outcome:
    """A layer on its way to the shelf."""

    ready: trio.Event = field(default_factory=trio.Event)
    layer: weakref.ref[Layer] | None = None
    """The shelf keeps it: a removed layer must not hold its index, a descriptor and space on the disk."""
    failure: NotLazy | None = None
    told: bool = False
    ended_at: float = float("inf")

    async def wait(self) -> Layer:
        await self.ready.wait()
        layer = None if self.layer is None else self.layer()
        if layer is None:
            self.told = True
            raise self.failure or NotLazy(Reason.INTERNAL, "opening the layer was given up")
        return layer

    @property
    def stale(self) -> bool:
        """Whether a new request starts anew: the layer was removed since, or the failure is old or was told already."""
        if self.layer is not None:
            layer = self.layer()
            return layer is None or layer.released
        return self.told or trio.current_time() > self.ended_at + FAILURE_LIFE_S


@dataclass(slots=True)
class _Image:
    reference: Reference
    manifest: ImageManifest
    manifest_digest: str
    answer: Manifest
    outcomes: dict[str, _Outcome] = field(default_factory=dict)

    def descriptor(self, digest: str) -> Descriptor | None:
        return next((layer for layer in self.manifest.layers if layer.digest == digest), None)


class Images:
    """Resolves layers. Used on the trio thread only."""

    def __init__(
        self,
        nursery: trio.Nursery,
        manifests: ManifestStore,
        opener: Opener,
        shelf: Shelf,
        fill: Fill,
        state: State,
        config: LazyConfig,
        share: str,
    ) -> None:
        self.with_metadata_images = False
        """Layers will be mounted as EROFS, so their images are written with their indexes."""
        self._nursery = nursery
        self._manifests = manifests
        self._opener = opener
        self._shelf = shelf
        self._fill = fill
        self._state = state
        self._config = config
        self._share = share
        self._images: dict[tuple[str, str], _Image] = {}
        self._locks: dict[tuple[str, str], trio.Lock] = {}

    async def resolve(self, request: LayerRequest) -> Layer:
        """Return the layer, attached, or say why it cannot be lazy.

        The first request for an image opens all of its layers; the others only wait for theirs. A layer on disk needs
        no network.

        Raises:
            NotLazy: with the reason.
        """
        reference = self._admitted(request)
        timeout_s = self._config.resolve_timeout_s
        if request.timeout_s is not None:
            timeout_s = min(timeout_s, request.timeout_s)
        with lazy_reasons(request.layer_digest):
            with trio.fail_after(timeout_s):
                image = await self._image(reference, request)
                if image.descriptor(request.layer_digest) is None:
                    raise NotLazy(
                        Reason.NOT_IN_MANIFEST,
                        f"the manifest {image.manifest_digest} of {reference} has no layer {request.layer_digest}",
                    )
                self._open_all(image, request)
                return await image.outcomes[request.layer_digest].wait()

    def _admitted(self, request: LayerRequest) -> Reference:
        try:
            reference = parse_reference(request.reference)
        except ConfigError as error:
            raise NotLazy(Reason.BAD_LABELS, f"the label with the image's reference is wrong: {error}") from error
        name = str(reference)
        if not self._config.admits(name):
            raise NotLazy(Reason.DENIED, f"the configuration (lazy.allow, lazy.deny) does not let {name} be lazy")
        return reference

    async def _image(self, reference: Reference, request: LayerRequest) -> _Image:
        key = (str(reference), request.manifest_digest or "")
        lock = self._locks.setdefault(key, trio.Lock())
        async with lock:
            image = self._images.get(key)
            if image is None or image.descriptor(request.layer_digest) is None:
                digest = request.manifest_digest
                kept = await self._manifests.at_hand(request.namespace, digest)
                # The layers' tails are asked for side by side as soon as the manifest is here.
                others = min(len(request.image_layers) - 1, CONNECTIONS_AHEAD)
                if others > 0 and kept is None:
                    self._nursery.start_soon(self._manifests.open_connections, reference, others)
                found = await self._manifests.containing(reference, digest, request.layer_digest, kept)
                image = _Image(reference, found.manifest, found.digest, found.answer)
                while len(self._images) >= IMAGES_KEPT:
                    oldest = next(iter(self._images))
                    self._images.pop(oldest)
                    self._locks.pop(oldest, None)
                self._images[key] = image
        return image

    def _open_all(self, image: _Image, request: LayerRequest) -> None:
        """Start opening every layer of the image that is not on its way; a failure is told once, then tried again."""
        for descriptor in image.manifest.layers:
            wanted = descriptor.digest == request.layer_digest
            outcome = image.outcomes.get(descriptor.digest)
            if outcome is None or (wanted and outcome.stale):
                image.outcomes[descriptor.digest] = outcome = _Outcome()
                label = request.toc_digest if wanted and not request.trusted_only else None
                self._nursery.start_soon(self._open, image, descriptor, label, request, outcome)

    async def _open(
        self, image: _Image, descriptor: Descriptor, label: str | None, request: LayerRequest, outcome: _Outcome
    ) -> None:
        try:
            with lazy_reasons(descriptor.digest), trio.fail_after(self._config.resolve_timeout_s):
                async with self._shelf.opening(descriptor.digest):
                    outcome.layer = weakref.ref(await self._attach(image, descriptor, label, request))
        except NotLazy as failure:
            outcome.failure = failure
        except SnapshotterError as failure:
            outcome.failure = NotLazy(Reason.INTERNAL, f"layer {descriptor.digest}: {failure}")
        except Exception as failure:
            # The nursery is the node's: a fault in one layer must not end every mount.
            log.exception("layer %s: opening failed", descriptor.digest)
            outcome.failure = NotLazy(Reason.INTERNAL, f"layer {descriptor.digest}: internal error {failure!r}")
        finally:
            outcome.ended_at = trio.current_time()
            outcome.ready.set()

    async def _attach(self, image: _Image, descriptor: Descriptor, label: str | None, request: LayerRequest) -> Layer:
        if descriptor.media_type not in LAYER_TYPES:
            raise NotLazy(
                Reason.MEDIA_TYPE, f"layer {descriptor.digest} has media type {descriptor.media_type}, which has no TOC"
            )
        allow_unverified = self._config.allow_unverified
        if allow_unverified and request.skip_verify:
            anchor = Anchor(None, None)
        else:
            anchor = anchor_of(descriptor, label, allow_unverified=allow_unverified)
        domain = sharing_domain(self._share, image.reference.host, image.reference.repository)
        source = LayerSource(str(image.reference), image.manifest_digest)
        record = await trio.to_thread.run_sync(self._known, descriptor, anchor.toc_digest, domain)
        if record is None:
            record = await self._record(image, descriptor, anchor, request, domain)
        await trio.to_thread.run_sync(self._state.add_source, record.number, source.reference, source.manifest_digest)
        await trio.to_thread.run_sync(self._manifests.keep_named, image.answer)
        layer = await self._shelf.attach(record, source)
        self._fill.begin(layer)
        if self.with_metadata_images:
            # Beside those of the image's other layers. The plane waits for it, and without it goes through FUSE.
            self._shelf.metadata_images.begin(record)
        return layer

    async def _record(
        self, image: _Image, descriptor: Descriptor, anchor: Anchor, request: LayerRequest, domain: str
    ) -> LayerRecord:
        allow_unverified = self._config.allow_unverified
        opened = await self._opener.open(image.reference, descriptor, anchor, allow_unverified=allow_unverified)
        anchored = anchor.toc_digest is not None or anchor.section_digest is not None

        def write() -> LayerRecord:
            return self._state.record_layer(
                layer_digest=descriptor.digest,
                toc_digest=opened.done.toc_digest,
                domain=domain,
                index_revision=INDEX_REVISION,
                blob_size=descriptor.size,
                media_type=descriptor.media_type,
                codec=opened.footer.codec,
                toc_offset=opened.footer.toc_offset,
                toc_end=opened.footer.toc_end,
                payload_end=opened.footer.payload_end,
                verified=anchored and opened.done.verified,
                prefetch_size=request.prefetch_size,
            )

        return await trio.to_thread.run_sync(write)

    def _known(self, descriptor: Descriptor, toc_digest: str | None, domain: str) -> LayerRecord | None:
        """A record of this very layer whose index is on disk: it needs no network."""
        for record in self._state.layers():
            if (
                record.layer_digest == descriptor.digest
                and record.domain == domain
                and record.index_revision == INDEX_REVISION
                and record.blob_size == descriptor.size
                and toc_digest is not None
                and record.toc_digest == toc_digest
                # What was let in unverified once is read again, and refused, when the admin allows it no more.
                and (record.verified or self._config.allow_unverified)
                and self._shelf.index_path(record).exists()
            ):
                return record
        return None
