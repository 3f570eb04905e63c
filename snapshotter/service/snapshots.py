"""containerd's rules for snapshots, as plain synchronous code over `state.db` and the snapshot directories.

Source: containerd-contract 1.2; the reference is containerd's metastore and overlay snapshotter. Nothing here opens a
path inside a lazy layer: what must be known of one comes from `LazyLayers.describe`.
"""

import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from snapshotter.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, Reason, StoreError
from snapshotter.request import LowerDirs, LowerLayer
from snapshotter.service.directories import SnapshotDirectories
from snapshotter.service.field_mask import masked_labels
from snapshotter.service.filters import Fields, compile_filters
from snapshotter.service.lazy import LazyLayers
from snapshotter.service.mounts import Mount, bind, is_extraction, kernel_has_index, overlay, room_for_lower
from snapshotter.store import state_snapshots as rows
from snapshotter.store.state import State
from snapshotter.store.state_snapshots import Kind, NewSnapshot, SnapshotRecord

LONGEST_ID = 9_999_999_999
"""What options may take is asked before a snapshot has its id: no id has more digits."""


@dataclass(frozen=True, slots=True)
class Fallback:
    """Why a snapshot that containerd wanted remote is an ordinary one, and of which image ("" if unknown)."""

    reason: Reason
    message: str
    reference: str


@dataclass(frozen=True, slots=True)
class _Base:
    """What a new snapshot stands on, worked out before the transaction that makes it.

    A committed snapshot's chain never changes, so only the parent itself has to be looked at again inside.
    """

    parent_id: int | None
    chain: tuple[LowerLayer, ...]
    lower: LowerDirs
    owner: tuple[int, int] | None


class Snapshots:
    """Active, view and committed snapshots in one space of keys; safe from any thread."""

    def __init__(
        self,
        state: State,
        directories: SnapshotDirectories,
        lazy: LazyLayers,
        clock_ns: Callable[[], int] = time.time_ns,
        *,
        index_off: bool | None = None,
    ) -> None:
        """`index_off` says whether overlays get the option of that name; None asks the kernel."""
        self._state = state
        self._directories = directories
        self._lazy = lazy
        self._clock_ns = clock_ns
        self._index_off = kernel_has_index() if index_off is None else index_off

    def prepare(
        self, key: str, parent: str, labels: Mapping[str, str], fallback: Fallback | None = None
    ) -> tuple[Mount, ...]:
        """Make an active snapshot and return its mounts; `fallback` is kept with it.

        Raises:
            InvalidArgument: no key, or the parent is not committed.
            NotFound: no such parent.
            AlreadyExists: the key is taken.
        """
        return self._create(key, parent, Kind.ACTIVE, labels, fallback)

    def view(self, key: str, parent: str, labels: Mapping[str, str]) -> tuple[Mount, ...]:
        """Make a read-only snapshot and return its mounts. Raises: as `prepare`."""
        return self._create(key, parent, Kind.VIEW, labels, None)

    def mounts(self, key: str) -> tuple[Mount, ...]:
        """The mounts of an active snapshot or a view.

        Raises:
            NotFound: no such snapshot.
            FailedPrecondition: it is committed.
        """
        with self._state.read() as db:
            found = _existing(db, key)
            chain = _lower_layers(rows.chain(db, found.parent_id))
        if found.kind is Kind.COMMITTED:
            raise FailedPrecondition(f"snapshot {key!r} is committed: only active snapshots and views have mounts")
        lower = self._lowerdirs(chain, extraction=is_extraction(key, found.labels))
        self._touch(chain)
        return self._mounts(found.id, found.kind, chain, lower)

    def commit(self, name: str, key: str, labels: Mapping[str, str], parent: str = "") -> None:
        """Turn an active snapshot into a committed one; `labels` replace its own.

        What it takes is measured when `usage` first asks: containerd holds its metadata lock during this call, and
        the content does not change any more. `parent` is for a snapshot that was prepared without one.

        Raises:
            InvalidArgument: no name, or another parent than the snapshot has.
            AlreadyExists: the name is taken; the active snapshot stays.
            NotFound: no such key, or no such parent.
            FailedPrecondition: the key is not active, or the parent not committed.
        """
        if not name:
            raise InvalidArgument("Commit without a name for the committed snapshot")
        with self._state.write() as db:
            if rows.find(db, name) is not None:
                raise AlreadyExists(f"snapshot {name!r} already exists")
            found = _existing(db, key)
            if found.kind is not Kind.ACTIVE:
                raise FailedPrecondition(f"snapshot {key!r} is {found.kind.name.lower()}: only an active one commits")
            parent_id = found.parent_id if not parent else _rebased(db, found, parent)
            rows.commit(db, found.id, name, parent_id, self._clock_ns())
            rows.replace_labels(db, found.id, labels)

    def remove(self, key: str) -> None:
        """Forget a snapshot; `Cleanup` deletes what it leaves.

        Raises:
            NotFound: no such snapshot.
            FailedPrecondition: it has children.
        """
        with self._state.write() as db:
            found = _existing(db, key)
            child = rows.child_of(db, found.id)
            if child is not None:
                # The word "remove" is what containerd's own suite looks for.
                raise FailedPrecondition(f"cannot remove snapshot {key!r}: {child!r} and maybe more are built on it")
            rows.delete(db, found.id)

    def stat(self, key: str) -> SnapshotRecord:
        """The record of a snapshot.

        Raises:
            NotFound: no such snapshot.
        """
        with self._state.read() as db:
            return _existing(db, key)

    def update(self, name: str, labels: Mapping[str, str], paths: Sequence[str]) -> SnapshotRecord:
        """Change labels as `paths` say and return the new record.

        Raises:
            NotFound: no such snapshot.
            InvalidArgument: a path names something else than labels.
        """
        with self._state.write() as db:
            found = _existing(db, name)
            rows.replace_labels(db, found.id, masked_labels(found.labels, labels, paths))
            # Later than before even if the clock stands or went back: a change is always seen.
            rows.set_updated(db, found.id, max(self._clock_ns(), found.updated_ns + 1))
            return _existing(db, name)

    def walk(self, filters: Sequence[str]) -> list[SnapshotRecord]:
        """Every snapshot that one of the filters matches, all without any; no lock is held when this returns.

        Raises:
            InvalidArgument: a filter does not follow the grammar.
        """
        matches = compile_filters(filters)
        with self._state.read() as db:
            everything = rows.everything(db)
        return [record for record in everything if matches(_fields(record))]

    def usage(self, key: str) -> tuple[int, int]:
        """(bytes, inodes) of a snapshot without its parents.

        Raises:
            NotFound: no such snapshot.
        """
        found = self.stat(key)
        if found.kind is Kind.VIEW:
            return 0, 0
        if found.size is not None and found.inodes is not None:
            return found.size, found.inodes
        size, inodes = self._directories.usage(found.id)
        if found.kind is Kind.COMMITTED:
            # Only saves the next measurement: a disk that takes nothing is no reason not to answer.
            with suppress(StoreError), self._state.write() as db:
                rows.set_usage(db, found.id, size, inodes)
        return size, inodes

    def check_parent(self, parent: str) -> int | None:
        """The id of a parent on which a snapshot may be built; None for no parent. Raises: as `prepare`."""
        with self._state.read() as db:
            return _parent_id(db, parent)

    def _create(
        self, key: str, parent: str, kind: Kind, labels: Mapping[str, str], fallback: Fallback | None
    ) -> tuple[Mount, ...]:
        if not key:
            raise InvalidArgument("a snapshot needs a key")
        base = self._base(key, parent, labels)
        new = NewSnapshot(
            key=key,
            parent_id=base.parent_id,
            kind=kind,
            created_ns=self._clock_ns(),
            labels=labels,
            not_lazy=fallback.reason if fallback else None,
            not_lazy_message=fallback.message if fallback else None,
            reference=fallback.reference if fallback else None,
        )
        snapshot_id = self._insert(new, base, parent)
        self._touch(base.chain)
        return self._mounts(snapshot_id, kind, base.chain, base.lower)

    def _base(self, key: str, parent: str, labels: Mapping[str, str]) -> _Base:
        with self._state.read() as db:
            parent_id = _parent_id(db, parent)
            if rows.find(db, key) is not None:
                raise AlreadyExists(f"snapshot {key!r} already exists")
            chain = _lower_layers(rows.chain(db, parent_id))
        lower = self._lowerdirs(chain, extraction=is_extraction(key, labels))
        return _Base(parent_id, chain, lower, self._owner(chain[0]) if chain else None)

    def _insert(self, new: NewSnapshot, base: _Base, parent: str) -> int:
        with self._state.write() as db:
            if _parent_id(db, parent) != base.parent_id:
                raise NotFound(f"parent snapshot {parent!r} was removed meanwhile")
            if rows.find(db, new.key) is not None:
                raise AlreadyExists(f"snapshot {new.key!r} already exists")
            snapshot_id = rows.insert(db, new)
            # Inside the transaction, so that a tidying Cleanup sees either neither row nor directory, or both.
            self._directories.create(snapshot_id, with_work=new.kind is Kind.ACTIVE, owner=base.owner)
        return snapshot_id

    def _owner(self, parent: LowerLayer) -> tuple[int, int]:
        if parent.layer_number is None:
            return self._directories.owner(parent.snapshot_id)
        layer = self._lazy.describe(parent.layer_number)
        return layer.root_uid, layer.root_gid

    def _lowerdirs(self, chain: Sequence[LowerLayer], *, extraction: bool) -> LowerDirs:
        for lower in chain:
            if lower.layer_number is None and not self._directories.exists(lower.snapshot_id):
                raise StoreError(
                    f"{self._directories.fs(lower.snapshot_id)} is missing: the file system lost it; "
                    "remove the image and pull it again"
                )
        if not chain:
            return LowerDirs(())
        room = room_for_lower(upper=self._directories.fs(LONGEST_ID), work=self._directories.work(LONGEST_ID))
        return self._lazy.lowerdirs(chain, extraction=extraction, room=room)

    def _touch(self, chain: Sequence[LowerLayer]) -> None:
        numbers = [lower.layer_number for lower in chain if lower.layer_number is not None]
        if numbers:
            self._lazy.touch(numbers)

    def _mounts(self, snapshot_id: int, kind: Kind, chain: Sequence[LowerLayer], lower: LowerDirs) -> tuple[Mount, ...]:
        active = kind is Kind.ACTIVE
        if not chain:
            return (bind(str(self._directories.fs(snapshot_id)), writable=active),)
        # Equal layers of a chain are named once, so one can be left of many: an overlay wants two.
        if not active and (len(chain) == 1 or len(lower.paths) == 1):
            return (self._view_of_one(chain[0]),)
        upper = self._directories.fs(snapshot_id) if active else None
        work = self._directories.work(snapshot_id) if active else None
        return (overlay(lower, upper=upper, work=work, index_off=self._index_off),)

    def _view_of_one(self, lower: LowerLayer) -> Mount:
        if lower.layer_number is None:
            return bind(str(self._directories.fs(lower.snapshot_id)), writable=False)
        return Mount(*self._lazy.view_mount(lower))


def _existing(db: sqlite3.Connection, key: str) -> SnapshotRecord:
    found = rows.find(db, key)
    if found is None:
        raise NotFound(f"snapshot {key!r} does not exist")
    return found


def _parent_id(db: sqlite3.Connection, parent: str) -> int | None:
    if not parent:
        return None
    found = rows.find(db, parent)
    if found is None:
        raise NotFound(f"parent snapshot {parent!r} does not exist")
    if found.kind is not Kind.COMMITTED:
        raise InvalidArgument(f"parent snapshot {parent!r} is {found.kind.name.lower()}, not committed")
    return found.id


def _rebased(db: sqlite3.Connection, found: SnapshotRecord, parent: str) -> int:
    """The id of the parent that a Commit names for an active snapshot."""
    if found.parent and found.parent != parent:
        raise InvalidArgument(f"snapshot {found.key!r} has parent {found.parent!r}, not {parent!r}")
    base = rows.find(db, parent)
    if base is None:
        raise NotFound(f"parent snapshot {parent!r} does not exist")
    if base.kind is not Kind.COMMITTED:
        raise FailedPrecondition(f"parent snapshot {parent!r} is {base.kind.name.lower()}, not committed")
    return base.id


def _lower_layers(chain: Sequence[rows.ChainLink]) -> tuple[LowerLayer, ...]:
    return tuple(LowerLayer(link.id, link.layer_number) for link in chain)


def _fields(record: SnapshotRecord) -> Fields:
    def field(path: Sequence[str]) -> str | None:
        if path[0] == "labels":
            return record.labels.get(".".join(path[1:]))
        if len(path) > 1:
            return None
        return {"name": record.key, "parent": record.parent, "kind": record.kind.name.lower()}.get(path[0])

    return field
