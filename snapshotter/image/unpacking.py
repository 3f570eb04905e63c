"""One layer from containerd's content store into a snapshot, checked against the image's configuration."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from snapshotter.api.descriptor_pb2 import Descriptor as ContainerdDescriptor
from snapshotter.api.mount_pb2 import Mount
from snapshotter.containerd import ingest
from snapshotter.containerd.client import Client
from snapshotter.containerd.snapshots import Snapshots
from snapshotter.errors import AlreadyExists, ContainerdError, IntegrityError
from snapshotter.image.labels import UNCOMPRESSED, apply_type
from snapshotter.registry.manifest import Descriptor


@dataclass(frozen=True, slots=True)
class Active:
    """An active snapshot."""

    key: str
    mounts: Sequence[Mount]
    labels: Mapping[str, str]


async def unpack_layer(
    client: Client, snapshots: Snapshots, layer: Descriptor, diff_id: str, chain_id: str, active: Active, image: str
) -> None:
    """Unpack a blob that containerd has into `active`, and commit that as `chain_id`. `image` is for messages.

    Raises:
        IntegrityError: it does not unpack to `diff_id`; the active snapshot is still there.
        ContainerdError: containerd could not.
    """
    blob = ContainerdDescriptor(media_type=apply_type(layer.media_type), digest=layer.digest, size=layer.size)
    unpacked = await snapshots.apply(blob, active.mounts)
    if unpacked != diff_id:
        raise IntegrityError(
            f"{image}: layer {layer.digest} unpacks to {unpacked}, its config says {diff_id}; the image is broken, "
            "build it again"
        )
    await ingest.set_labels(client, layer.digest, {UNCOMPRESSED: diff_id})
    try:
        await snapshots.commit(chain_id, active.key, active.labels)
    except AlreadyExists:
        await snapshots.remove(active.key)
        if await snapshots.committed(chain_id) is None:
            raise ContainerdError(
                f"layer {layer.digest}: {chain_id} was there when it was to be committed, and is no more; try again"
            ) from None
