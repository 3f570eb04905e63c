"""Where a layer's bytes come from: its index, and its blob under each reference that names it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import trio

from snapshotter.errors import NotFound
from snapshotter.format.index import Index
from snapshotter.layer.breaker import Breaker
from snapshotter.layer.sources import Source

SOURCES_KEPT = 8
"""References through which a layer's blob is asked for."""


class Origin:
    """What a fetch needs to know of an attached layer. Used on the trio thread; the index is read anywhere."""

    def __init__(self, number: int, layer_digest: str, domain: str, index: Index, sources: Sequence[Source]) -> None:
        self.number = number
        self.layer_digest = layer_digest
        self.domain = domain
        self.index = index
        self._sources: list[Source] = []
        self.add_sources(sources)
        self._breakers: dict[str, Breaker] = {}
        self._closed = False
        self._carriages: set[trio.CancelScope] = set()
        self._idle = trio.Event()

    @property
    def host(self) -> str:
        """The registry host that is asked next; empty if no reference is known."""
        return self._sources[0].host if self._sources else ""

    def breaker(self, host: str) -> Breaker:
        """Whether `host` answers those who ask it for this layer."""
        return self._breakers.setdefault(host, Breaker(host))

    def breakers(self) -> dict[str, Breaker]:
        """The breaker of each host that was asked for this layer; from any thread."""
        return dict(self._breakers)

    def sources(self) -> tuple[Source, ...]:
        """The blob under each reference, in the order in which they are tried."""
        return tuple(self._sources)

    def avoid(self, source: Source) -> None:
        """Try this source last from now on, unless another reader has gone on to the next already."""
        if self._sources and self._sources[0] is source:
            self._sources.append(self._sources.pop(0))

    def distrust(self) -> None:
        """Bytes were not what they should be: another source is tried, and no remembered redirect is followed."""
        if self._sources:
            self._sources[0].forget_redirects()
            self.avoid(self._sources[0])

    def add_sources(self, sources: Sequence[Source]) -> None:
        """Other references name this layer; they are tried first from now on, since their credentials are the newest.

        Tags of one repository are one source.
        """
        # One that is known stays: it remembers where its registry redirects to.
        known = {source.name: source for source in self._sources}
        newest = {source.name: known.get(source.name, source) for source in sources}
        others = {name: source for name, source in known.items() if name not in newest}
        self._sources = list((newest | others).values())
        del self._sources[SOURCES_KEPT:]

    @contextmanager
    def carriage(self) -> Iterator[None]:
        """Around all that stores bytes of this layer. Raises NotFound if the layer is removed meanwhile."""
        with trio.CancelScope() as scope:
            self._carriages.add(scope)
            if self._closed:
                scope.cancel()
            try:
                yield
            finally:
                self._carriages.discard(scope)
                if not self._carriages:
                    self._idle.set()
                    self._idle = trio.Event()
        if scope.cancelled_caught:
            raise NotFound(f"layer {self.layer_digest} was removed from this node")

    async def close(self) -> None:
        """The layer is removed: end all that stores bytes of it; nothing is stored once this returns."""
        self._closed = True
        for scope in self._carriages:
            scope.cancel()
        while self._carriages:
            await self._idle.wait()
