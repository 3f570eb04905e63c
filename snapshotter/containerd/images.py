"""Image records: what a name means."""

from collections.abc import Mapping

from google.protobuf.field_mask_pb2 import FieldMask

from snapshotter.api.descriptor_pb2 import Descriptor
from snapshotter.api.images_pb2 import (
    CreateImageRequest,
    DeleteImageRequest,
    GetImageRequest,
    Image,
    UpdateImageRequest,
)
from snapshotter.api.images_pb2_grpc import ImagesStub
from snapshotter.containerd.client import Client
from snapshotter.errors import AlreadyExists, ContainerdError, NotFound

_TRIES = 3


async def name(client: Client, reference: str, target: Descriptor, labels: Mapping[str, str]) -> bool:
    """Have `reference` mean `target`; whether there was no such record before. Other labels of a record stay.

    Raises:
        ContainerdError: it refused, or others make and delete the record all the time.
    """
    stub = _stub(client)
    image = Image(name=reference, target=target, labels=labels)
    mask = FieldMask(paths=["target", *(f"labels.{key}" for key in labels)])
    for _ in range(_TRIES):
        try:
            await client.call(stub.Create, CreateImageRequest(image=image))
            return True
        except AlreadyExists:
            pass
        try:
            await client.call(stub.Update, UpdateImageRequest(image=image, update_mask=mask))
            return False
        except NotFound:
            continue  # deleted in between
    raise ContainerdError(f"the image record {reference} is made and deleted by others all the time; try again")


async def get(client: Client, reference: str) -> Image | None:
    """The record that is called `reference`, None if there is none."""
    try:
        answer = await client.call(_stub(client).Get, GetImageRequest(name=reference))
    except NotFound:
        return None
    image: Image = answer.image
    return image


async def forget(client: Client, reference: str) -> None:
    """Delete a record if it is there."""
    try:
        await client.call(_stub(client).Delete, DeleteImageRequest(name=reference))
    except NotFound:
        return


def _stub(client: Client) -> ImagesStub:
    return ImagesStub(client.channel)  # type: ignore[no-untyped-call]
