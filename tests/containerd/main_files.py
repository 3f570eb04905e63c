"""Main files of containerd as admins and distributions have them, for tests that change them and change them back."""

import tomllib
from pathlib import Path
from typing import Any

from snapshotter.containerd.site import loaded

CRI = "io.containerd.grpc.v1.cri"

DEBIAN = """\
version = 2

[plugins]
  [plugins."io.containerd.grpc.v1.cri"]
    [plugins."io.containerd.grpc.v1.cri".cni]
      bin_dir = "/usr/lib/cni"
      conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.internal.v1.opt"]
    path = "/var/lib/containerd/opt"
"""
DOCKER_PACKAGE = """\
#   Copyright 2018-2022 Docker Inc.

disabled_plugins = ["cri"]

#root = "/var/lib/containerd"
#[grpc]
#  address = "/run/containerd/containerd.sock"
"""
KUBEADM = """\
version = 2 # since 1.3
imports = [
  # the GPU's
  "/nowhere/conf.d/*.toml",
]
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = 'registry.example.org/pause:3.9'   # mirrored
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = 'overlayfs'   # as ever
    default_runtime_name = "runc"
    discard_unpacked_layers = true
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = true
[debug]
  level = "info"
"""
RUNTIMES_ONLY = """\
# a comment on top
version = 2
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
"""
TAKEN = """\
version = 2
[proxy_plugins.stargz]
type = "snapshot"
address = "/run/containerd-stargz-grpc/containerd-stargz-grpc.sock"
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "stargz"
disable_snapshot_annotations = true"""
VERSION_1 = """\
[plugins.cri.containerd]
  default_runtime_name = "runc"
[plugins.opt]
  path = "/opt/x"
"""
DOTTED = """\
version = 2
plugins."io.containerd.grpc.v1.cri".containerd.snapshotter = "native"
"""
INLINE = """\
version = 2
plugins = {"io.containerd.grpc.v1.cri" = {containerd = {snapshotter = "native"}}}
"""

OF_1 = {
    "debian": DEBIAN,
    "docker-package": DOCKER_PACKAGE,
    "kubeadm": KUBEADM,
    "runtimes-only": RUNTIMES_ONLY,
    "taken": TAKEN,
    "version-1": VERSION_1,
    "dotted": DOTTED,
    "inline": INLINE,
    "crlf": KUBEADM.replace("\n", "\r\n"),
    "no-newline": DEBIAN.rstrip("\n"),
    "version-only": "version = 2",
    "blank-lines": "\n\n\nversion=2\n\n\n",
    "comments-only": "# nothing\n",
    "empty": "",
}
OF_2 = {
    "version-3": """\
version = 3
root = "/data/containerd"
[plugins.'io.containerd.cri.v1.images']
  snapshotter = "overlayfs"
  [plugins.'io.containerd.cri.v1.images'.registry]
    config_path = '/etc/containerd/certs.d'
""",
    "version-2": KUBEADM,
    "crlf": "version = 3\r\n[debug]\r\nlevel = 'info'\r\n",
    "imports": 'version = 3\nimports = ["/nowhere/a.toml"]\n',
}


def merged(main: Path) -> dict[str, Any]:
    """What containerd 2 makes of a main file and its imports: merged key by key, what comes later wins."""
    result: dict[str, Any] = {}
    for one in loaded(main):
        _merge(result, one.tables)
    return result


def _merge(into: dict[str, Any], tables: Any) -> None:
    for key, value in tables.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


def parsed(path: Path) -> dict[str, Any]:
    """A file's tables."""
    return tomllib.loads(path.read_bytes().decode())
