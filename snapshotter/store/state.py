"""`state.db`: what containerd was told, and what is needed to keep it without any network.

Snapshots are read and written with `state_snapshots`, inside a transaction of `State.read` or `State.write`.
"""

from snapshotter.store.state_layers import LayerRecord, LayerSource, LayerTable
from snapshotter.store.state_pulls import Outcome, PullRecord, PullTable

__all__ = ["LayerRecord", "LayerSource", "Outcome", "PullRecord", "State"]


class State(LayerTable, PullTable):
    """The whole of `state.db`, usable from any thread; SQLite never runs on the trio thread (house, Async)."""
