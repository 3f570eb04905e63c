"""What of containerd's configuration is read, and what is complained of."""

from pathlib import Path
from typing import Any

import pytest

from snapshotter.containerd.introspection import Version
from snapshotter.containerd.settings import Complaint, complaints, image_file_system, read_settings

SOCKET, ROOT = Path("/run/estargz/snapshotter.sock"), Path("/var/lib/estargz")
V16, V17, V20, V21 = Version(1, 6, 20), Version(1, 7, 20), Version(2, 0, 5), Version(2, 1, 4)
CRI, IMAGES = "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images"
GOOD = {"snapshotter": "estargz", "disable_snapshot_annotations": False}


def tables(*, images: dict[str, Any] | None = None, proxy: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    entry = {"type": "snapshot", "address": str(SOCKET), "exports": {"root": str(ROOT)}, **(proxy or {})}
    return {"proxy_plugins": {"estargz": entry}, "plugins": {IMAGES: GOOD if images is None else images}, **more}


def said(config: dict[str, Any], version: Version = V21, root: Path = ROOT) -> list[Complaint]:
    return complaints(read_settings(config, version, SOCKET), version, SOCKET, root)


def only(config: dict[str, Any], version: Version = V21, root: Path = ROOT) -> Complaint:
    (complaint,) = said(config, version, root)
    return complaint


def test_a_good_configuration_leaves_nothing_to_say() -> None:
    for version in (V17, V20, V21):
        assert said(tables(), version) == []


def test_keys_of_every_version_of_the_file_are_found() -> None:
    old = {"plugins": {CRI: {"containerd": GOOD, "registry": {"config_path": "/a:/b"}}}}
    for config in (old, {"plugins": {"cri": old["plugins"][CRI]}}):
        settings = read_settings(config, V16, SOCKET)
        assert (settings.snapshotter, settings.annotations_disabled) == ("estargz", False)
        assert settings.registry_config_path == (Path("/a"), Path("/b"))


def test_without_keys_containerds_defaults_hold() -> None:
    settings = read_settings({}, V16, SOCKET)
    assert (settings.snapshotter, settings.annotations_disabled, settings.plugin_name) == ("overlayfs", True, "")
    assert settings.containerd_root == Path("/var/lib/containerd")


def test_a_missing_plugin_is_one_error() -> None:
    complaint = only({})
    assert (complaint.severity, complaint.what) == ("error", f"no proxy plugin leads to {SOCKET}")


def test_another_socket_is_named() -> None:
    complaint = only(tables(proxy={"address": "/run/other.sock"}))
    assert complaint.what == f"the snapshotter estargz is at /run/other.sock, not at {SOCKET}"


def test_another_snapshotter_is_named() -> None:
    assert only(tables(images={**GOOD, "snapshotter": "overlayfs"})).what.startswith(
        "pods use the snapshotter overlayfs"
    )


def test_the_plugin_that_pods_use_is_ours_if_two_lead_to_the_socket() -> None:
    config = tables()
    config["proxy_plugins"] = {"alias": {"type": "snapshot", "address": str(SOCKET)}, **config["proxy_plugins"]}
    assert read_settings(config, V21, SOCKET).plugin_name == "estargz"


@pytest.mark.parametrize("version", [V16, V17, V20])
def test_annotations_switched_off_is_an_error(version: Version) -> None:
    errors = [one for one in said(tables(images={"snapshotter": "estargz"}), version) if one.severity == "error"]
    assert len(errors) == 1
    assert "disable_snapshot_annotations is true" in errors[0].what


def test_the_transfer_service_needs_the_export_and_the_list() -> None:
    first, second = said(tables(images={"snapshotter": "estargz"}))
    assert "does not tell estargz which layers" in first.what
    assert "does not unpack for estargz" in second.what


@pytest.mark.parametrize(
    "key",
    [
        {"use_local_image_pull": True},
        {"discard_unpacked_layers": True},
        {"max_concurrent_downloads": 5},
        {"image_pull_with_sync_fs": True},
        {"registry": {"mirrors": {"a": {}}}},
    ],
)
def test_what_the_transfer_service_cannot_keeps_pulls_away_from_it(key: dict[str, Any]) -> None:
    settings = read_settings(tables(images={"snapshotter": "estargz", **key}), V21, SOCKET)
    assert not settings.transfer
    assert next(iter(key)) in settings.own_puller


def test_capabilities_that_harm_are_errors() -> None:
    for capability in ("rebase", "remap-ids", "only-remap-ids"):
        assert capability in only(tables(proxy={"capabilities": [capability]})).what


def test_the_image_file_system_must_be_our_root() -> None:
    place = image_file_system(Path("/var/lib/containerd"), "estargz")
    assert only(tables(), V16).advice.startswith(f'set root = "{place}"')
    assert said(tables(), V16, place) == []
    assert only(tables(proxy={"exports": {}})).advice.startswith(
        f'set root = "{ROOT}" in [proxy_plugins.estargz.exports]'
    )


def test_a_disabled_cri_is_the_only_thing_said_of_pods() -> None:
    config = tables(images={}, disabled_plugins=["io.containerd.grpc.v1.cri"])
    assert said(config)[0].what.startswith("the CRI plugin is disabled")
    assert not any("pods use" in one.what for one in said(config))


def test_a_runtime_with_a_snapshotter_of_its_own_is_a_note() -> None:
    config = tables()
    runtimes = {"kata": {"snapshotter": "devmapper"}, "runc": {}}
    config["plugins"]["io.containerd.cri.v1.runtime"] = {"containerd": {"runtimes": runtimes}}
    assert only(config).severity == "note"


@pytest.mark.parametrize(
    "config",
    [
        {"plugins": 3},
        {"proxy_plugins": {"estargz": 3}},
        {"proxy_plugins": [1], "disabled_plugins": 7},
        {"plugins": {IMAGES: {"registry": [], "snapshotter": 4}}, "root": 3},
        {"plugins": {"io.containerd.transfer.v1.local": {"unpack_config": [1, {"platform": 2}]}}},
    ],
)
def test_tables_of_any_shape_are_read(config: dict[str, Any]) -> None:
    assert said(config)
