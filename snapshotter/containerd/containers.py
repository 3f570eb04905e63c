"""Containers: records that say what is to run and on which snapshot; whether it runs is the task's matter."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.any_pb2 import Any as AnyMessage

from snapshotter.api.containers_pb2 import (
    Container,
    CreateContainerRequest,
    DeleteContainerRequest,
    ListContainersRequest,
)
from snapshotter.api.containers_pb2_grpc import ContainersStub
from snapshotter.containerd.client import Client
from snapshotter.errors import NotFound

RUNTIME = "io.containerd.runc.v2"
"""The runtime of every containerd from 1.6 on."""

# What containerd calls the specification's JSON inside its messages. Source: containerd's typeurl registrations.
_SPEC_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/Spec"


@dataclass(frozen=True, slots=True)
class Recorded:
    """A container's record."""

    id: str
    labels: Mapping[str, str]
    snapshotter: str
    snapshot_key: str


async def create(client: Client, container: Recorded, image: str, spec: Mapping[str, Any]) -> None:
    """Make a record of a container that runs `spec` on an active snapshot; `image` is for whoever lists them.

    Raises:
        AlreadyExists: another one has this id.
        ContainerdError: it refused.
    """
    message = Container(
        id=container.id,
        labels=container.labels,
        image=image,
        runtime=Container.Runtime(name=RUNTIME),
        spec=AnyMessage(type_url=_SPEC_TYPE, value=json.dumps(spec).encode()),
        snapshotter=container.snapshotter,
        snapshot_key=container.snapshot_key,
    )
    await client.call(_stub(client).Create, CreateContainerRequest(container=message))


async def labelled(client: Client, label: str) -> list[Recorded]:
    """Every container of the namespace that has this label, whatever its value."""
    answer = await client.call(_stub(client).List, ListContainersRequest(filters=[f'labels."{label}"']), leased=False)
    return [Recorded(one.id, dict(one.labels), one.snapshotter, one.snapshot_key) for one in answer.containers]


async def delete(client: Client, container_id: str) -> None:
    """Delete a record if it is there."""
    try:
        await client.call(_stub(client).Delete, DeleteContainerRequest(id=container_id), leased=False)
    except NotFound:
        return


def _stub(client: Client) -> ContainersStub:
    return ContainersStub(client.channel)  # type: ignore[no-untyped-call]
