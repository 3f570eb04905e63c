"""What is printed for each line of containerd, key by key as the contract's table has them."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

from snapshotter.containerd.advice import advice
from snapshotter.containerd.introspection import Version, parse_version
from snapshotter.containerd.lines import Wanted, document, file_version_of, is_plugin_name, plugin, pulls
from snapshotter.containerd.settings import complaints, read_settings
from snapshotter.errors import ConfigError, ContainerdUnfit

SOCKET, ROOT = Path("/run/estargz/snapshotter.sock"), Path("/var/lib/estargz")
PROXY = {"type": "snapshot", "address": str(SOCKET)}
WITH_ROOT = {**PROXY, "exports": {"root": str(ROOT)}}
KEYS = {"snapshotter": "estargz", "disable_snapshot_annotations": False}
V2_TABLES = {"io.containerd.grpc.v1.cri": {"containerd": KEYS}}
V3_TABLES = {"io.containerd.cri.v1.images": KEYS}
TRANSFERRING = {
    "io.containerd.cri.v1.images": {"snapshotter": "estargz"},
    "io.containerd.transfer.v1.local": {
        "unpack_config": [
            {"platform": "linux", "snapshotter": "estargz", "differ": "walking"},
            {"platform": "linux", "snapshotter": "overlayfs"},
        ]
    },
}


def of(version: str) -> Version:
    found = parse_version(version)
    assert found is not None
    return found


def wanted(version: str, *, transfer: bool = False) -> Wanted:
    return Wanted("estargz", SOCKET, ROOT, of(version), file_version_of(of(version)), transfer)


def printed(wish: Wanted) -> dict[str, Any]:
    text = document([*plugin(wish), *pulls(wish)], version=wish.file_version, heading=["A heading."])
    assert max(map(len, text.splitlines())) <= 80
    return tomllib.loads(text)


@pytest.mark.parametrize(
    ("version", "file_version", "proxy", "plugins"),
    [
        ("1.6.20", 2, PROXY, V2_TABLES),
        ("1.7.0", 2, PROXY, V2_TABLES),
        ("1.7.15", 2, PROXY, V2_TABLES),
        ("1.7.16", 2, WITH_ROOT, V2_TABLES),
        ("2.0.0", 3, WITH_ROOT, V3_TABLES),
        ("2.1.4", 3, WITH_ROOT, V3_TABLES),
        ("2.3.0", 3, WITH_ROOT, V3_TABLES),
    ],
)
def test_each_line_gets_its_keys(version: str, file_version: int, proxy: object, plugins: object) -> None:
    expected = {"version": file_version, "proxy_plugins": {"estargz": proxy}, "plugins": plugins}
    assert printed(wanted(version)) == expected


@pytest.mark.parametrize("version", ["2.1.0", "2.2.7", "2.3.4"])
def test_the_transfer_variant_has_the_export_and_the_list(version: str) -> None:
    exports = {"root": str(ROOT), "enable_remote_snapshot_annotations": "true"}
    tables = printed(wanted(version, transfer=True))
    assert tables["proxy_plugins"]["estargz"] == {**PROXY, "exports": exports}
    assert tables["plugins"] == TRANSFERRING


@pytest.mark.parametrize("transfer", [False, True])
@pytest.mark.parametrize("version", ["1.6.20", "1.7.10", "1.7.20", "2.0.3", "2.1.0", "2.2.0", "2.3.4"])
def test_what_is_printed_leaves_nothing_to_complain_of(version: str, transfer: bool) -> None:
    if transfer and of(version) < (2, 1, 0):
        with pytest.raises(ConfigError, match="leave --transfer out"):
            wanted(version, transfer=True)
        return
    wish = wanted(version, transfer=transfer)
    settings = read_settings(printed(wish), of(version), SOCKET)
    assert settings.transfer == transfer
    assert complaints(settings, of(version), SOCKET, wish.place) == []


def test_too_old_is_said() -> None:
    with pytest.raises(ContainerdUnfit, match="too old"):
        wanted("1.5.9")


@pytest.mark.parametrize(
    ("name", "good"), [("estargz", True), ("e-1_x", True), ("1e", False), ("a.b", False), ("", False)]
)
def test_names_of_plugins(name: str, good: bool) -> None:
    assert is_plugin_name(name) is good


def steps(version: str, root: Path = ROOT, flavour: str = "containerd") -> str:
    wish = Wanted("estargz", SOCKET, root, of(version), file_version_of(of(version)))
    return "\n".join(advice(wish, flavour=flavour, restart="restart it", settings=None, our_config="/etc/c.toml"))


def test_before_1_7_16_the_root_must_be_where_kubelet_looks() -> None:
    place = "/var/lib/containerd/io.containerd.snapshotter.v1.estargz"
    assert f'set root = "{place}" in /etc/c.toml' in steps("1.6.20")
    assert f'set root = "{place}"' in steps("1.7.15")
    assert "nothing to do" in steps("1.6.20", Path(place))
    assert place not in steps("1.7.16") + steps("2.0.0")


def test_what_is_special_of_a_distribution_is_said() -> None:
    assert "template" in steps("1.7.20", flavour="k3s")
    assert "template" not in steps("2.1.0", flavour="k3s")
    assert "cannot check" in steps("2.1.0", flavour="k0s")
    assert "restart it" in steps("2.1.0")
