"""Where each distribution's configuration is written."""

from dataclasses import replace
from pathlib import Path

import pytest

from snapshotter.containerd.drop_in import revert, write
from snapshotter.containerd.settings import read_settings
from snapshotter.containerd.site import DROP_IN_NAME
from snapshotter.errors import ConfigError, ContainerdUnfit
from tests.containerd.main_files import KUBEADM, VERSION_1, parsed
from tests.containerd.nodes import SOCKET, V17, V21, node, snapshot, wanted


def test_k3s_of_1_gets_a_template(tmp_path: Path) -> None:
    found = replace(node(tmp_path, KUBEADM, V17), flavour="k3s")
    before = snapshot(tmp_path)
    write(found, wanted(found))
    assert (tmp_path / "config.toml").read_bytes() == before["config.toml"]
    settings = read_settings(parsed(tmp_path / "config.toml.tmpl"), V17, SOCKET)
    assert (settings.plugin_name, settings.snapshotter, settings.annotations_disabled) == ("estargz", "estargz", False)
    assert not write(found, wanted(found)).changes
    revert(found)
    assert snapshot(tmp_path) == before


def test_a_template_of_the_admin_is_left_alone(tmp_path: Path) -> None:
    found = replace(node(tmp_path, KUBEADM, V17), flavour="rke2")
    (tmp_path / "config.toml.tmpl").write_text('{{ template "base" . }}\n')
    with pytest.raises(ConfigError, match="a template of yours"):
        write(found, wanted(found))


def test_k3s_of_2_gets_a_drop_in_where_it_imports(tmp_path: Path) -> None:
    text = 'version = 3\nimports = ["/nowhere/config-v3.toml.d/*.toml"]\n'
    found = replace(node(tmp_path, text, V21), flavour="k3s")
    before = snapshot(tmp_path)
    write(found, wanted(found))
    assert (tmp_path / "config.toml").read_bytes() == before["config.toml"]
    assert (tmp_path / "config-v3.toml.d" / DROP_IN_NAME).exists()
    revert(found)
    assert snapshot(tmp_path) == before


def test_k0s_gets_a_drop_in_and_its_own_file_stays(tmp_path: Path) -> None:
    found = replace(node(tmp_path, "# k0s_managed=true\nversion = 2\n", V17), flavour="k0s")
    before = snapshot(tmp_path)
    write(found, wanted(found))
    settings = read_settings(parsed(tmp_path / "containerd.d" / DROP_IN_NAME), V17, SOCKET)
    assert (settings.snapshotter, settings.annotations_disabled) == ("estargz", False)
    revert(found)
    assert snapshot(tmp_path) == before


def test_microk8s_gets_its_template_changed(tmp_path: Path) -> None:
    found = replace(node(tmp_path, KUBEADM, V17), flavour="microk8s")
    template = tmp_path / "containerd-template.toml"
    template.write_text(KUBEADM.replace("'overlayfs'", '"${SNAPSHOTTER}"'))
    before = snapshot(tmp_path)
    write(found, wanted(found))
    assert read_settings(parsed(template), V17, SOCKET).snapshotter == "estargz"
    revert(found)
    assert snapshot(tmp_path) == before


def test_the_containerd_of_docker_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ContainerdUnfit, match="dockerd"):
        write(replace(node(tmp_path, VERSION_1), flavour="docker"), wanted(node(tmp_path, VERSION_1)))
