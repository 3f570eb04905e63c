"""The daemon as the commands see it: fulfils `service.control.NodeView`. Called from gRPC threads."""

import os
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from snapshotter import __version__
from snapshotter.config import Config
from snapshotter.daemon import inventory
from snapshotter.daemon.activity import Activity
from snapshotter.daemon.custody import Custody
from snapshotter.daemon.ending import TORN_DOWN, Ending
from snapshotter.daemon.stranded import StrandedContainers
from snapshotter.daemon.teardown import teardown
from snapshotter.daemon.verification import Verification
from snapshotter.layer.housekeeping import unnamed
from snapshotter.layer.priority import Priority
from snapshotter.layer.room import LayerRoom
from snapshotter.plane.fuse.kernel import MOUNT_NAME
from snapshotter.plane.mounts import mounts_on
from snapshotter.service.bridge import Bridge
from snapshotter.service.control_views import (
    ActivityView,
    CachedFileView,
    CachedImageView,
    CacheUsageView,
    DomainView,
    LayerView,
    PruneStep,
    StatusView,
    TeardownView,
    VerifyStep,
    VersionView,
)
from snapshotter.store import state_snapshots
from snapshotter.store.objects import ObjectStore
from snapshotter.store.state import State

PRUNE_STEP = 64 << 20
"""Bytes deleted between two reports of progress."""

PRUNE_TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class Identity:
    """What does not change while the daemon runs."""

    plane: str
    plane_reason: str
    session: int
    started_at_ns: int
    take_overs: int = 0
    """How many daemons have taken the FUSE connection over, this one included."""


class Node:
    """Answers from what the daemon's parts know."""

    def __init__(
        self,
        config: Config,
        identity: Identity,
        state: State,
        store: ObjectStore,
        room: LayerRoom,
        bridge: Bridge,
        ending: Ending,
        plane_failures: Callable[[], Mapping[int, str]],
        activity: Activity,
        credential_problems: Callable[[], Mapping[str, str]],
        custody: Custody,
        stranded: StrandedContainers,
    ) -> None:
        """`plane_failures` are layers by number that the plane serves another way, and why; `credential_problems` by server."""
        self._config = config
        self.identity = identity
        self._state = state
        self._store = store
        self._room = room
        self._bridge = bridge
        self._ending = ending
        self._plane_failures = plane_failures
        self._activity = activity
        self._credential_problems = credential_problems
        self._custody = custody
        self._stranded = stranded
        self.lasting_problems: list[str] = []
        """Sentences about what went wrong at the start, shown until the end."""

    def version(self) -> VersionView:
        """Which program this is."""
        return VersionView(__version__, platform.python_version(), platform.release())

    def status(self) -> StatusView:
        """How the daemon is."""
        with self._state.read() as db:
            snapshots = len(state_snapshots.identifiers(db))
        counters = self._room.counters
        return StatusView(
            version=__version__,
            pid=os.getpid(),
            started_at_ns=self.identity.started_at_ns,
            plane=self.identity.plane,
            plane_reason=self.identity.plane_reason,
            root=str(self._config.root),
            run_dir=str(self._config.run_dir),
            address=str(self._config.socket),
            mountpoint=str(self._config.run_dir / "fuse"),
            session=self.identity.session,
            snapshots=snapshots,
            layers_lazy=len(self._room.shelf.all()),
            layers_failed=len(self._room.shelf.broken()),
            fetched_demand=counters.fetched[Priority.DEMAND],
            fetched_prefetch=counters.fetched[Priority.PREFETCH],
            fetched_background=counters.fetched[Priority.BACKGROUND],
            integrity_failures=counters.verification_failures,
            read_errors=counters.read_errors,
            cache_used=self._store.usage().used,
            cache_quota=self._config.cache.quota,
            cache_free=self._free()[0],
            fuse_requests=dict(self._activity.fuse_requests),
            problems=tuple(self.problems()),
            take_overs=self.identity.take_overs,
            keeper_pid=self._custody.keeper_pid,
            containers_to_restart=tuple(str(one) for one in self._stranded.present()),
        )

    def _free(self) -> tuple[int, int]:
        """Bytes free for the daemon, and in all, on the file system of root."""
        status = os.statvfs(self._config.root)
        return status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize

    def problems(self) -> Iterator[str]:
        """What an admin should look at, a sentence each."""
        yield from self.lasting_problems
        yield from self._room.housekeeping.problems()
        if lost := ", ".join(sorted(str(one) for one in self._stranded.present())):
            yield (
                "containers stand on a FUSE connection that was lost, and read nothing but, on the erofs plane, files that are "
                f"whole in the cache; start them again: {lost}"
            )
        mount_point = self._config.run_dir / MOUNT_NAME
        if self._custody.device and self._custody.device not in {mount.device for mount in mounts_on(mount_point)[-1:]}:
            yield (
                f"somebody unmounted {mount_point}: running containers go on, new ones do not start; stop those that run, then "
                "restart the daemon"
            )
        if not self._custody.keeper_pid:
            yield "there is no keeper: if the daemon ended now, running containers would lose their layers"
        for number, why in sorted(self._room.shelf.broken().items()):
            yield f"layer {number} could not be mounted again: {why}; remove its image and pull it again"
        for number, why in sorted(self._plane_failures().items()):
            yield f"layer {number} is served through FUSE, slower than it could be: {why}"
        free, _ = self._free()
        if free < self._config.cache.min_free:
            yield (
                f"only {free} bytes are free below {self._config.root}, less than cache.min_free: content that is "
                "fetched cannot be kept"
            )
        for host, failure in sorted(self._room.counters.hosts.items()):
            if failure:
                yield f"registry {host} failed last: {failure}; what is not on this node cannot be read until it is back"
        yield from sorted(self._credential_problems().values())
        if self._room.counters.verification_failures:
            yield "a registry sent bytes with a wrong digest; they were not used, the log names the layers"

    def layers(self) -> Iterable[LayerView]:
        """Every layer of every image."""
        return inventory.layer_rows(self._state, self._room.shelf, self._store)

    def cache_usage(self) -> CacheUsageView:
        """The cache in sums."""
        usage = self._store.usage()
        limits = self._config.cache
        free, capacity = self._free()
        return CacheUsageView(
            domains=tuple(
                DomainView(name, one.objects, one.object_bytes, one.partials, one.partial_bytes)
                for name, one in usage.domains.items()
            ),
            deleted_open=usage.deleted_open + usage.held,
            unreferenced=sum(stored.disk_bytes for stored in unnamed(self._store, self._room.shelf.all())),
            used=usage.used + usage.held,
            quota=limits.quota,
            high_water=int(limits.quota * limits.high_water),
            low_water=int(limits.quota * limits.low_water),
            free=free,
            min_free=limits.min_free,
            capacity=capacity,
        )

    def cache_files(self) -> Iterable[CachedFileView]:
        """Every file of the cache."""
        return inventory.cached_files(self._store, self._room.shelf.all())

    def cache_images(self) -> Iterable[CachedImageView]:
        """What each image has in the cache."""
        return inventory.cached_images(self._state, self._room.shelf, self._store)

    def activity(self) -> ActivityView:
        """What goes on at this moment."""
        return self._activity.view(
            plane=self.identity.plane,
            started_at_ns=self.identity.started_at_ns,
            cache_used=self._store.usage().used,
            cache_quota=self._config.cache.quota,
        )

    def prune(self, *, include_referenced: bool, keep: int) -> Iterator[PruneStep]:
        """Delete what no layer names, or everything in the order of eviction, until at most `keep` bytes are left."""
        total = max(0, self._store.usage().used - keep)
        steps = self._prune_everything(total) if include_referenced else self._prune_unnamed(total)
        files = freed = 0
        for step_files, step_bytes in steps:
            files, freed = files + step_files, freed + step_bytes
            yield PruneStep(files, freed, max(total, freed))
        yield PruneStep(files, freed, freed, done=True)

    def _prune_unnamed(self, total: int) -> Iterator[tuple[int, int]]:
        files = freed = 0
        left = total
        for stored in unnamed(self._store, self._room.shelf.all()):
            if left <= 0:
                break
            # One at a time: what somebody reads or writes at this moment stays.
            removed = self._store.evict([(stored.domain, stored.digest, stored.size)], 1)
            files, freed, left = files + removed.objects + removed.partials, freed + removed.bytes, left - removed.bytes
            if freed >= PRUNE_STEP:
                yield files, freed
                files = freed = 0
        yield files, freed

    def _prune_everything(self, total: int) -> Iterator[tuple[int, int]]:
        left = total
        while left > 0:
            freed = self._bridge.call(self._room.housekeeping.free, min(left, PRUNE_STEP), timeout_s=PRUNE_TIMEOUT_S)
            if not freed.bytes:
                return
            left -= freed.bytes
            yield freed.objects, freed.bytes

    def verify(self) -> Iterator[VerifyStep]:
        """Compare every file with its name; the store deletes those that differ."""
        return Verification(self._store).steps()

    def teardown(self, *, force: bool) -> TeardownView:
        """Unmount everything, unless it is in use and not `force`; once done, the daemon ends."""
        self._ending.unmounting = True
        try:
            result = teardown(self._config.run_dir, self._config.root, force=force)
        except BaseException:
            self._ending.unmounting = False
            raise
        self._ending.unmounting = result.done
        if result.done:
            self._ending.end_from_thread(TORN_DOWN)
        return result
