"""Compressed bytes of a blob range in, verified chunks in the store out.

Runs in worker threads and sees bytes, an index and a store; it never waits for the network. Bytes come in blob order
and in pieces of any size. Members that are already in the store are passed over without inflating them.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from snapshotter.errors import FormatError, IntegrityError, SnapshotterError, StoreError, StoreFull
from snapshotter.format.index import Chunk, FileIdentity, Index, Member
from snapshotter.format.members import MemberDecoder
from snapshotter.store.objects import ObjectStore
from snapshotter.store.writer import ChunkWriter

ChunkKey: TypeAlias = tuple[int, int]
"""(node, ordinal): one chunk of one file of one layer."""

MEMORY_CHUNK_MAX = 64 << 20
"""A chunk larger than this is not served from memory when the disk is full."""

IDENTITIES_KEPT = 64
"""Identities a sink remembers: a large file's chunks lie in members that follow each other."""


@dataclass(frozen=True, slots=True)
class Landed:
    """A member has passed: its chunks are stored, or `error` says why not.

    `memory` holds the chunks if the disk cannot. `whole` names files whose last chunk this was, and whose check as a
    whole needs more reading than a reader of the chunk should wait for: `ObjectStore.finish` does it.
    """

    member: int
    error: SnapshotterError | None
    memory: dict[ChunkKey, bytes]
    whole: tuple[FileIdentity, ...]


class MemoryWriter:
    """Stands in for the store's chunk writer while the disk takes nothing: the same checks, kept in memory."""

    def __init__(self, chunk: Chunk) -> None:
        if chunk.size > MEMORY_CHUNK_MAX:
            raise StoreFull(
                f"the disk takes no more data and a chunk of {chunk.size} bytes is too large to be served from memory; "
                "free some space"
            )
        self._chunk = chunk
        self._parts: list[bytes] = []
        self.data = b""

    def write(self, data: bytes | memoryview) -> None:
        """Take the next bytes of the chunk."""
        self._parts.append(bytes(data))

    def commit(self) -> bool:
        """Check size and digest; `data` is the chunk afterwards. False: nothing is left to do. Raises IntegrityError."""
        self.data = b"".join(self._parts)
        if len(self.data) != self._chunk.size:
            raise IntegrityError(f"a chunk inflates to {len(self.data)} bytes, its TOC says {self._chunk.size}")
        if self._chunk.digest and hashlib.sha256(self.data).digest() != self._chunk.digest:
            raise IntegrityError(f"a chunk's bytes do not have the digest {self._chunk.digest.hex()} of its TOC entry")
        return False

    def abort(self) -> None:
        """Forget what came."""
        self._parts.clear()


@dataclass(slots=True)
class _Open:
    chunk: Chunk
    writer: ChunkWriter | MemoryWriter


class _MemberSink:
    """One member: inflates it as far as its chunks reach and hands each chunk its bytes."""

    def __init__(self, member: Member, chunks: Sequence[Chunk], destination: "RangeSink") -> None:
        self.member = member
        self._destination = destination
        self._waiting = [chunk for chunk in chunks if not destination.stored(chunk)]
        self._active: list[_Open] = []
        self._decoder = MemberDecoder(destination.index.codec) if self._waiting else None
        self._position = 0
        self.memory: dict[ChunkKey, bytes] = {}
        self.whole: list[FileIdentity] = []

    @property
    def done(self) -> bool:
        return not self._waiting and not self._active

    def feed(self, data: bytes | memoryview) -> None:
        """Inflate `data`; chunks that end in it are committed."""
        if self.done or self._decoder is None:
            return
        for piece in self._decoder.feed(bytes(data)):
            self._take(piece)
            if self.done:
                return

    def finish(self) -> None:
        """The member's bytes have all come. Raises FormatError if chunks are still short."""
        if not self.done:
            missing = self._active[0].chunk if self._active else self._waiting[0]
            raise FormatError(
                f"the member at blob offset {self.member.blob_offset} inflates to {self._position} bytes, "
                f"a chunk in it ends at {missing.inner_offset + missing.size}"
            )

    def abort(self) -> None:
        """Drop what is half written."""
        for opened in self._active:
            opened.writer.abort()
        self._active.clear()
        self._waiting.clear()

    def _take(self, piece: bytes) -> None:
        end = self._position + len(piece)
        while self._waiting and self._waiting[0].inner_offset < end:
            chunk = self._waiting.pop(0)
            self._active.append(_Open(chunk, self._destination.writer(chunk)))
        view = memoryview(piece)
        for opened in tuple(self._active):
            chunk = opened.chunk
            start = max(chunk.inner_offset - self._position, 0)
            stop = min(chunk.inner_offset + chunk.size - self._position, len(piece))
            opened.writer.write(view[start:stop])
            if chunk.inner_offset + chunk.size <= end:
                last = opened.writer.commit()
                self._active.remove(opened)
                if last:
                    self.whole.append(self._destination.identity(chunk.node))
                if isinstance(opened.writer, MemoryWriter):
                    self.memory[chunk.node, chunk.ordinal] = opened.writer.data
        self._position = end


class RangeSink:
    """Takes the bytes of one blob range and lands the members that lie in it, in blob order.

    `to_memory` keeps chunks in memory instead of the store, for reads while the disk is full.
    """

    def __init__(
        self, index: Index, store: ObjectStore, domain: str, members: Sequence[int], *, to_memory: bool = False
    ) -> None:
        self.index = index
        self._store = store
        self._domain = domain
        self._to_memory = to_memory
        self._members = [index.member(number) for number in members]
        self._position = self._members[0].blob_offset
        self._current: _MemberSink | None = None
        self._identities: dict[int, FileIdentity] = {}

    def feed(self, data: bytes) -> list[Landed]:
        """Take the next bytes of the range; returns the members that are complete with them. Raises nothing."""
        landed: list[Landed] = []
        view = memoryview(data)
        while view and self._members:
            member = self._members[0]
            if self._position < member.blob_offset:
                skipped = min(member.blob_offset - self._position, len(view))
                self._position += skipped
                view = view[skipped:]
                continue
            part = view[: member.blob_end - self._position]
            view = view[len(part) :]
            self._position += len(part)
            error = self._feed_member(member, part)
            if error is not None or self._position == member.blob_end:
                landed.append(self._land(member, error))
        return landed

    def abort(self) -> None:
        """The range breaks off: drop what is half written."""
        if self._current is not None:
            self._current.abort()
            self._current = None

    def stored(self, chunk: Chunk) -> bool:
        """Whether a chunk needs no more work."""
        if self._to_memory:
            return False
        identity = self.identity(chunk.node)
        if self._store.prove(self._domain, identity.digest, identity.size):
            return True
        if len(identity.chunks) == 1:
            return False
        partial = self._store.partial(self._domain, identity)
        return partial is not None and partial.present(chunk.ordinal)

    def writer(self, chunk: Chunk) -> ChunkWriter | MemoryWriter:
        """Where a chunk's bytes go."""
        if self._to_memory:
            return MemoryWriter(chunk)
        return self._store.writer(self._domain, self.identity(chunk.node), chunk.ordinal)

    def identity(self, node: int) -> FileIdentity:
        """A file's identity; its chunks of zeros, which no member brings, are noted in the store on the way."""
        identity = self._identities.get(node)
        if identity is None:
            identity = self._identities[node] = self.index.identity(node)
            if len(identity.chunks) > 1 and not self._to_memory:
                for chunk in self.index.chunks(node, 0, identity.size):
                    if chunk.member < 0:
                        self._store.mark_zeros(self._domain, identity, chunk.ordinal)
        return identity

    def _feed_member(self, member: Member, part: memoryview) -> SnapshotterError | None:
        try:
            if self._current is None:
                self._current = _MemberSink(member, self.index.member_chunks(member.number), self)
            self._current.feed(part)
            if self._position == member.blob_end:
                self._current.finish()
        except SnapshotterError as error:
            return error
        except OSError as error:
            return StoreError(f"writing to the store failed: {error}")
        return None

    def _land(self, member: Member, error: SnapshotterError | None) -> Landed:
        current, self._current = self._current, None
        self._members.pop(0)
        if len(self._identities) > IDENTITIES_KEPT:
            self._identities.clear()
        if current is None:
            return Landed(member.number, error, {}, ())
        if error is not None:
            current.abort()
        return Landed(member.number, error, current.memory, tuple(current.whole))
