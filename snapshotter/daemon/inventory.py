"""What is on this node, counted when somebody asks: layers by image, files of the cache and who names them."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import replace

from snapshotter.errors import NotFound
from snapshotter.format.index import Index
from snapshotter.layer.layer import Layer
from snapshotter.layer.shelf import Shelf
from snapshotter.service.control import CachedFileView, LayerState, LayerView
from snapshotter.store import state_snapshots
from snapshotter.store.objects import ObjectStore
from snapshotter.store.placement import ObjectInfo
from snapshotter.store.state import State
from snapshotter.store.state_snapshots import SnapshotRecord

_DIGEST_LABELS = ("containerd.io/snapshot/cri.layer-digest", "containerd.io/snapshot/remote/stargz.digest")

Present = Mapping[str, Mapping[bytes, int]]
"""Bytes that are here, by domain and raw digest."""


def present_content(store: ObjectStore) -> Present:
    """Return what the cache holds: one pass over its names, where asking for each file of each layer would be many."""
    present: dict[str, dict[bytes, int]] = {}
    for domain in store.domains():
        here = present[domain] = {}
        for partial in store.iterate_partials(domain):
            here[partial.digest] = max(here.get(partial.digest, 0), min(partial.disk_bytes, partial.size))
        for stored in store.iterate(domain):
            here[stored.digest] = stored.size
    return present


def share_here(index: Index, here: Mapping[bytes, int]) -> tuple[int, int]:
    """Return (bytes of a layer's files, bytes of them that are here); equal files count once."""
    size = present = 0
    for digest, file_size, _ in index.digests():
        size += file_size
        present += min(here.get(digest, 0), file_size)
    return size, present


def layer_rows(state: State, shelf: Shelf, store: ObjectStore) -> list[LayerView]:
    """Return every layer that a snapshot stands for, lazy or fallen back, by image and from the bottom up."""
    with state.read() as db:
        snapshots = state_snapshots.everything(db)
    present = present_content(store)
    broken = shelf.broken()
    lazy: dict[int, LayerView] = {}
    by_image: dict[str, dict[tuple[str, int], LayerView]] = defaultdict(dict)
    for snapshot in snapshots:
        number = snapshot.layer_number
        if number is not None:
            try:
                if number not in lazy:
                    lazy[number] = _lazy_row(state, shelf, number, broken.get(number, ""), present)
            except NotFound:
                continue  # removed since the snapshots were read
            row = lazy[number]
            images = {source.reference for source in state.sources(number)} or {snapshot.reference or ""}
        elif snapshot.not_lazy is not None:
            row = _ordinary_row(snapshot)
            images = {row.image}
        else:
            continue
        for image in images:
            by_image[image].setdefault((row.digest, row.number), replace(row, image=image))
    return [row for image in sorted(by_image) for row in by_image[image].values()]


def _lazy_row(state: State, shelf: Shelf, number: int, why_broken: str, present: Present) -> LayerView:
    record = state.layer(number)
    layer = shelf.get(number)
    size = here = 0
    layer_state = LayerState.FAILED
    if layer is not None:
        size, here = share_here(layer.index, present.get(layer.domain, {}))
        layer_state = LayerState.COMPLETE if here == size else LayerState.LAZY
    return LayerView(
        image="",
        digest=record.layer_digest,
        state=layer_state,
        toc_digest=record.toc_digest,
        detail=why_broken,
        size=size,
        present=here,
        blob_size=record.blob_size,
        number=number,
    )


def _ordinary_row(snapshot: SnapshotRecord) -> LayerView:
    digest = next(filter(None, map(snapshot.labels.get, _DIGEST_LABELS)), snapshot.key)
    return LayerView(
        image=snapshot.reference or "",
        digest=digest,
        state=LayerState.ORDINARY,
        reason=str(snapshot.not_lazy),
        detail=snapshot.not_lazy_message or "",
    )


def cached_files(store: ObjectStore, layers: Iterable[Layer]) -> Iterator[CachedFileView]:
    """Yield every object and partial file, with the last use of the layers that name it."""
    layers = list(layers)
    for domain in store.domains():
        files = list(_stored(store, domain))
        uses = _last_uses(layers, domain, {stored.digest for _, stored in files})
        for complete, stored in files:
            yield CachedFileView(
                domain=domain,
                name=f"sha256:{stored.digest.hex()}",
                size=stored.size,
                present=stored.size if complete else min(stored.disk_bytes, stored.size),
                complete=complete,
                referenced=stored.digest in uses,
                last_use_ns=uses.get(stored.digest, 0),
            )


def _stored(store: ObjectStore, domain: str) -> Iterator[tuple[bool, ObjectInfo]]:
    """Yield (complete, file) for every object and partial file of a domain."""
    for stored in store.iterate(domain):
        yield True, stored
    for stored in store.iterate_partials(domain):
        yield False, stored


def _last_uses(layers: Iterable[Layer], domain: str, digests: AbstractSet[bytes]) -> dict[bytes, int]:
    """Return when the layers of a domain that name these digests were last used.

    One pass over each index: looking every file up in every index would be a hundred times the work.
    """
    uses: dict[bytes, int] = {}
    for layer in layers:
        if layer.domain == domain:
            last_use_ns = layer.record.last_used_ns
            for digest, _, _ in layer.index.digests():
                if digest in digests and uses.get(digest, -1) < last_use_ns:
                    uses[digest] = last_use_ns
    return uses
