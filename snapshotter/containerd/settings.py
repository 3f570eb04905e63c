"""What of containerd's configuration concerns a snapshotter, read from its tables; and what is wrong with it.

Keys and their meaning by release line: containerd's `docs/cri/config.md`, `docs/PLUGINS.md` and, for the choice between
the two ways to pull on 2.1 and later, `internal/cri/config` of its source.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snapshotter.containerd.introspection import SNAPSHOTTER_TYPE, Version

CRI = "io.containerd.grpc.v1.cri"
IMAGES = "io.containerd.cri.v1.images"
RUNTIME = "io.containerd.cri.v1.runtime"
TRANSFER = "io.containerd.transfer.v1.local"

TRANSFER_SINCE = Version(2, 1, 0)
"""CRI pulls through the transfer service from here on, unless a key asks for what that cannot do."""
EXPORTS_ROOT_SINCE = Version(1, 7, 16)
"""kubelet is told `exports.root` of a proxy plugin from here on."""
REMOTE_ANNOTATIONS = "enable_remote_snapshot_annotations"

DEFAULT_ROOT = Path("/var/lib/containerd")
_DOWNLOADS = 3  # the default of max_concurrent_downloads; any other value is the client puller's business
_KINDS = ("snapshot", SNAPSHOTTER_TYPE)


@dataclass(frozen=True, slots=True)
class UnpackConfig:
    """One entry of the transfer service's `unpack_config`."""

    platform: str
    snapshotter: str


@dataclass(frozen=True, slots=True)
class Settings:
    """What containerd does with snapshotters. `plugin_name` is "" if no proxy plugin leads to our socket.

    `others` maps further proxy plugins of snapshotters to their sockets; `runtimes` those CRI runtimes that name a
    snapshotter of their own to it; `transfer` says that pulls go through the transfer service, and where they do not
    although this containerd has one, `own_puller` is the key because of which; `unpack_config` is None where the list is containerd's own default.
    """

    plugin_name: str
    plugin_address: Path | None
    exports: Mapping[str, str]
    capabilities: tuple[str, ...]
    others: Mapping[str, Path]
    snapshotter: str
    annotations_disabled: bool
    transfer: bool
    own_puller: str
    unpack_config: tuple[UnpackConfig, ...] | None
    discard_unpacked_layers: bool
    registry_config_path: tuple[Path, ...]
    runtimes: Mapping[str, str]
    cri_disabled: bool
    containerd_root: Path


@dataclass(frozen=True, slots=True)
class Complaint:
    """Something to know: `severity` is "error" (nothing is lazy), "warning" or "note"; what it is, and what to do."""

    severity: str
    what: str
    advice: str


def read_settings(tables: Mapping[str, Any], version: Version, socket: Path) -> Settings:
    """What `tables`, as `effective.effective` returns them, mean to a containerd of `version`; `socket` is our daemon's."""
    images, cri = _images_table(tables), _table(tables, "plugins", CRI)
    proxies = {
        name: one
        for name, one in _table(tables, "proxy_plugins").items()
        if isinstance(one, Mapping) and one.get("type") in _KINDS
    }
    snapshotter = _text(images.get("snapshotter")) or "overlayfs"
    ours = [name for name, one in proxies.items() if one.get("address") and Path(str(one["address"])) == socket]
    name = snapshotter if snapshotter in ours else ours[0] if ours else ""
    proxy = proxies.get(name, {})
    disabled = set(map(str, _list(tables.get("disabled_plugins"))))
    # A file of version 3 names the images service by itself, and CRI is gone with any of its parts.
    parts = {"cri", CRI} | ({IMAGES, RUNTIME} if version.major >= 2 else set())
    return Settings(
        plugin_name=name,
        plugin_address=Path(str(proxy["address"])) if name else None,
        exports={key: str(value) for key, value in _table(proxy, "exports").items()},
        capabilities=tuple(map(str, _list(proxy.get("capabilities")))),
        others={
            other: Path(str(one.get("address", "")))
            for other, one in proxies.items()
            if other != name and other not in ours
        },
        snapshotter=snapshotter,
        annotations_disabled=bool(images.get("disable_snapshot_annotations", True)),
        transfer=version >= TRANSFER_SINCE and not _own_puller(images),
        own_puller=_own_puller(images),
        unpack_config=_unpack_config(tables),
        discard_unpacked_layers=bool(images.get("discard_unpacked_layers", False)),
        registry_config_path=_paths(_table(images, "registry").get("config_path")),
        runtimes=_runtimes(tables, cri),
        cri_disabled=bool(disabled & parts),
        containerd_root=Path(_text(tables.get("root")) or DEFAULT_ROOT),
    )


def complaints(settings: Settings, version: Version, socket: Path, root: Path) -> list[Complaint]:
    """What keeps images from being lazy or kubelet from seeing them right, the worst first.

    `socket` and `root` are those of our daemon's configuration.
    """
    found = [*_of_plugin(settings, socket), *_of_pulls(settings), *_of_image_file_system(settings, version, root)]
    if settings.runtimes and settings.plugin_name:
        found += [
            Complaint(
                "note",
                f"containers of the runtime {runtime} use the snapshotter {other}",
                f"set snapshotter of that runtime to {settings.plugin_name} if they are to be lazy too",
            )
            for runtime, other in settings.runtimes.items()
            if other != settings.plugin_name
        ]
    order = ("error", "warning", "note")
    return sorted(found, key=lambda complaint: order.index(complaint.severity))


def image_file_system(containerd_root: Path, name: str) -> Path:
    """Where kubelet measures free space for the snapshotter `name`, if containerd does not know better (before 1.7.16: never)."""
    return containerd_root / f"{SNAPSHOTTER_TYPE}.{name}"


def _of_plugin(settings: Settings, socket: Path) -> Iterator[Complaint]:
    write = "run `snapshotter config containerd --write`, and restart containerd"
    if settings.cri_disabled:
        yield Complaint(
            "warning",
            "the CRI plugin is disabled: kubelet cannot use this containerd",
            "take it out of disabled_plugins, and restart containerd (without kubelet, leave it as it is)",
        )
    if not settings.plugin_name:
        where = settings.others.get(settings.snapshotter)
        yield Complaint(
            "error",
            f"the snapshotter {settings.snapshotter} is at {where}, not at {socket}"
            if where
            else f"no proxy plugin leads to {socket}",
            "give its proxy plugin the address of our daemon, or the daemon that address" if where else write,
        )
        return
    if settings.snapshotter != settings.plugin_name and not settings.cri_disabled:
        yield Complaint("error", f"pods use the snapshotter {settings.snapshotter}, not {settings.plugin_name}", write)
    if "rebase" in settings.capabilities:
        yield Complaint(
            "error",
            f"[proxy_plugins.{settings.plugin_name}] claims the capability rebase: images would lose all layers but one",
            "delete it, and restart containerd",
        )
    for capability in {"remap-ids", "only-remap-ids"} & set(settings.capabilities):
        yield Complaint(
            "error",
            f"[proxy_plugins.{settings.plugin_name}] claims the capability {capability}: containers with user namespaces "
            "would see empty layers",
            "delete it, and restart containerd",
        )


def _of_pulls(settings: Settings) -> Iterator[Complaint]:
    name = settings.plugin_name
    if not name or settings.cri_disabled:
        return
    if settings.transfer:
        if settings.exports.get(REMOTE_ANNOTATIONS) != "true":
            yield Complaint(
                "error",
                f"pulls go through the transfer service, which does not tell {name} which layers it wants",
                "set disable_snapshot_annotations = false (`snapshotter config containerd --write`), and restart containerd",
            )
        if settings.unpack_config is None or name not in {one.snapshotter for one in settings.unpack_config}:
            yield Complaint(
                "error",
                f"the transfer service does not unpack for {name}: pulls fail",
                f"name {name} in unpack_config (`snapshotter config containerd --transfer --write`), and restart containerd",
            )
    elif settings.annotations_disabled:
        yield Complaint(
            "error",
            "disable_snapshot_annotations is true: containerd does not say which layers it wants, every pull is an ordinary one",
            "set it to false (`snapshotter config containerd --write`), and restart containerd",
        )
    if settings.discard_unpacked_layers:
        yield Complaint(
            "note",
            "discard_unpacked_layers is true: images that were pulled for another snapshotter cannot be used any more",
            "remove images that were pulled before, the pause image among them, so that kubelet pulls them again",
        )


def _of_image_file_system(settings: Settings, version: Version, root: Path) -> Iterator[Complaint]:
    name = settings.plugin_name
    if not name or settings.snapshotter != name:
        return
    if version < EXPORTS_ROOT_SINCE:
        place = image_file_system(settings.containerd_root, name)
        if _real(place) != _real(root):
            yield Complaint(
                "warning",
                f"kubelet looks for our images at {place}, as containerd {version} tells it, and our root is {root}",
                f'set root = "{place}" in the configuration of the snapshotter before it has images',
            )
    elif "root" not in settings.exports or _real(Path(settings.exports["root"])) != _real(root):
        said = settings.exports.get("root") or str(image_file_system(settings.containerd_root, name))
        yield Complaint(
            "warning",
            f"kubelet looks for our images at {said}, and our root is {root}",
            f'set root = "{root}" in [proxy_plugins.{name}.exports], and restart containerd',
        )


def _real(path: Path) -> Path:
    return path.resolve()


def _own_puller(images: Mapping[str, Any]) -> str:
    """The key that makes CRI of 2.1 and later pull by itself, since the transfer service cannot do what it asks for.

    Source: containerd 2.1, internal/cri/config/config.go, CheckLocalImagePullConfigs.
    """
    registry = _table(images, "registry")
    reasons = {
        "use_local_image_pull = true": images.get("use_local_image_pull"),
        "disable_snapshot_annotations = false": not images.get("disable_snapshot_annotations", True),
        "discard_unpacked_layers = true": images.get("discard_unpacked_layers"),
        "max_concurrent_downloads": images.get("max_concurrent_downloads", _DOWNLOADS) != _DOWNLOADS,
        "image_pull_with_sync_fs = true": images.get("image_pull_with_sync_fs"),
        **{f"registry.{key}": registry.get(key) for key in ("mirrors", "configs", "auths")},
    }
    return next((key for key, holds in reasons.items() if holds), "")


def _images_table(tables: Mapping[str, Any]) -> Mapping[str, Any]:
    """The keys about pulls, whatever the version of the file calls their table."""
    of_v3 = _table(tables, "plugins", IMAGES)
    if of_v3:
        return of_v3
    cri = _table(tables, "plugins", CRI) or _table(tables, "plugins", "cri")
    return {**cri, **_table(cri, "containerd")}


def _unpack_config(tables: Mapping[str, Any]) -> tuple[UnpackConfig, ...] | None:
    entries = [
        one for one in _list(_table(tables, "plugins", TRANSFER).get("unpack_config")) if isinstance(one, Mapping)
    ]
    if not entries:
        return None
    return tuple(UnpackConfig(_text(one.get("platform")), _text(one.get("snapshotter"))) for one in entries)


def _runtimes(tables: Mapping[str, Any], cri: Mapping[str, Any]) -> dict[str, str]:
    runtimes = _table(tables, "plugins", RUNTIME, "containerd", "runtimes") or _table(cri, "containerd", "runtimes")
    return {
        name: _text(one.get("snapshotter"))
        for name, one in runtimes.items()
        if isinstance(one, Mapping) and one.get("snapshotter")
    }


def _table(tables: Mapping[str, Any], *keys: str) -> Mapping[str, Any]:
    """The table below `keys`, or an empty one."""
    for key in keys:
        inner = tables.get(key)
        if not isinstance(inner, Mapping):
            return {}
        tables = inner
    return tables


def _list(value: object) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else ()


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _paths(value: object) -> tuple[Path, ...]:
    return tuple(Path(part) for part in _text(value).split(":") if part)
