"""Files by the names under which overlays look for their content. The gate asks this, which knows names and no layers.

A small file, of one chunk, is named by its digest alone: nothing of it is used before the digest is proven. A large file
is served in parts before the whole can be proven, and the parts go by the TOC that names them, so its name says which
chunks it is made of: another image's TOC that lies about the same digest has another name for it.

Several layers may name a file, and nobody knows which of them the asking container has. One whose registry is away must
not hold up what another can deliver: layers whose host failed last are asked last, and the next is asked beside one that
has not delivered within `HEDGE_S`.
"""

import weakref
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias, TypeVar

import trio

from snapshotter.errors import RegistryUnreachable, SnapshotterError, StoreError
from snapshotter.layer.counters import Counters
from snapshotter.layer.layer import Layer
from snapshotter.layer.shelf import Shelf
from snapshotter.store.identity import large_name
from snapshotter.store.objects import ObjectStore

T = TypeVar("T")
Holder: TypeAlias = tuple[Layer, int]
"""A layer that names a file, and its node of it."""

HEDGE_S = 0.5
NAMES_KEPT = 4096
RECENT_KEPT = 16
MANY_CHUNKS = 1000
"""Hashing a longer list of chunks takes milliseconds, for which the loop has no time."""
DIGEST_DIGITS = 64
ATTEMPTS = 3
"""Between landing and linking an eviction may take a file away; so often it is brought again."""


class Contents:
    """Used on the trio thread."""

    def __init__(self, shelf: Shelf, store: ObjectStore, counters: Counters) -> None:
        self._shelf = shelf
        self._store = store
        self._counters = counters
        self._names: OrderedDict[tuple[int, int], str] = OrderedDict()
        self._recent: OrderedDict[int, None] = OrderedDict()
        self._known: OrderedDict[tuple[str, str], tuple[weakref.ref[Layer], int]] = OrderedDict()

    async def size(self, domain: str, name: str) -> int | None:
        """Bytes of a file as the first layer says that names it in a sharing domain; None if no layer does."""
        holders = await self._holders(domain, name, only_first=True)
        if not holders:
            return None
        number = holders[0][0].number
        # Files that are read together lie in few layers: those are asked first.
        self._recent[number] = None
        self._recent.move_to_end(number)
        if len(self._recent) > RECENT_KEPT:
            self._recent.popitem(last=False)
        return _size(holders[0])

    async def disputed(self, domain: str, name: str) -> bool:
        """Whether layers give a file different sizes: only one of them can be right."""
        return len({_size(holder) for holder in await self._holders(domain, name)}) > 1

    async def bring(self, domain: str, name: str) -> bool:
        """Have a file whole where overlays look last; False if the node's disk does not take it.

        A small file is fetched for it; of a large one this says whether it is whole already.

        Raises:
            RegistryError, IntegrityError: no layer that names it can deliver it.
        """
        return await self._first(name, await self._holders(domain, name), self._bring)

    async def read(self, domain: str, name: str, file_size: int, offset: int, size: int) -> bytes | bytearray:
        """At most `size` verified bytes of a file of `file_size`; fewer only at its end. Raises as `Layer.read`."""
        key = domain, name
        kept = self._known.get(key)
        layer = kept[0]() if kept else None
        if kept and layer and not layer.released and not self._is_away(layer):
            return await layer.read(kept[1], offset, size)
        holders = [holder for holder in await self._holders(domain, name) if _size(holder) == file_size]

        async def attempt(holder: Holder) -> bytes | bytearray:
            data = await holder[0].read(holder[1], offset, size)
            self._known[key] = weakref.ref(holder[0]), holder[1]
            if len(self._known) > NAMES_KEPT:
                self._known.popitem(last=False)
            return data

        return await self._first(name, holders, attempt)

    async def _first(self, name: str, holders: Sequence[Holder], attempt: Callable[[Holder], Awaitable[T]]) -> T:
        """What the first of the layers gives that gives something. Raises what the first gave if none does."""
        if not holders:
            raise StoreError(f"no layer on this node names file {name} any more")
        if len(holders) == 1:
            return await attempt(holders[0])
        hosts: dict[str, list[Holder]] = {}
        for holder in holders:
            hosts.setdefault(holder[0].origin.host, []).append(holder)
        results: list[T] = []
        failures: list[SnapshotterError] = []

        async def ask(holders: Sequence[Holder], ended: trio.Event) -> None:
            for holder in holders:
                try:
                    results.append(await attempt(holder))
                    nursery.cancel_scope.cancel()
                except RegistryUnreachable as error:
                    # The wait that `on_outage` allows was spent on this host.
                    failures.append(error)
                    break
                except SnapshotterError as error:
                    failures.append(error)
            ended.set()

        async with trio.open_nursery() as nursery:
            for of_host in hosts.values():
                ended = trio.Event()
                nursery.start_soon(ask, of_host, ended)
                with trio.move_on_after(HEDGE_S):
                    await ended.wait()
        if results:
            return results[0]
        raise failures[0]

    async def _bring(self, holder: Holder) -> bool:
        layer, node = holder
        for _ in range(ATTEMPTS):
            if layer.index.chunk_count(node) == 1:
                whole = await layer.bring_chunks(node)
            else:
                whole = await trio.to_thread.run_sync(layer.settle, node)
            if not whole:
                return False
            identity = layer.index.identity(node)
            name = self._large_name(holder) if len(identity.chunks) > 1 else ""
            try:
                if await trio.to_thread.run_sync(
                    self._store.link_late, layer.domain, identity.digest, identity.size, name
                ):
                    return True
            except StoreError:
                return False
        return False

    async def _holders(self, domain: str, name: str, *, only_first: bool = False) -> list[Holder]:
        """Every layer of the domain that names a file, or the first that is found; those whose host failed last behind."""
        try:
            digest = bytes.fromhex(name[:DIGEST_DIGITS])
        except ValueError:
            return []
        large = len(name) > DIGEST_DIGITS
        recent = [self._shelf.get(number) for number in reversed(self._recent)]
        others = [layer for layer in self._shelf.all() if layer.number not in self._recent]
        found: list[Holder] = []
        for layer in (*recent, *others):
            if layer is None or layer.released or layer.domain != domain:
                continue
            node = layer.index.find(digest)
            if node is None or (layer.index.chunk_count(node) > 1) != large:
                continue
            if large and await self._ready_name((layer, node)) != name:
                continue
            found.append((layer, node))
            if only_first:
                break
        return sorted(found, key=lambda holder: self._is_away(holder[0]))

    def _is_away(self, layer: Layer) -> bool:
        """Whether the last request to a layer's host failed."""
        return bool(self._counters.hosts.get(layer.origin.host))

    async def _ready_name(self, holder: Holder) -> str:
        """The name of a large file; that of one with many chunks is made in a thread."""
        layer, node = holder
        key = layer.number, node
        if key not in self._names and layer.index.chunk_count(node) > MANY_CHUNKS:
            self._keep_name(key, await trio.to_thread.run_sync(lambda: large_name(layer.index.identity(node))))
        return self._large_name(holder)

    def _large_name(self, holder: Holder) -> str:
        layer, node = holder
        key = layer.number, node
        known = self._names.get(key)
        if known is None:
            known = large_name(layer.index.identity(node))
            self._keep_name(key, known)
        else:
            self._names.move_to_end(key)
        return known

    def _keep_name(self, key: tuple[int, int], name: str) -> None:
        self._names[key] = name
        if len(self._names) > NAMES_KEPT:
            self._names.popitem(last=False)


def _size(holder: Holder) -> int:
    layer, node = holder
    return layer.index.attributes(node).size
