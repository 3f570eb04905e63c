"""The values that say which layer is wanted and what became of it: they cross from the service to a plane and back."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LayerRequest:
    """One layer that containerd asked for, as its labels describe it. Digests are `sha256:<hex>`.

    `image_layers` holds this layer's digest and those above it, lowest first, as far as the label reached.
    `trusted_only`: the labels may be an image author's words; the layer counts only if the manifest named by
    `manifest_digest` contains it. `timeout_s`: how long an answer may take; None leaves it to the configuration.
    """

    namespace: str
    reference: str
    manifest_digest: str | None
    layer_digest: str
    image_layers: tuple[str, ...]
    toc_digest: str | None
    prefetch_size: int | None
    skip_verify: bool
    trusted_only: bool
    timeout_s: float | None = None


@dataclass(frozen=True, slots=True)
class AttachedLayer:
    """A layer that can be used as a lower directory from now on, and is recorded in the state under `number`.

    `size` is the uncompressed bytes and `inodes` the inodes by the layer's TOC; `root_*` are its root directory's.
    """

    number: int
    layer_digest: str
    toc_digest: str
    size: int
    inodes: int
    root_uid: int
    root_gid: int
    root_mode: int


@dataclass(frozen=True, slots=True)
class LowerLayer:
    """One committed snapshot of a chain; `layer_number` is None for an ordinary snapshot directory."""

    snapshot_id: int
    layer_number: int | None


@dataclass(frozen=True, slots=True)
class LowerDirs:
    """What an overlay names below itself.

    `paths` are for `lowerdir=`, topmost first; an empty one before a path makes the `::` of a data-only layer. `options`
    are further mount options that go with them.
    """

    paths: tuple[str, ...]
    options: tuple[str, ...] = ()
