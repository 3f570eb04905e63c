"""An image at its registry: its manifest, whether its layers can be lazy, whether ranges of them are served, and how fast.

All of it goes the daemon's own way (`registry/`): the same hosts, credentials, certificates and redirects.
"""

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, TypeVar

import trio

from snapshotter.config import RegistryConfig
from snapshotter.errors import FormatError, RegistryError, RegistryUnreachable, SnapshotterError
from snapshotter.format.footer import TAIL_MIN, footer_from_annotations, parse_footer
from snapshotter.layer.images import LAYER_TYPES
from snapshotter.layer.opening import anchor_of
from snapshotter.registry.client import Registry
from snapshotter.registry.hosts import Endpoint
from snapshotter.registry.manifest import Descriptor, ImageIndex, choose_platform, parse_manifest
from snapshotter.registry.platform import host_platform
from snapshotter.registry.reference import Reference
from snapshotter.registry.retry import RetryPolicy

T = TypeVar("T")

SAMPLE: Final = 4 << 20
"""Bytes read of the largest layer to see how fast they come."""
SIDE_BY_SIDE: Final = 6
SHARE: Final = 0.8
"""Of the time that a check has: the rest is for saying what was found."""
NESTED_MAX: Final = 4


@dataclass(frozen=True, slots=True)
class Contents:
    """The layers of an image for this machine, lowest first; `took_s` is how long its manifest took."""

    layers: tuple[Descriptor, ...]
    took_s: float


@dataclass(frozen=True, slots=True)
class LayerLook:
    """One layer: `flavor` is how it is lazy, or empty with `why_not`.

    `range_error` is what became of a request for a range, None if it was served; `redirect` the host to which that was
    sent on, or empty.
    """

    digest: str
    size: int
    flavor: str
    why_not: str
    range_error: RegistryError | None
    redirect: str
    took_s: float


@dataclass(frozen=True, slots=True)
class Speed:
    """What a longer read gave: seconds until the first piece, and until the end; `size` in bytes."""

    first_s: float
    whole_s: float
    size: int


class ImageLook:
    """Looks at one image; every method blocks, for a limited time."""

    def __init__(
        self, reference: Reference, config: RegistryConfig, timeout_s: float, *, machine: str, unverified: bool
    ) -> None:
        """`machine` is what uname says; `unverified` whether layers may be lazy that nothing vouches for."""
        self.reference = reference
        self._timeout_s = timeout_s * SHARE
        # One more try within the time there is: who asks wants to know now.
        self._config = replace(
            config,
            connect_timeout_s=min(config.connect_timeout_s, self._timeout_s / 2),
            read_timeout_s=min(config.read_timeout_s, self._timeout_s),
        )
        self._machine = machine
        self._unverified = unverified

    def endpoints(self) -> list[Endpoint]:
        """The servers that are asked for the image, best first. Raises RegistryError, ConfigError: as they are configured."""
        return trio.run(self._within, self._endpoints)

    def contents(self) -> Contents:
        """Fetch the manifest. Raises RegistryError and its subclasses, FormatError."""
        return trio.run(self._within, self._contents)

    def layers(self, contents: Contents) -> list[LayerLook]:
        """Look at the end of each layer, which is where its table of contents is told; what fails is in the answers."""
        return trio.run(self._within, partial(self._layers, layers=contents.layers))

    def speed(self, contents: Contents) -> Speed:
        """Read a stretch of the largest layer. Raises RegistryError and its subclasses."""
        largest = max(contents.layers, key=lambda layer: layer.size)
        return trio.run(self._within, partial(self._speed, descriptor=largest))

    async def _within(self, work: Callable[[Registry], Awaitable[T]]) -> T:
        try:
            with trio.fail_after(self._timeout_s):
                async with Registry(self._config, policy=RetryPolicy(retries=1)) as registry:
                    return await work(registry)
        except trio.TooSlowError:
            raise RegistryUnreachable(f"{self.reference.host} did not answer within {self._timeout_s:.0f} s") from None

    async def _endpoints(self, registry: Registry) -> list[Endpoint]:
        return list(registry.endpoints(self.reference))

    async def _contents(self, registry: Registry) -> Contents:
        began = time.monotonic()
        digest: str | None = None
        for _ in range(NESTED_MAX):
            answer = await registry.manifest(self.reference, digest)
            manifest = parse_manifest(answer.raw, answer.media_type)
            if not isinstance(manifest, ImageIndex):
                return Contents(manifest.layers, time.monotonic() - began)
            digest = choose_platform(manifest, host_platform(self._machine)).digest
        raise FormatError(f"{self.reference}: indexes within indexes, more than {NESTED_MAX}")

    async def _layers(self, registry: Registry, layers: Sequence[Descriptor]) -> list[LayerLook]:
        looks: dict[int, LayerLook] = {}
        slots = trio.CapacityLimiter(SIDE_BY_SIDE)
        # Before the time of the whole look ends: one layer that hangs must not hide what the others gave.
        deadline = trio.current_time() + self._timeout_s * SHARE

        async def one(number: int, descriptor: Descriptor) -> None:
            async with slots:
                looks[number] = await self._layer(registry, descriptor, deadline)

        async with trio.open_nursery() as nursery:
            for number, descriptor in enumerate(layers):
                nursery.start_soon(one, number, descriptor)
        return [looks[number] for number in sorted(looks)]

    async def _layer(self, registry: Registry, descriptor: Descriptor, deadline: float) -> LayerLook:
        length = min(TAIL_MIN, descriptor.size)
        began = time.monotonic()
        tail: bytes | None = None
        failed: RegistryError | None = None
        blob = registry.blob(self.reference, descriptor.digest, descriptor.size)
        try:
            with trio.move_on_at(deadline):
                tail = await blob.read_range(descriptor.size - length, length)
        except RegistryError as error:
            failed = error
        if tail is None and failed is None:
            failed = RegistryUnreachable(
                f"layer {descriptor.digest[:19]} of {self.reference.name} did not come in time"
            )
        took_s = time.monotonic() - began
        try:
            flavor, why_not = self._flavor(descriptor, tail), ""
        except SnapshotterError as error:
            flavor, why_not = "", str(error)
        return LayerLook(descriptor.digest, descriptor.size, flavor, why_not, failed, blob.redirects_to or "", took_s)

    def _flavor(self, descriptor: Descriptor, tail: bytes | None) -> str:
        """How the layer can be lazy. Raises NotLazy, FormatError: it cannot."""
        if descriptor.media_type not in LAYER_TYPES:
            raise FormatError(f"its media type {descriptor.media_type} has no table of contents")
        footer = footer_from_annotations(descriptor.annotations, descriptor.size)
        if footer is None:
            if tail is None:
                raise FormatError("its end could not be read")
            footer = parse_footer(tail, descriptor.size)
        anchor_of(descriptor, None, allow_unverified=self._unverified)
        return str(footer.flavor)

    async def _speed(self, registry: Registry, descriptor: Descriptor) -> Speed:
        size = min(SAMPLE, descriptor.size)
        blob = registry.blob(self.reference, descriptor.digest, descriptor.size)
        began = time.monotonic()
        first_s = 0.0
        got = 0
        # Half of the time may pass: a slow line is a finding, and no fault.
        with trio.move_on_after(self._timeout_s / 2):
            async with blob.open_range(descriptor.size - size, size) as pieces:
                async for piece in pieces:
                    first_s = first_s or time.monotonic() - began
                    got += len(piece)
        return Speed(first_s, time.monotonic() - began, got)
