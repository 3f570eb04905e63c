"""Leases: what is made under one is not collected before it ends."""

import secrets
from datetime import UTC, datetime, timedelta

from snapshotter.api.leases_pb2 import AddResourceRequest, CreateRequest, DeleteRequest, Resource
from snapshotter.api.leases_pb2_grpc import LeasesStub
from snapshotter.containerd.client import Client
from snapshotter.errors import NotFound

LIFE = timedelta(hours=12)
"""After this a lease that nobody deleted ends by itself, and with it what a killed pull left behind."""

EXPIRE = "containerd.io/gc.expire"
SYNC_TIMEOUT_S = 300.0


def new_id(purpose: str = "pull") -> str:
    """An id that no other lease has; who lists leases sees what for."""
    return f"estargz-{purpose}-{secrets.token_hex(8)}"


async def create(client: Client) -> datetime:
    """Make the client's lease; when it ends by itself."""
    ends = datetime.now(UTC).replace(microsecond=0) + LIFE
    request = CreateRequest(id=client.lease, labels={EXPIRE: ends.isoformat().replace("+00:00", "Z")})
    await client.call(_stub(client).Create, request, leased=False)
    return ends


async def delete(client: Client, *, sync: bool) -> None:
    """End the client's lease if it is there; with `sync` what nothing else refers to is collected when this returns."""
    request = DeleteRequest(id=client.lease, sync=sync)
    try:
        await client.call(_stub(client).Delete, request, SYNC_TIMEOUT_S, leased=False)
    except NotFound:
        return


async def hold_snapshot(client: Client, snapshotter: str, name: str) -> None:
    """Have the client's lease keep a snapshot that was there before it."""
    resource = Resource(id=name, type=f"snapshots/{snapshotter}")
    await client.call(_stub(client).AddResource, AddResourceRequest(id=client.lease, resource=resource))


def _stub(client: Client) -> LeasesStub:
    return LeasesStub(client.channel)  # type: ignore[no-untyped-call]
