"""One attached layer: its index, where its blob lies, and reads of its files.

A read of a complete file is one `pread`. Else the chunks that the read touches are found once, here, and handed down.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import lru_cache
from typing import Protocol

import trio

from snapshotter.errors import FormatError, RegistryError, RegistryUnreachable, SnapshotterError, StoreError
from snapshotter.format.index import Chunk, FileIdentity, Index
from snapshotter.layer.counters import Counters
from snapshotter.layer.disk_reads import DiskReads
from snapshotter.layer.flights import Flight, Flights
from snapshotter.layer.origin import Origin
from snapshotter.layer.priority import Priority
from snapshotter.layer.sink import ChunkKey
from snapshotter.layer.sources import Source
from snapshotter.layer.waits import Waits
from snapshotter.store.objects import ObjectStore
from snapshotter.store.partial import PartialFile
from snapshotter.store.state import LayerRecord

log = logging.getLogger(__name__)

ATTEMPTS = 3
"""Between landing and reading an eviction may take a file away; so often it is fetched again."""

IDENTITIES_KEPT = 64
"""Files with several chunks whose list of chunks stays in memory."""


class Siblings(Protocol):
    """Other layers of the node, asked when this layer cannot deliver a file that they name too."""

    def naming(self, layer: "Layer", identity: FileIdentity) -> Iterator[tuple["Layer", int]]:
        """Layers of the same domain, `layer` left out, with their node of that very file, cut into the same chunks."""


class Layer:
    """Used on the trio thread; the index is read anywhere."""

    def __init__(
        self,
        record: LayerRecord,
        index: Index,
        sources: Sequence[Source],
        store: ObjectStore,
        flights: Flights,
        counters: Counters,
        siblings: Siblings,
        disk: DiskReads,
        waits: Waits,
    ) -> None:
        self.record = record
        self.number = record.number
        self.domain = record.domain
        self.index = index
        self.origin = Origin(record.number, record.layer_digest, record.domain, index, sources)
        self._store = store
        self._flights = flights
        self._counters = counters
        self._siblings = siblings
        self._disk = disk
        self._waits = waits
        self._identity = lru_cache(maxsize=IDENTITIES_KEPT)(index.identity)
        self.released = False

    async def read(self, node: int, offset: int, size: int) -> bytes | bytearray:
        """Return the bytes of a regular file from `offset`, `size` of them or as many as there are before its end.

        The buffer is this call's own. Every byte was verified before it was stored.

        Raises:
            RegistryError: the bytes are not on the node and cannot be had within `on_outage`.
            IntegrityError: every source delivers bytes that are not what the TOC promises.
            StoreError: the node's disk fails and the bytes do not fit into memory.
        """
        self._counters.reads += 1
        file_size = self.index.attributes(node).size
        size = min(size, file_size - offset)
        if size <= 0:
            return b""
        found = self._store.acquire(self.domain, self.index.digest(node), file_size)
        if found is not None:
            try:
                with found:
                    data = await self._disk.read(found.fd, offset, size)
                self._counters.read_from_cache += size
                return data
            except StoreError as error:
                await self._drop_unreadable(self.index.digest(node), error)
        try:
            return await self.read_chunks(node, offset, size)
        except (FormatError, RegistryError) as error:
            return await self._read_elsewhere(node, offset, size, error)
        except SnapshotterError:
            self._counters.read_errors += 1
            raise

    async def _read_elsewhere(self, node: int, offset: int, size: int, error: SnapshotterError) -> bytes | bytearray:
        """The same content from another layer that names it. Raises `error` if none can."""
        # The wait that `on_outage` allows was spent on this host: its other layers would spend it again, one by one.
        away = {self.origin.host} if isinstance(error, RegistryUnreachable) else set()
        for layer, other in self._siblings.naming(self, self._identity(node)):
            host = layer.origin.host
            if host in away:
                continue
            try:
                return await layer.read_chunks(other, offset, size)
            except RegistryUnreachable:
                away.add(host)
            except SnapshotterError:
                continue
        self._counters.read_errors += 1
        raise error

    async def read_chunks(self, node: int, offset: int, size: int) -> bytes | bytearray:
        """A range inside a file, from this layer's own sources only. Raises as `read` does."""
        chunks = self.index.chunks(node, offset, size)
        identity = self._identity(node)
        memory = self._flights.kept.find(self.number, chunks)
        if memory and not self._store.refuses(size):
            memory = {}  # the disk takes it again: fetched once more, and kept from then on
        for attempt in range(ATTEMPTS):
            ready = await self._assemble(identity, chunks, offset, size, memory)
            if ready is not None:
                if attempt:
                    self._counters.read_after_wait += size
                else:
                    self._counters.read_from_cache += size
                return ready
            if not await trio.to_thread.run_sync(self._store.prove, self.domain, identity.digest, identity.size):
                waiting = self._waits.read(self.domain, identity.digest, self.number, node)
                await self._fetch(identity, chunks, memory, waiting)
        ready = await self._assemble(identity, chunks, offset, size, memory)
        if ready is None:
            raise StoreError(
                f"layer {self.record.layer_digest}: a file left the cache {ATTEMPTS} times while it was read; "
                "give the cache more room"
            )
        self._counters.read_after_wait += size
        return ready

    async def bring_chunks(self, node: int) -> bool:
        """Have a whole file in the store, from this layer's own sources; False if the node's disk does not take it.

        For files of one chunk. Raises as `read` does.
        """
        identity = self._identity(node)
        chunks = self.index.chunks(node, 0, identity.size)
        offline = any(chunk.member < 0 for chunk in chunks)
        for _ in range(ATTEMPTS):
            if self._store.has(self.domain, identity.digest, identity.size):
                return True
            # Only where there is something to settle: a hop to a thread costs as much as all the rest of this.
            if (offline or self._store.unproven) and await trio.to_thread.run_sync(self.settle, node):
                return True
            memory: dict[ChunkKey, bytes] = {}
            if self._flights.kept.find(self.number, chunks) and self._store.refuses(identity.size):
                return False
            await self._fetch(identity, chunks, memory, nullcontext())
            if memory:
                return False
        return self._store.has(self.domain, identity.digest, identity.size)

    def settle(self, node: int) -> bool:
        """Whether a file is whole in the store, once what needs no network is done for it. Blocking.

        That is: taking the proof of an object that a power loss may have torn, noting chunks that are all zeros, and
        giving a large file the name by which an overlay finds it.
        """
        identity = self._identity(node)
        try:
            if not self._store.prove(self.domain, identity.digest, identity.size):
                for chunk in self.index.chunks(node, 0, identity.size):
                    if chunk.member < 0:
                        self._store.mark_zeros(self.domain, identity, chunk.ordinal)
            return self._store.name_large(self.domain, identity)
        except StoreError as error:
            log.info("file %s stays incomplete for now: %s", identity.digest.hex(), error)
            return False

    def prove_all(self) -> None:
        """Take the proof of every file that a power loss may have torn: what is good need not come again. Blocking."""
        if self._store.unproven:
            for digest, size, _ in self.index.digests():
                self._store.prove(self.domain, digest, size)

    def settle_all(self) -> None:
        """`settle` every file that a pass over the blob may leave unsettled: with chunks of zeros, or cut in chunks.

        A container that starts afterwards then finds them without asking anybody. Blocking.
        """
        zeros = set(self.index.nodes_with_zeros())
        for _, _, node in self.index.digests():
            if node in zeros or self.index.chunk_count(node) > 1:
                self.settle(node)

    async def _assemble(
        self, identity: FileIdentity, chunks: Sequence[Chunk], offset: int, size: int, memory: dict[ChunkKey, bytes]
    ) -> bytes | bytearray | None:
        """The read's bytes from object, partial file and memory; None if some are not on the node."""
        found = self._store.acquire(self.domain, identity.digest, identity.size)
        if found is not None:
            try:
                with found:
                    return await self._disk.read(found.fd, offset, size)
            except StoreError as error:
                await self._drop_unreadable(identity.digest, error)
        partial = self._store.partial(self.domain, identity) if len(identity.chunks) > 1 else None
        if not all(self._at_hand(chunk, partial, memory) for chunk in chunks):
            return None
        result = bytearray()
        for chunk in chunks:
            start = max(offset, chunk.file_offset) - chunk.file_offset
            stop = min(offset + size, chunk.file_offset + chunk.size) - chunk.file_offset
            kept = memory.get((chunk.node, chunk.ordinal))
            if chunk.member < 0:
                result += bytes(stop - start)
            elif kept is not None:
                result += kept[start:stop]
            elif partial is not None:
                with partial.borrow() as fd:
                    if fd is None:
                        return None
                    try:
                        result += await self._disk.read(fd, chunk.file_offset + start, stop - start)
                    except StoreError as error:
                        # Else it would be written to the same place, and read from there again.
                        self._store.health.refused(error)
                        log.warning("chunk %d of a large file is fetched again: %s", chunk.ordinal, error)
                        await trio.to_thread.run_sync(_forget_chunk, partial, chunk.ordinal)
                        return None
        return result

    async def _drop_unreadable(self, digest: bytes, error: StoreError) -> None:
        """The disk does not give an object back: the network can."""
        self._store.health.refused(error)
        log.warning("cached file %s is fetched again: %s", digest.hex(), error)
        await trio.to_thread.run_sync(self._store.drop_unreadable, self.domain, digest)

    @staticmethod
    def _at_hand(chunk: Chunk, partial: PartialFile | None, memory: dict[ChunkKey, bytes]) -> bool:
        return (
            chunk.member < 0
            or (chunk.node, chunk.ordinal) in memory
            or (partial is not None and partial.present(chunk.ordinal))
        )

    async def _fetch(
        self,
        identity: FileIdentity,
        chunks: Sequence[Chunk],
        memory: dict[ChunkKey, bytes],
        waiting: AbstractContextManager[None],
    ) -> None:
        """Wait for the members that hold the chunks, inside `waiting`, starting those that nobody fetches yet."""
        partial = self._store.partial(self.domain, identity) if len(identity.chunks) > 1 else None
        # Asked again: another reader's flight may have landed while this one waited to come here.
        missing = [
            chunk for chunk in chunks if not self._at_hand(chunk, partial, memory) and not self.chunk_stored(chunk)
        ]
        if not missing:
            return
        members = sorted({chunk.member for chunk in missing})
        self._flights.refuse_lost(self.origin, members)
        flights: list[Flight] = []
        for member in members:
            flight = self._flights.find(self.origin, member)
            flights.append(flight or self._flights.start(self.origin, self._window(member), Priority.DEMAND)[0])
        self._look_ahead(identity, chunks, partial)
        try:
            with waiting:
                for flight in flights:
                    try:
                        await flight.wait(Priority.DEMAND)
                    except SnapshotterError:
                        # A bulk stream that was joined may end for reasons of its own: the next attempt fetches by itself.
                        if flight.transfer.priority is Priority.DEMAND:
                            raise
                    memory.update(flight.memory)
        finally:
            self._counters.last_demand = trio.current_time()

    def _window(self, member: int) -> list[int]:
        """`member` and the neighbours behind it that are missing too, as far as the demand window reaches.

        Files of a package lie side by side and are read together: a few more of them cost less than a round trip each.
        """
        run = [member]
        if self._flights.is_refused(self.origin, member):
            return run  # the disk takes none of them, and in memory is room for what somebody waits for
        limit = self.index.member(member).blob_offset + self._flights.window(self.origin)
        for following in range(member + 1, self.index.member_count):
            if self.index.member(following).blob_end > limit:
                break
            if self._flights.find(self.origin, following) is not None or self.member_stored(following):
                break
            run.append(following)
        return run

    def _look_ahead(self, identity: FileIdentity, chunks: Sequence[Chunk], partial: PartialFile | None) -> None:
        """A file that is read in order gets its next chunk fetched before it is asked for."""
        first, last = chunks[0], chunks[-1]
        following = last.ordinal + 1
        if following >= len(identity.chunks) or (
            first.ordinal > 0 and (partial is None or not partial.present(first.ordinal - 1))
        ):
            return
        (chunk, *_) = self.index.chunks(last.node, identity.chunks[following][0], 1)
        if self._at_hand(chunk, partial, {}) or self._flights.find(self.origin, chunk.member) is not None:
            return
        if self._flights.is_refused(self.origin, chunk.member):
            return
        self._flights.start(self.origin, [chunk.member], Priority.PREFETCH)

    def member_stored(self, member: int) -> bool:
        """Whether every chunk of a member is on the node, verified."""
        return all(self.chunk_stored(chunk) for chunk in self.index.member_chunks(member))

    def chunk_stored(self, chunk: Chunk) -> bool:
        """Whether a chunk is on the node, verified."""
        size = self.index.attributes(chunk.node).size
        if self._store.has(self.domain, self.index.digest(chunk.node), size):
            return True
        if chunk.size == size:
            return False
        partial = self._store.partial(self.domain, self._identity(chunk.node))
        return partial is not None and partial.present(chunk.ordinal)


def _forget_chunk(partial: PartialFile, ordinal: int) -> None:
    # Should the map not be written either, the chunk is missing for this process all the same.
    with suppress(OSError):
        partial.forget([ordinal])
