"""Layers into snapshots, bottom up: mounted lazily where the snapshotter can, else fetched and unpacked by containerd."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import trio

from snapshotter.containerd.client import Client
from snapshotter.containerd.snapshots import Committed, Snapshots
from snapshotter.errors import AlreadyExists, ContainerdError, NotLazy, Reason
from snapshotter.image.labels import extraction_key, snapshot_labels
from snapshotter.image.pull.fetch import Blobs
from snapshotter.image.pull.reasons import Reasons
from snapshotter.image.pull.resolve import Resolved
from snapshotter.image.pull.rows import LayerRow, LayerState, Watcher
from snapshotter.image.unpacking import Active, unpack_layer
from snapshotter.layer.images import LAYER_TYPES
from snapshotter.layer.opening import anchor_of
from snapshotter.registry.client import Registry
from snapshotter.registry.manifest import Descriptor
from snapshotter.registry.reference import Reference

_TRIES = 3

# What keeps one layer from being lazy keeps the others from it too: their blobs need not wait to be asked for.
_OF_THE_WHOLE_IMAGE = frozenset(
    {
        "",  # nobody says why: not our daemon, or none
        Reason.DENIED,
        Reason.NO_LABELS,
        Reason.BAD_LABELS,
        Reason.UNREACHABLE,
        Reason.REGISTRY_DENIED,
        Reason.REGISTRY_FAULT,
        Reason.NO_RANGES,
        Reason.TIMEOUT,
        Reason.DISK,
    }
)


@dataclass(frozen=True, slots=True)
class Places:
    """Where layers come from and go to. `remote`: the snapshotter can be one that mounts lazily. `allow_unverified`: it
    also mounts layers that nothing vouches for.
    """

    registry: Registry
    client: Client
    snapshots: Snapshots
    reasons: Reasons
    remote: bool
    allow_unverified: bool


class Layers:
    """The layers of one image."""

    def __init__(self, places: Places, reference: Reference, image: Resolved, chain: Sequence[str]) -> None:
        """`chain` has the chain id of each layer."""
        self.rows = [
            LayerRow(layer.digest, name, layer.size) for layer, name in zip(image.manifest.layers, chain, strict=True)
        ]
        self.open_keys: set[str] = set()
        """Active snapshots that are there, or may be."""
        self._places = places
        self._snapshots = places.snapshots
        self._reference = reference
        self._image = image
        self._layers = image.manifest.layers

    async def unpack(self, watcher: Watcher) -> None:
        """Have a committed snapshot for each layer.

        Raises:
            SnapshotterError: one cannot be; in a group with what other tasks ended with.
        """
        watcher.begin(self.rows)
        first = await self._first_missing()
        for number, row in enumerate(self.rows[:first], 1):
            watcher.ended(number, len(self.rows), row)
        async with trio.open_nursery() as nursery:
            blobs = Blobs(nursery, self._places.registry, self._reference, self._places.client)
            for number in range(first, len(self.rows)):
                if self._never_lazy(self._layers[number]):
                    blobs.begin(self._layers[number], self.rows[number])
            for number in range(first, len(self.rows)):
                row = self.rows[number]
                row.began_s = time.monotonic() if row.began_s is None else row.began_s
                await self._one(number, row, blobs)
                row.ended_s = time.monotonic()
                watcher.ended(number + 1, len(self.rows), row)

    async def _first_missing(self) -> int:
        """How many of the lowest layers are there: the highest snapshot that is there vouches for those below."""
        for number in range(len(self.rows) - 1, -1, -1):
            if await self._snapshots.committed(self.rows[number].chain_id) is None:
                continue
            for row in self.rows[: number + 1]:
                row.state = LayerState.PRESENT
                if (found := await self._snapshots.stat(row.chain_id)) is not None:
                    row.detail = _how_present(found)
            return number + 1
        return 0

    def _never_lazy(self, layer: Descriptor) -> bool:
        """Whether the manifest alone says that a layer must be fetched whole."""
        if not self._places.remote or layer.media_type not in LAYER_TYPES:
            return True
        try:
            anchor_of(layer, None, allow_unverified=self._places.allow_unverified)
        except NotLazy:
            return True
        return False

    def _speaks_for_all(self, layer: Descriptor, reason: str) -> bool:
        """Whether the layers above will be refused as this one was, which looked as if it could be lazy."""
        if self._never_lazy(layer) or any(row.state is LayerState.LAZY for row in self.rows):
            return False
        return reason in _OF_THE_WHOLE_IMAGE

    async def _one(self, number: int, row: LayerRow, blobs: Blobs) -> None:
        labels = snapshot_labels(self._reference, self._image.manifest_digest, self._layers, number, row.chain_id)
        for _ in range(_TRIES):
            key = extraction_key(row.chain_id)
            row.state = LayerState.ASKING if row.state is LayerState.WAITING else row.state
            self.open_keys.add(key)
            try:
                mounts = await self._snapshots.prepare(key, self._below(number), labels)
            except AlreadyExists:
                self.open_keys.discard(key)
                committed = await self._snapshots.committed(row.chain_id)
                if committed is not None:
                    blobs.drop(self._layers[number])
                    row.state = LayerState.LAZY if committed.remote else LayerState.PRESENT
                    row.detail = "" if committed.remote else _how_present(committed)
                    return
                continue  # collected in between
            await self._ordinary(number, row, blobs, Active(key, mounts, labels))
            return
        raise ContainerdError(
            f"layer {row.digest}: the snapshotter {self._snapshots.name} says that {row.chain_id} is there, and "
            "containerd does not find it; remove the image, and pull it again"
        )

    async def _ordinary(self, number: int, row: LayerRow, blobs: Blobs, active: Active) -> None:
        """Fill an active snapshot and commit it."""
        layer = self._layers[number]
        blobs.begin(layer, row)
        if self._places.remote:
            row.reason, row.detail = await self._places.reasons.of(str(self._reference), layer.digest)
            if self._speaks_for_all(layer, row.reason):
                for above in range(number + 1, len(self.rows)):
                    blobs.begin(self._layers[above], self.rows[above])
        await blobs.have(layer, row)
        row.state = LayerState.APPLYING
        diff_id, image = self._image.diff_ids[number], str(self._reference)
        await unpack_layer(self._places.client, self._snapshots, layer, diff_id, row.chain_id, active, image)
        self.open_keys.discard(active.key)
        row.state = LayerState.UNPACKED

    def _below(self, number: int) -> str:
        return self.rows[number - 1].chain_id if number else ""


def _how_present(committed: Committed) -> str:
    return "mounted lazily before" if committed.remote else "unpacked before"
