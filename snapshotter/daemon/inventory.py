"""What is on this node, counted when somebody asks: layers by image, files of the cache and who names them."""

import heapq
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from itertools import groupby
from operator import itemgetter

from snapshotter.errors import NotFound
from snapshotter.format.index import Index
from snapshotter.layer.layer import Layer
from snapshotter.layer.shelf import Shelf
from snapshotter.service.control_views import CachedFileView, CachedImageView, LayerState, LayerView
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


@dataclass(slots=True)
class _ImageLayers:
    """What became of an image's layers: those mounted by number, ordinary ones by digest, and how many failed."""

    lazy: dict[int, Layer] = field(default_factory=dict)
    ordinary: set[str] = field(default_factory=set)
    failed: set[int] = field(default_factory=set)


def cached_images(state: State, shelf: Shelf, store: ObjectStore) -> Iterator[CachedImageView]:
    """Yield what each image has on this node, by image. A file of several layers of an image counts once."""
    images = _layers_by_image(state, shelf)
    present = present_content(store)
    for image, layers in sorted(images.items()):
        size = here = 0
        domains: dict[str, list[Layer]] = defaultdict(list)
        for layer in layers.lazy.values():
            domains[layer.domain].append(layer)
        for domain, of_domain in domains.items():
            domain_size, domain_here = _sums(of_domain, present.get(domain, {}))
            size, here = size + domain_size, here + domain_here
        yield CachedImageView(
            image=image,
            lazy=len(layers.lazy),
            ordinary=len(layers.ordinary),
            failed=len(layers.failed),
            size=size,
            present=here,
            last_use_ns=max((layer.record.last_used_ns for layer in layers.lazy.values()), default=0),
        )


def _layers_by_image(state: State, shelf: Shelf) -> dict[str, _ImageLayers]:
    """Return the layers that snapshots stand for, by image; as `layer_rows` has them."""
    with state.read() as db:
        snapshots = state_snapshots.everything(db)
    images: dict[str, _ImageLayers] = defaultdict(_ImageLayers)
    sources: dict[int, set[str]] = {}
    for snapshot in snapshots:
        number = snapshot.layer_number
        if number is not None:
            if number not in sources:
                sources[number] = {source.reference for source in state.sources(number)}
            layer = shelf.get(number)
            for image in sources[number] or {snapshot.reference or ""}:
                if layer is None:
                    images[image].failed.add(number)
                else:
                    images[image].lazy[number] = layer
        elif snapshot.not_lazy is not None:
            row = _ordinary_row(snapshot)
            images[row.image].ordinary.add(row.digest)
    return images


def _sums(layers: Iterable[Layer], here: Mapping[bytes, int]) -> tuple[int, int]:
    """Return (bytes of the files of some layers, bytes of them that are here); equal files count once.

    Indexes are sorted by digest: they are merged, since a set of an image's digests would take 200 bytes for each.
    """
    merged = heapq.merge(*(layer.index.digests() for layer in layers), key=itemgetter(0))
    size = present = 0
    for digest, same in groupby(merged, key=itemgetter(0)):
        _, file_size, _ = next(same)
        size += file_size
        present += min(here.get(digest, 0), file_size)
    return size, present


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
