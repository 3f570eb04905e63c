"""Which process, program and file a socket leads to."""

import os
import socket
from pathlib import Path

import pytest

from snapshotter.containerd import finding
from snapshotter.containerd.effective import dumped
from snapshotter.containerd.finding import Found, find, flavour_of, option, peer
from snapshotter.containerd.introspection import Version
from snapshotter.errors import ConfigError, ContainerdError, ContainerdUnreachable


def test_the_process_is_who_listens(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        server.listen()
        assert peer(tmp_path / "s") == os.getpid()
    assert peer(tmp_path / "s") is None


@pytest.mark.parametrize(
    "arguments",
    [["-c", "/x"], ["--config", "/x"], ["-config=/x"], ["--log-level", "debug", "--config=/x", "--root", "/r"]],
)
def test_the_file_is_what_the_command_line_says(arguments: list[str]) -> None:
    assert option(arguments, "config", "c") == "/x"


def test_a_command_line_without_a_file_names_none() -> None:
    assert option(["--root", "/c", "c"], "config", "c") is None
    assert option(["--config"], "config", "c") is None


@pytest.mark.parametrize(
    ("address", "config", "flavour"),
    [
        ("/run/containerd/containerd.sock", "/etc/containerd/config.toml", "containerd"),
        ("/run/k3s/containerd/containerd.sock", "/var/lib/rancher/k3s/agent/etc/containerd/config.toml", "k3s"),
        ("/run/k3s/containerd/containerd.sock", "/var/lib/rancher/rke2/agent/etc/containerd/config.toml", "rke2"),
        ("/run/k0s/containerd.sock", "/etc/k0s/containerd.toml", "k0s"),
        (
            "/var/snap/microk8s/common/run/containerd.sock",
            "/var/snap/microk8s/current/args/containerd.toml",
            "microk8s",
        ),
        ("/run/docker/containerd/containerd.sock", "/run/docker/containerd/containerd.toml", "docker"),
    ],
)
def test_whose_containerd_it_is(address: str, config: str, flavour: str) -> None:
    assert flavour_of(Path(address), Path(config), Path("/usr/bin/containerd")) == flavour


def test_without_any_socket_all_places_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finding, "SOCKETS", (tmp_path / "a", tmp_path / "b"))
    with pytest.raises(ContainerdUnreachable, match=f"{tmp_path / 'a'}, {tmp_path / 'b'} is there"):
        find()


def test_a_socket_that_nobody_serves_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "a"))
    monkeypatch.setattr(finding, "SOCKETS", (tmp_path / "a",))
    with pytest.raises(ContainerdUnreachable, match="does not run"):
        find()


def found(binary: Path | None) -> Found:
    return Found(Path("/s"), Version(1, 6, 20), None, binary, None, "containerd")


def test_a_program_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ContainerdError, match="not to be found"):
        dumped(found(None), None)
    with pytest.raises(ContainerdError, match="cannot run"):
        dumped(found(tmp_path / "none"), None)


def test_what_containerd_says_of_a_file_is_in_the_error(tmp_path: Path) -> None:
    program = tmp_path / "containerd"
    program.write_text("#!/bin/sh\necho 'containerd: failed to load TOML: (3, 2)' >&2\nexit 1\n")
    program.chmod(0o755)
    with pytest.raises(ConfigError, match=r"/x: containerd does not take it: .*\(3, 2\)"):
        dumped(found(program), Path("/x"))
    program.write_text("#!/bin/sh\necho =\n")
    with pytest.raises(ContainerdError, match="printed no TOML"):
        dumped(found(program), Path("/x"))
