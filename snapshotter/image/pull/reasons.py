"""Asking our daemon why a layer is not lazy. A short cut to what its log says: without it a pull works all the same."""

from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import grpc
import trio

from snapshotter.api.control_pb2 import LAYER_STATE_ORDINARY, LayersRequest
from snapshotter.api.control_pb2_grpc import ControlStub

TIMEOUT_S = 10.0


class Why(NamedTuple):
    """A word of the daemon's fixed set, and a sentence; both empty where nobody says."""

    reason: str
    detail: str


NOBODY_SAYS = Why("", "")


class Reasons:
    """What the daemon at `address` says of layers; after its first fault it is not asked again."""

    def __init__(self, address: Path | None) -> None:
        """None: there is nobody to ask."""
        self._address = address

    async def of(self, reference: str, digest: str) -> Why:
        """Why this layer of this image has just become an ordinary snapshot."""
        address = self._address
        if address is None:
            return NOBODY_SAYS
        try:
            return await trio.to_thread.run_sync(_ask, address, reference, digest, abandon_on_cancel=True)
        except grpc.RpcError:
            self._address = None
            return NOBODY_SAYS


def _ask(address: Path, reference: str, digest: str) -> Why:
    options = (("grpc.enable_http_proxy", 0),)  # else gRPC sends even this through HTTP_PROXY of the admin's shell
    with grpc.insecure_channel(f"unix:{quote(bytes(address))}", options=options) as channel:
        answers = ControlStub(channel).Layers(LayersRequest(), timeout=TIMEOUT_S)  # type: ignore[no-untyped-call]
        found = NOBODY_SAYS
        for answer in answers:
            for row in answer.layers:
                if (row.image, row.digest, row.state) == (reference, digest, LAYER_STATE_ORDINARY):
                    found = Why(row.reason, row.detail)
    return found
