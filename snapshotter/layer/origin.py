"""Where a layer's bytes come from: its index, and its blob under each reference that names it."""

from collections.abc import Sequence

from snapshotter.format.index import Index
from snapshotter.registry.blob import Blob

SOURCES_KEPT = 8
"""References through which a layer's blob is asked for."""


class Origin:
    """What a fetch needs to know of an attached layer. Used on the trio thread; the index is read anywhere."""

    def __init__(self, number: int, layer_digest: str, domain: str, index: Index, sources: Sequence[Blob]) -> None:
        self.number = number
        self.layer_digest = layer_digest
        self.domain = domain
        self.index = index
        self._sources = list(sources)
        self._source = 0

    @property
    def blob(self) -> Blob:
        """The blob at the source in use."""
        return self._sources[self._source]

    @property
    def source_count(self) -> int:
        """How many references name this layer."""
        return len(self._sources)

    def next_source(self) -> None:
        """Go on with the next reference that names this layer."""
        self._source = (self._source + 1) % len(self._sources)

    def add_sources(self, blobs: Sequence[Blob]) -> None:
        """Other references name this layer; they are tried first from now on, since their credentials are the newest."""
        self._sources[:0] = blobs
        del self._sources[SOURCES_KEPT:]
        self._source = 0
