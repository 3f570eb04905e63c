"""The layer room as a plane wants it, speaking the service's values: the rooms do not know each other's."""

import dataclasses
from collections.abc import Sequence

from snapshotter.format.digest import Digest
from snapshotter.layer.layer import Layer
from snapshotter.layer.request import LayerRequest as RoomRequest
from snapshotter.layer.room import LayerRoom
from snapshotter.service.lazy import AttachedLayer, LayerRequest


class RoomLayers:
    """Passes calls on, and puts values of one room into those of the other."""

    def __init__(self, room: LayerRoom) -> None:
        self._room = room

    async def resolve(self, request: LayerRequest) -> Layer:
        """Attach the layer. Raises NotLazy."""
        return await self._room.resolve(
            RoomRequest(
                namespace=request.namespace,
                reference=request.reference,
                manifest_digest=Digest(request.manifest_digest) if request.manifest_digest else None,
                layer_digest=Digest(request.layer_digest),
                image_layers=tuple(map(Digest, request.image_layers)),
                toc_digest=Digest(request.toc_digest) if request.toc_digest else None,
                prefetch_size=request.prefetch_size,
                skip_verify=request.skip_verify,
                trusted_only=request.trusted_only,
                timeout_s=request.timeout_s,
            )
        )

    async def release(self, number: int) -> None:
        """Forget a layer and what only it needs."""
        await self._room.release(number)

    def describe(self, number: int) -> AttachedLayer:
        """Return what is known of a layer; from any thread. Raises NotFound, StoreError."""
        return AttachedLayer(**dataclasses.asdict(self._room.describe(number)))

    def touch(self, numbers: Sequence[int]) -> None:
        """Note a use, in memory and on disk; from any thread."""
        self._room.touch(numbers)
