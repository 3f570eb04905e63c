"""Leases: what is made under one is not collected before it ends."""

import secrets
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import trio

from snapshotter.api.leases_pb2 import AddResourceRequest, CreateRequest, DeleteRequest, ListRequest, Resource
from snapshotter.api.leases_pb2_grpc import LeasesStub
from snapshotter.containerd.client import Client
from snapshotter.errors import NotFound, SnapshotterError

LIFE = timedelta(hours=12)
"""After this a lease that nobody deleted ends by itself, and with it what a killed pull left behind."""

EXPIRE = "containerd.io/gc.expire"
SYNC_TIMEOUT_S = 300.0

TIDY_S = 30.0
"""How long work that ends early may take to tidy up; the end of the lease by itself does the rest."""

_DELETE_TRIES = 4
_DELETE_PAUSE_S = 0.5


def new_id(purpose: str = "pull") -> str:
    """An id that no other lease has; who lists leases sees what for."""
    return f"estargz-{purpose}-{secrets.token_hex(8)}"


async def create(client: Client, labels: Mapping[str, str] | None = None) -> datetime:
    """Make the client's lease, with `labels` for who looks for it later; when it ends by itself."""
    ends = datetime.now(UTC).replace(microsecond=0) + LIFE
    expiry = {EXPIRE: ends.isoformat().replace("+00:00", "Z")}
    request = CreateRequest(id=client.lease, labels={**(labels or {}), **expiry})
    await client.call(_stub(client).Create, request, leased=False)
    return ends


async def delete(client: Client, *, sync: bool) -> None:
    """End the client's lease if it is there; with `sync` what nothing else refers to is collected when this returns."""
    request = DeleteRequest(id=client.lease, sync=sync)
    try:
        await client.call(_stub(client).Delete, request, SYNC_TIMEOUT_S, leased=False)
    except NotFound:
        return


async def end(client: Client, *, sync: bool) -> str:
    """End the client's lease for good; what there is to tell people if that fails, else "".

    A containerd that is being restarted is given a moment.
    """
    failure = "it did not answer in time"
    for number in range(_DELETE_TRIES):
        if number:
            await trio.sleep(_DELETE_PAUSE_S * 2**number)
        try:
            await delete(client, sync=sync)
        except SnapshotterError as error:
            failure = str(error)
        else:
            return ""
    return (
        f"containerd's lease {client.lease} could not be deleted ({failure}); it ends by itself within "
        f"{LIFE.total_seconds() / 3600:.0f} hours"
    )


async def labelled(client: Client, label: str) -> dict[str, Mapping[str, str]]:
    """Every lease of the namespace that has this label, whatever its value, with all its labels."""
    answer = await client.call(_stub(client).List, ListRequest(filters=[f'labels."{label}"']), leased=False)
    return {lease.id: dict(lease.labels) for lease in answer.leases}


async def hold_content(client: Client, digest: str) -> None:
    """Have the client's lease keep a blob that was there before it."""
    resource = Resource(id=digest, type="content")
    await client.call(_stub(client).AddResource, AddResourceRequest(id=client.lease, resource=resource))


async def hold_snapshot(client: Client, snapshotter: str, name: str) -> None:
    """Have the client's lease keep a snapshot that was there before it."""
    resource = Resource(id=name, type=f"snapshots/{snapshotter}")
    await client.call(_stub(client).AddResource, AddResourceRequest(id=client.lease, resource=resource))


def _stub(client: Client) -> LeasesStub:
    return LeasesStub(client.channel)  # type: ignore[no-untyped-call]
