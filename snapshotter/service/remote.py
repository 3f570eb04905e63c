"""Prepare with a target: commit a lazy layer under the name containerd will look for, or fall back.

containerd takes two answers as success: AlreadyExists, if List then shows a committed snapshot with the label
`containerd.io/snapshot.ref` and exactly the backend parent; or writable mounts with nothing in them, into which it
unpacks. Everything else fails the pull, so every obstacle ends in the second answer.
Source: containerd-contract 0 and 3.1.
"""

import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from snapshotter.errors import AlreadyExists, NotFound, NotLazy, Reason, SnapshotterError, StoreError, reason_of
from snapshotter.request import AttachedLayer, LayerRequest
from snapshotter.service.cleanup import LayerGuard
from snapshotter.service.labels import REMOTE, REMOTE_VALUE, SNAPSHOT_REF, layer_request, said_reference
from snapshotter.service.lazy import LazyLayers
from snapshotter.service.mounts import Mount
from snapshotter.service.pulls import LayerOutcome, Outcome, PullLog
from snapshotter.service.snapshots import Fallback, Snapshots
from snapshotter.store import state_snapshots as rows
from snapshotter.store.state import LayerRecord, State
from snapshotter.store.state_snapshots import Kind, NewSnapshot, SnapshotRecord

_log = logging.getLogger(__name__)

# What an image or the configuration says, on every node and at every pull: nothing that somebody must look into.
_EXPECTED = frozenset({Reason.NOT_LAZY_FORMAT, Reason.MEDIA_TYPE, Reason.DENIED})


@dataclass(frozen=True, slots=True)
class RemoteRequest:
    """A Prepare that names a target. `remaining_s` is what its deadline leaves; None without one."""

    namespace: str
    key: str
    parent: str
    labels: Mapping[str, str]
    remaining_s: float | None = None

    @property
    def target(self) -> str:
        """The name containerd will look for, by label."""
        return self.labels[SNAPSHOT_REF]


class RemotePrepare:
    """The remote half of Prepare; safe from any thread."""

    def __init__(
        self,
        snapshots: Snapshots,
        state: State,
        lazy: LazyLayers,
        guard: LayerGuard,
        pulls: PullLog,
        *,
        max_waiting: int,
        timeout_s: float,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """At most `max_waiting` calls wait for the network, each for `timeout_s` at most."""
        self._snapshots = snapshots
        self._state = state
        self._lazy = lazy
        self._guard = guard
        self._pulls = pulls
        self._max_waiting = max_waiting
        self._waiting = threading.BoundedSemaphore(max_waiting)
        self._timeout_s = timeout_s
        self._clock_ns = clock_ns

    def prepare(self, request: RemoteRequest) -> tuple[Mount, ...]:
        """Make the target a lazy snapshot, or return the mounts of an ordinary one.

        Raises:
            AlreadyExists: the target is there, which is success; or, without a target, the key is taken.
            NotFound: no such parent.
            InvalidArgument: no key, or the parent is not committed.
        """
        parent_id = self._snapshots.check_parent(request.parent)
        layer: LayerRequest | None = None
        try:
            present = self._targets(request, parent_id)
            if present and all(target.layer_number is None for target in present):
                # Unpacked by containerd, which compared it with the image's own DiffID.
                self._note_present(request)
            else:
                layer = self._layer_request(request)
                self._make(request, layer, parent_id, present)
        except NotLazy as error:
            return self.fall_back(request, error.reason, str(error), layer)
        raise AlreadyExists(f"target snapshot {request.target!r} is there")

    def fall_back(
        self, request: RemoteRequest, reason: Reason, message: str, layer: LayerRequest | None = None
    ) -> tuple[Mount, ...]:
        """Make an ordinary snapshot, and keep and say why. Raises: as `prepare`."""
        reference = layer.reference if layer else said_reference(request.labels)
        made = self._snapshots.prepare(
            request.key, request.parent, request.labels, Fallback(reason, message, reference)
        )
        name = layer.layer_digest if layer else request.target
        level = logging.INFO if reason in _EXPECTED else logging.WARNING
        _log.log(level, "%s of %s is not lazy: %s: %s", name, reference or "an image without a name", reason, message)
        outcome = LayerOutcome(name, Outcome.ORDINARY, reason, message)
        if layer:
            self._pulls.note(layer, outcome)
        else:
            self._pulls.note_unknown(reference, outcome)
        return made

    def _layer_request(self, request: RemoteRequest) -> LayerRequest:
        timeout_s = self._timeout_s
        if request.remaining_s is not None:
            # Half of what is left: containerd needs the rest for the download that follows a fallback.
            timeout_s = min(timeout_s, max(request.remaining_s, 0.0) / 2)
        return replace(layer_request(request.namespace, request.labels), timeout_s=timeout_s)

    def _note_present(self, request: RemoteRequest) -> None:
        try:
            layer = layer_request(request.namespace, request.labels)
        except NotLazy:
            self._pulls.note_unknown(said_reference(request.labels), LayerOutcome(request.target, Outcome.PRESENT))
        else:
            self._pulls.note(layer, LayerOutcome(layer.layer_digest, Outcome.PRESENT))

    def _make(
        self, request: RemoteRequest, layer: LayerRequest, parent_id: int | None, present: Sequence[SnapshotRecord]
    ) -> None:
        """See to it that the target is there with this layer's content. Raises: NotLazy."""
        if present and all(self._known_to_be(layer, target) for target in present):
            outcome = Outcome.PRESENT
        else:
            # Waiting for a removal to end takes a thread just as waiting for the network does.
            with self._may_wait(), self._guard.wanted(layer.layer_digest):
                attached, record = self._attach(layer)
                outcome = self._name(request, attached, record, parent_id, layer.reference)
        self._pulls.note(layer, LayerOutcome(layer.layer_digest, outcome))

    def _attach(self, layer: LayerRequest) -> tuple[AttachedLayer, LayerRecord]:
        try:
            attached = self._lazy.attach(layer)
            return attached, self._state.layer(attached.number)
        except NotLazy:
            raise
        except (SnapshotterError, OSError) as error:
            raise NotLazy(reason_of(error), str(error) or type(error).__name__) from error

    @contextmanager
    def _may_wait(self) -> Iterator[None]:
        if not self._waiting.acquire(blocking=False):
            raise NotLazy(Reason.BUSY, f"{self._max_waiting} pulls wait for registries already (max_waiting_pulls)")
        try:
            yield
        finally:
            self._waiting.release()

    def _name(
        self,
        request: RemoteRequest,
        attached: AttachedLayer,
        record: LayerRecord,
        parent_id: int | None,
        reference: str,
    ) -> Outcome:
        """Commit the layer under a name of our own, unless somebody was faster; containerd finds it by its label."""
        with self._state.write() as db:
            if parent_id is not None and not rows.is_there(db, parent_id):
                raise NotFound(f"parent snapshot {request.parent!r} was removed meanwhile")
            present = rows.find_committed(db, SNAPSHOT_REF, request.target, parent_id)
            if present:
                if not all(self._same_content(record, target) for target in present):
                    raise NotLazy(
                        Reason.CONFLICT,
                        f"{request.target} exists with another layer or TOC than {record.layer_digest}: unpacked, so "
                        "that containerd checks the content",
                    )
                return Outcome.PRESENT
            rows.insert(
                db,
                NewSnapshot(
                    # Not the target's name: another namespace may hold other content under the same chain id.
                    key=f"{request.namespace}/lazy-{secrets.token_hex(8)}/{request.target}",
                    parent_id=parent_id,
                    kind=Kind.COMMITTED,
                    created_ns=self._clock_ns(),
                    labels={**request.labels, REMOTE: REMOTE_VALUE},
                    size=attached.size,
                    inodes=attached.inodes,
                    layer_number=attached.number,
                    reference=reference,
                ),
            )
        return Outcome.LAZY

    def _targets(self, request: RemoteRequest, parent_id: int | None) -> list[SnapshotRecord]:
        with self._state.read() as db:
            return rows.find_committed(db, SNAPSHOT_REF, request.target, parent_id)

    def _same_content(self, record: LayerRecord, target: SnapshotRecord) -> bool:
        """Whether an existing target may stand for this layer; containerd checked the ordinary ones itself."""
        if target.layer_number is None or target.layer_number == record.number:
            return True
        other = self._state.layer(target.layer_number)
        return (other.layer_digest, other.toc_digest, other.domain) == (
            record.layer_digest,
            record.toc_digest,
            record.domain,
        )

    def _known_to_be(self, layer: LayerRequest, target: SnapshotRecord) -> bool:
        """Whether an existing target is this layer of this very image by what is recorded, without asking a registry.

        The image must be one in whose manifest the layer was found, so that naming digests gives access to nothing.
        """
        if target.layer_number is None:
            return True
        try:
            record = self._state.layer(target.layer_number)
            self._lazy.describe(target.layer_number)
        except (NotFound, StoreError):
            return False  # removed meanwhile, or not brought back at the start: attaching it brings it back
        if (record.layer_digest, record.toc_digest) != (layer.layer_digest, layer.toc_digest):
            return False
        return any(
            source.reference == layer.reference and layer.manifest_digest in (None, source.manifest_digest)
            for source in self._state.sources(target.layer_number)
        )
