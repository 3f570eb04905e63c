"""Files by the names under which overlays look for their content. The gate asks this, which knows names and no layers.

A small file, of one chunk, is named by its digest alone: nothing of it is used before the digest is proven. A large file
is served in parts before the whole can be proven, and the parts go by the TOC that names them, so its name says which
chunks it is made of: another image's TOC that lies about the same digest has another name for it.
"""

import itertools
import weakref
from collections import OrderedDict
from collections.abc import Iterator

import trio

from snapshotter.errors import RegistryUnreachable, SnapshotterError, StoreError
from snapshotter.layer.layer import Layer
from snapshotter.layer.shelf import Shelf
from snapshotter.store.identity import large_name
from snapshotter.store.objects import ObjectStore

HOLDERS_KEPT = 4096
RECENT_KEPT = 16
DIGEST_DIGITS = 64
ATTEMPTS = 3
"""Between landing and linking an eviction may take a file away; so often it is brought again."""


class Contents:
    """Used on the trio thread."""

    def __init__(self, shelf: Shelf, store: ObjectStore) -> None:
        self._shelf = shelf
        self._store = store
        self._known: OrderedDict[tuple[str, str], tuple[weakref.ref[Layer], int]] = OrderedDict()
        self._recent: OrderedDict[int, None] = OrderedDict()

    def size(self, domain: str, name: str) -> int | None:
        """Bytes of a file as the first layer says that names it in a sharing domain; None if no layer does."""
        holder = next(self._holders(domain, name), None)
        if holder is None:
            return None
        layer, node = holder
        # Files that are read together lie in few layers: those are asked first.
        self._recent[layer.number] = None
        self._recent.move_to_end(layer.number)
        if len(self._recent) > RECENT_KEPT:
            self._recent.popitem(last=False)
        return layer.index.attributes(node).size

    def disputed(self, domain: str, name: str) -> bool:
        """Whether layers give a file different sizes: only one of them can be right."""
        return len({layer.index.attributes(node).size for layer, node in self._holders(domain, name)}) > 1

    async def bring(self, domain: str, name: str) -> bool:
        """Have a file whole where overlays look last; False if the node's disk does not take it.

        A small file is fetched for it; of a large one this says whether it is whole already.

        Raises:
            RegistryError, IntegrityError: no layer that names it can deliver it.
        """
        failure: SnapshotterError | None = None
        away: set[str] = set()
        for layer, node in self._holders(domain, name):
            if layer.origin.host in away:
                continue
            try:
                return await self._bring(layer, node)
            except RegistryUnreachable as error:
                # The wait that `on_outage` allows was spent on this host.
                away.add(layer.origin.host)
                failure = failure or error
            except SnapshotterError as error:
                failure = failure or error
        if failure is None:
            raise StoreError(f"no layer on this node names file {name} any more")
        raise failure

    async def read(self, domain: str, name: str, offset: int, size: int) -> bytes | bytearray:
        """At most `size` verified bytes of a file; fewer only at its end. Raises as `Layer.read`."""
        holder = self._holder(domain, name)
        if holder is None:
            raise StoreError(f"no layer on this node names file {name} any more")
        layer, node = holder
        return await layer.read(node, offset, size)

    async def _bring(self, layer: Layer, node: int) -> bool:
        for _ in range(ATTEMPTS):
            if layer.index.chunk_count(node) == 1:
                whole = await layer.bring_chunks(node)
            else:
                whole = await trio.to_thread.run_sync(layer.settle, node)
            if not whole:
                return False
            identity = layer.index.identity(node)
            name = large_name(identity) if len(identity.chunks) > 1 else ""
            try:
                if await trio.to_thread.run_sync(
                    self._store.link_late, layer.domain, identity.digest, identity.size, name
                ):
                    return True
            except StoreError:
                return False
        return False

    def _holder(self, domain: str, name: str) -> tuple[Layer, int] | None:
        """One layer that names a file, with its node: the same one as long as it is attached."""
        key = domain, name
        found = self._known.get(key)
        layer = found[0]() if found else None
        if found is not None and layer is not None and not layer.released:
            self._known.move_to_end(key)
            return layer, found[1]
        holder = next(self._holders(domain, name), None)
        if holder is not None:
            self._known[key] = weakref.ref(holder[0]), holder[1]
            if len(self._known) > HOLDERS_KEPT:
                self._known.popitem(last=False)
        return holder

    def _holders(self, domain: str, name: str) -> Iterator[tuple[Layer, int]]:
        """Every layer of the domain that names a file, with its node."""
        try:
            digest = bytes.fromhex(name[:DIGEST_DIGITS])
        except ValueError:
            return
        large = len(name) > DIGEST_DIGITS
        # Both now: which layers are recent may change while one of them is waited for.
        recent = [self._shelf.get(number) for number in reversed(self._recent)]
        others = [layer for layer in self._shelf.all() if layer.number not in self._recent]
        for layer in itertools.chain(recent, others):
            if layer is None or layer.released:
                continue
            node = layer.index.find(digest) if layer.domain == domain else None
            if node is None or (layer.index.chunk_count(node) > 1) != large:
                continue
            if not large or large_name(layer.index.identity(node)) == name:
                yield layer, node
