"""Random lives of a partial file: chunks in any order, kills, power losses, removals; what is read is always right."""

import os
import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from snapshotter.errors import IntegrityError
from snapshotter.store.identity import StoredIdentity
from snapshotter.store.objects import ObjectStore
from tests.store.content import (
    DOMAIN,
    bytes_of,
    content,
    du,
    identity_of,
    killed,
    object_path,
    part,
    put,
    sha256,
    spoil,
)

MEMORY = "/dev/shm"
CHUNK = 512
DATA = bytes_of(CHUNK * 3, 1) + bytes(CHUNK) + bytes_of(CHUNK * 2 + 100, 2)
FILE = identity_of(DATA, CHUNK)
LIE = FILE._replace(digest=sha256(b"another file"))
COUNT = len(FILE.chunks)
ORDINALS = st.integers(min_value=0, max_value=COUNT - 1)
FILES = st.sampled_from([FILE, LIE])


class PartialFileLife(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        # In memory: every step of these lives asks the file system to sync, and a disk shared with others takes its time.
        self.root = Path(tempfile.mkdtemp(dir=MEMORY if os.path.isdir(MEMORY) else None))
        self.boot = 1
        self.stack = ExitStack()
        self.store: ObjectStore = self.stack.enter_context(killed(self.root))
        self.there: dict[StoredIdentity, set[int]] = {FILE: set(), LIE: set()}
        self.synced: dict[StoredIdentity, set[int]] = {FILE: set(), LIE: set()}

    def teardown(self) -> None:
        self.stack.close()
        shutil.rmtree(self.root)

    def reopen(self) -> None:
        self.stack.close()
        self.store = self.stack.enter_context(killed(self.root, f"boot {self.boot}"))

    def is_object(self, identity: StoredIdentity) -> bool:
        return self.store.has(DOMAIN, identity.digest, identity.size)

    def found(self, identity: StoredIdentity) -> set[int]:
        if self.is_object(identity):
            return set(range(COUNT))
        partial = self.store.partial(DOMAIN, identity)
        return set() if partial is None else set(range(COUNT)) - set(partial.missing())

    @rule(identity=FILES, ordinal=ORDINALS)
    def write_chunk(self, identity: StoredIdentity, ordinal: int) -> None:
        put(self.store, DATA, identity, ordinal)
        self.there[identity].add(ordinal)

    @rule(identity=FILES)
    def mark_zeros(self, identity: StoredIdentity) -> None:
        self.store.mark_zeros(DOMAIN, identity, 3)
        self.there[identity].add(3)

    @rule(identity=FILES, ordinal=ORDINALS, byte=st.integers(min_value=0, max_value=99))
    def write_flipped_chunk(self, identity: StoredIdentity, ordinal: int, byte: int) -> None:
        data = bytearray(part(DATA, identity, ordinal))
        data[byte] ^= 1
        with self.store.writer(DOMAIN, identity, ordinal) as writer:
            writer.write(bytes(data[:50]))
            writer.write(memoryview(data)[50:])
            with pytest.raises(IntegrityError):
                writer.commit()

    @rule(identity=FILES, ordinal=ORDINALS)
    def break_off(self, identity: StoredIdentity, ordinal: int) -> None:
        with self.store.writer(DOMAIN, identity, ordinal) as writer:
            writer.write(part(DATA, identity, ordinal)[:60])

    @rule()
    def sync(self) -> None:
        self.store.sync()
        self.synced = {identity: set(there) for identity, there in self.there.items()}

    @rule()
    def kill(self) -> None:
        self.reopen()

    @rule(damage=st.lists(st.tuples(FILES, ORDINALS), max_size=3), torn=st.integers(min_value=0, max_value=40))
    def lose_power(self, damage: list[tuple[StoredIdentity, int]], torn: int) -> None:
        """Chunks that no sync covered may be torn, and the map may have lost its end if nothing of it was synced."""
        for identity, ordinal in damage:
            path = object_path(self.root, identity.digest)
            if ordinal in self.there[identity] - self.synced[identity]:
                if not path.exists():
                    path = self.data_of(identity)
                spoil(path, identity.chunks[ordinal][0])
        for identity in (FILE, LIE):
            if self.there[identity] and not self.synced[identity] and not self.is_object(identity):
                path = self.data_of(identity).with_suffix(".map")
                path.write_bytes(path.read_bytes()[: -torn or None])
        self.boot += 1
        self.reopen()
        for identity in (FILE, LIE):
            if not self.is_object(identity):
                self.store.prove(DOMAIN, identity.digest, identity.size)
            found = self.found(identity)
            assert found <= self.there[identity]
            # An object is one file: damage in what came late takes all of it.
            if self.there[identity] != set(range(COUNT)):
                assert self.synced[identity] <= found
            self.there[identity] = found
            self.synced[identity] &= found

    @precondition(lambda self: any(self.there.values()))
    @rule(identity=FILES)
    def remove(self, identity: StoredIdentity) -> None:
        self.store.remove(DOMAIN, identity.digest)
        self.there[identity] = set()
        self.synced[identity] = set()

    def data_of(self, identity: StoredIdentity) -> Path:
        partial = self.store.partial(DOMAIN, identity)
        assert partial is not None
        return self.root / "partial" / DOMAIN / f"{partial.name}.data"

    @invariant()
    def everything_on_record_reads_right_and_nothing_else(self) -> None:
        for identity in (FILE, LIE):
            assert self.found(identity) == self.there[identity]
            partial = self.store.partial(DOMAIN, identity)
            for ordinal, (offset, size, _) in enumerate(identity.chunks):
                if partial is not None:
                    expected = part(DATA, identity, ordinal) if ordinal in self.there[identity] else None
                    assert partial.read(ordinal, offset, size) == expected

    @invariant()
    def only_the_honest_file_becomes_an_object(self) -> None:
        assert not self.is_object(LIE)
        if self.there[FILE] == set(range(COUNT)):
            assert content(self.store, FILE) == DATA

    @invariant()
    def accounting_agrees_with_the_disk(self) -> None:
        assert self.store.usage().used == du(self.root)


TestPartialFileLife = PartialFileLife.TestCase
