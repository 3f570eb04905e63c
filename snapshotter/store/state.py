"""`state.db`: what containerd was told, and what is needed to keep it without any network.

Snapshots are read and written with `state_snapshots`, inside a transaction of `State.read` or `State.write`.
"""

from snapshotter.store.state_gate import GateTable
from snapshotter.store.state_layers import LayerRecord, LayerSource, LayerTable

__all__ = ["LayerRecord", "LayerSource", "State"]


class State(LayerTable, GateTable):
    """The whole of `state.db`, usable from any thread; SQLite never runs on the trio thread (house, Async)."""
