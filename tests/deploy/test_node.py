"""A node that has nothing but busybox and the C library takes the release, serves, is upgraded, and gives it back."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from dev.distribution.release import Release
from snapshotter.errors import BlobMissing
from tests.deploy.jail import Jail, jail, minimal_root
from tests.deploy.node import UNINSTALL, use, workers_of
from tests.deploy.tls import empty_registry

TREES = Path("usr/local/lib/estargz-snapshotter/trees")
POISON = 'raise SystemExit("code of the node was imported")\n'
MODULES = """
import os, sys, pyfuse3, grpc, trio, httpx, msgspec, deflate, tomlkit, rich.console, isal.igzip_lib, backports.zstd
import sqlite3, ctypes, snapshotter.daemon.main, snapshotter.cli.doctor
tree = os.path.realpath(sys.prefix)
for module in list(sys.modules.values()):
    if getattr(module, "__file__", None) and not os.path.realpath(module.__file__).startswith(tree):
        print("module", module.__file__)
for line in open("/proc/self/maps"):
    path = line.split()[-1]
    if ".so" in path and not path.startswith(tree):
        print(path.rpartition("/")[2])
"""


@pytest.fixture
def node(release: Release, next_release: Release, tmp_path: Path) -> Iterator[Jail]:
    """A minimal system with both releases at /release and /next."""
    root = minimal_root(tmp_path / "root")
    with jail(root) as node:
        for name, each in (("release", release), ("next", next_release)):
            (root / name).mkdir()
            node.attach(each.folder, name)
        yield node


def test_a_release_serves_where_there_is_no_python_and_leaves_nothing(node: Jail, tmp_path: Path) -> None:
    before = node.output("find", "/bin", "/etc", "/usr", "/var", "-type", "f")
    said = node.output("sh", "/release/install.sh")
    assert "snapshotter config containerd --write" in said
    use(node, tmp_path / "log")
    said = node.output("sh", UNINSTALL)
    assert "what stays: /var/lib/estargz" in said
    assert (node.root / "var/lib/estargz/state.db").exists()
    assert (node.root / "etc/estargz/config.toml").exists()
    node.output("sh", "/release/install.sh")
    node.output("sh", UNINSTALL, "--purge")
    assert node.output("find", "/bin", "/etc", "/usr", "/var", "-type", "f") == before
    assert not (node.root / "var/lib/estargz").exists()
    assert node.output("find", "/usr/local", "!", "-type", "d") == ""


def test_nothing_of_the_node_is_imported_or_loaded_but_the_c_library(node: Jail) -> None:
    node.output("sh", "/release/install.sh")
    places = [
        *("usr/local/lib/python3.11/dist-packages", "usr/lib/python3/dist-packages", "usr/lib/python3.11"),
        *("root/.local/lib/python3.11/site-packages", "tmp/here"),
    ]
    for place in places:
        (node.root / place).mkdir(parents=True)
        for module in ("click", "json", "sitecustomize", "usercustomize", "snapshotter"):
            (node.root / place / f"{module}.py").write_text(POISON)
    env = {"PYTHONPATH": "/tmp/here", "PYTHONHOME": "/usr", "PYTHONSTARTUP": "/tmp/here/json.py", "HOME": "/root"}
    (node.root / "tmp/link").symlink_to("/usr/local/bin/snapshotter")
    for command in ("snapshotter", "../link"):
        assert "Python" in node.output("sh", "-c", f"cd /tmp/here && {command} version", env=env)
    python = "/usr/local/lib/estargz-snapshotter/current/bin/python3"
    outside = set(node.output(python, "-I", "-S", "-c", MODULES, env=env).split("\n")) - {""}
    assert {name for name in outside if not re.match(r"(ld-linux-|lib(c|m|dl|pthread|rt|resolv)\.so)", name)} == set()


def test_an_upgrade_leaves_the_running_daemon_its_files_until_it_is_restarted(node: Jail, tmp_path: Path) -> None:
    node.output("sh", "/release/install.sh")
    (old,) = (node.root / TREES).iterdir()
    with node.daemon(tmp_path / "log", "snapshotter", "serve") as daemon:
        (node.root / "etc/estargz/config.toml").write_text('plane = "fuse"\n')
        said = node.output("sh", "/next/install.sh")
        assert f"the version before still runs, from /{old.relative_to(node.root)}" in said
        assert {path.name for path in (node.root / TREES).iterdir()} == {old.name, f"9-{old.name}"}
        assert "9-" in (node.root / "usr/local/lib/estargz-snapshotter/current").readlink().name
        assert "daemon" in node.output("snapshotter", "status")
        workers = workers_of(daemon)
        assert all(f"/{old.name}/bin/python3" in one for one in workers)
    assert (node.root / "etc/estargz/config.toml").read_text() == 'plane = "fuse"\n'
    with node.daemon(tmp_path / "log", "snapshotter", "serve") as daemon:
        assert "plane          fuse" in node.output("snapshotter", "status")
        assert '"take_overs": 1' in node.output("snapshotter", "status", "--json")
        assert "still runs" not in node.output("sh", "/next/install.sh")
        # The keeper is of the version before, for as long as there are mounts.
        assert {path.name for path in (node.root / TREES).iterdir()} == {old.name, f"9-{old.name}"}
        # The same release over itself: what runs finds the same files.
        assert "daemon" in node.output("snapshotter", "status")
    node.output("snapshotter", "teardown")


def test_a_removal_is_refused_while_containerd_or_a_container_needs_it(node: Jail, tmp_path: Path) -> None:
    node.output("sh", "/release/install.sh")
    (node.root / "etc/containerd").mkdir()
    configuration = node.root / "etc/containerd/config.toml"
    configuration.write_text('[proxy_plugins.estargz]\naddress = "/run/estargz/snapshotter.sock"\n')
    done = node.run("sh", UNINSTALL)
    assert done.returncode == 1
    assert "/etc/containerd/config.toml" in done.stderr
    assert "snapshotter config containerd --revert" in done.stderr
    configuration.write_text('# address = "/run/estargz/snapshotter.sock"\n')
    with node.daemon(tmp_path / "log", "snapshotter", "serve"):
        for name in ("a", "b", "root"):
            (node.root / "var/lib/estargz/snapshots/7" / name).mkdir(parents=True)
        where = "/var/lib/estargz/snapshots/7"
        node.output("mount", "-t", "overlay", "overlay", "-o", f"lowerdir={where}/a:{where}/b", f"{where}/root")
        done = node.run("sh", UNINSTALL, "--purge")
        assert done.returncode == 1
        assert "nothing was removed" in done.stderr
        assert "serving" in (tmp_path / "log").read_text()
        assert "daemon" in node.output("snapshotter", "status")
        done = node.run("sh", UNINSTALL, "--purge", "--force")
        assert done.returncode == 1
        assert "mounts still use /var/lib/estargz" in done.stderr
        assert (node.root / "var/lib/estargz/state.db").exists()
        assert not (node.root / "usr/local/bin/snapshotter").exists()


@pytest.mark.parametrize("bundle", ["etc/pki/tls/certs/ca-bundle.crt", "etc/ssl/ca-bundle.pem"])
def test_certificates_are_trusted_where_other_distributions_have_them(node: Jail, bundle: str) -> None:
    node.output("sh", "/release/install.sh")
    (node.root / "etc/hosts").write_text("127.0.0.1 registry.test\n")
    with empty_registry() as (authority, port):
        words = ("snapshotter", "image", "convert", f"registry.test:{port}/a:b", "oci:/tmp/out", "--json")
        unknown = node.run(*words)
        assert "certificate" in unknown.stderr
        (node.root / bundle).parent.mkdir(parents=True)
        (node.root / bundle).write_bytes(authority)
        known = node.run(*words)
        assert known.returncode == BlobMissing.exit_code
        # What the admin names counts more.
        (node.root / "tmp/none.pem").write_bytes(b"")
        assert node.run(*words, env={"SSL_CERT_FILE": "/tmp/none.pem"}).returncode != BlobMissing.exit_code


def test_systemd_is_told_what_changes_and_restarts_only_when_asked(node: Jail) -> None:
    node.output("mkdir", "-p", "/run/systemd/system")
    systemctl = node.root / "bin" / "systemctl"
    systemctl.write_text('#!/bin/sh\necho "$*" >>/tmp/told\ncase $* in *is-active*) exit 3 ;; esac\n')
    systemctl.chmod(0o755)
    told = node.root / "tmp" / "told"
    assert "systemctl enable --now estargz-snapshotter" in node.output("sh", "/release/install.sh")
    assert told.read_text().splitlines()[0] == "daemon-reload"
    assert "restart" not in told.read_text()
    told.unlink()
    node.output("sh", "/next/install.sh", "--restart")
    assert told.read_text().splitlines()[:3] == [
        "daemon-reload",
        "try-restart estargz-snapshotter-standby.service",
        "try-restart estargz-snapshotter.service",
    ]
    told.unlink()
    node.output("sh", UNINSTALL)
    assert told.read_text().splitlines() == [
        "disable --now estargz-snapshotter-standby.service",
        "disable --now estargz-snapshotter.service",
        "disable --now estargz-snapshotter-keeper.service",
        "daemon-reload",
    ]
