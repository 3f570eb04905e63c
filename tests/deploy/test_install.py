"""The scripts below a DESTDIR and a PREFIX, and what they refuse."""

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from dev.distribution.release import Release
from snapshotter import config
from tests.deploy.conftest import install
from tests.deploy.test_unit import SYSTEMD, without_newer_keys


def files(top: Path) -> list[str]:
    return sorted(str(path.relative_to(top)) for path in top.rglob("*") if not path.is_dir() or path.is_symlink())


def test_an_image_builder_gets_everything_below_destdir(release: Release, tmp_path: Path) -> None:
    done = install(release.folder, DESTDIR=str(tmp_path), PREFIX="/opt/estargz")
    assert (done.returncode, done.stderr) == (0, "")
    found = [name for name in files(tmp_path) if "/trees/" not in name and "/share/doc/" not in name]
    assert found == [
        "etc/estargz/config.toml",
        *(f"etc/systemd/system/estargz-snapshotter{kind}.service" for kind in ("-keeper", "-standby", "")),
        "opt/estargz/bin/snapshotter",
        "opt/estargz/lib/estargz-snapshotter/current",
        "opt/estargz/lib/estargz-snapshotter/uninstall.sh",
        "opt/estargz/share/bash-completion/completions/snapshotter",
    ]
    for kind, command in (("", "serve --standby"), ("-standby", "serve --standby"), ("-keeper", "keeper")):
        unit = (tmp_path / f"etc/systemd/system/estargz-snapshotter{kind}.service").read_text()
        assert f"ExecStart=/opt/estargz/bin/snapshotter {command}\n" in unit
        assert "Documentation=file:/opt/estargz/share/doc/estargz-snapshotter/README.md" in unit
    assert {path.stat().st_uid for path in tmp_path.rglob("*") if not path.is_symlink()} == {os.getuid()}
    open_to_others = stat.S_IWGRP | stat.S_IWOTH
    assert [
        path for path in tmp_path.rglob("*") if not path.is_symlink() and path.stat().st_mode & open_to_others
    ] == []
    # It says the defaults and sets nothing: they change with the version.
    assert config.load(tmp_path / "etc/estargz/config.toml") == config.Config()
    ran = subprocess.run(
        [tmp_path / "opt/estargz/bin/snapshotter", "--version"], env={}, capture_output=True, check=True
    )
    assert ran.stdout.startswith(b"snapshotter")

    (tmp_path / "etc/estargz/config.toml").write_text('plane = "fuse"\n')
    assert install(release.folder, DESTDIR=str(tmp_path), PREFIX="/opt/estargz").returncode == 0
    assert (tmp_path / "etc/estargz/config.toml").read_text() == 'plane = "fuse"\n'
    done = install(tmp_path / "opt/estargz/lib/estargz-snapshotter", "uninstall.sh", DESTDIR=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert files(tmp_path) == ["etc/estargz/config.toml"]
    assert not (tmp_path / "opt/estargz").exists()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_finds_nothing_wrong_with_the_unit_where_it_is_installed(release: Release, tmp_path: Path) -> None:
    assert install(release.folder, DESTDIR=str(tmp_path)).returncode == 0
    units = " ".join(f"/usr/local/lib/systemd/system/{path.name}" for path in SYSTEMD.iterdir())
    script = f"mount --bind {tmp_path}/usr/local /usr/local && exec systemd-analyze verify {units}"
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", script],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, without_newer_keys(done.stderr)) == (0, "")


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("machine", "riscv64", "take the archive for"),
        ("glibc", "9.99", "needs 9.99 or later: build one on this distribution (make dist)"),
        ("loader", "/lib/ld-musl-x86_64.so.1", "Alpine's musl"),
    ],
)
def test_a_machine_that_cannot_run_it_is_told_so_before_anything_changes(
    release: Release, tmp_path: Path, key: str, value: str, said: str
) -> None:
    folder = tmp_path / "release"
    shutil.copytree(release.folder, folder, symlinks=True)
    facts = [line for line in (folder / "release").read_text().splitlines() if not line.startswith(f"{key}=")]
    (folder / "release").write_text("\n".join([*facts, f"{key}={value}"]) + "\n")
    done = install(folder, PREFIX=str(tmp_path / "prefix"), UNITDIR=str(tmp_path / "units"))
    assert done.returncode == 1
    assert said in done.stderr
    assert not (tmp_path / "prefix").exists()


def test_another_program_of_that_name_stays(release: Release, tmp_path: Path) -> None:
    other = tmp_path / "usr/local/bin/snapshotter"
    other.parent.mkdir(parents=True)
    other.write_text("mine\n")
    done = install(release.folder, DESTDIR=str(tmp_path))
    assert done.returncode == 1
    assert "remove it, or give another PREFIX" in done.stderr
    assert files(tmp_path) == ["usr/local/bin/snapshotter"]


@pytest.mark.parametrize("prefix", ["relative", "/with space", "/a/../b", "/a;b", "/"])
@pytest.mark.parametrize("script", ["install.sh", "uninstall.sh"])
def test_a_prefix_that_a_unit_cannot_name_is_refused(
    release: Release, tmp_path: Path, script: str, prefix: str
) -> None:
    done = install(release.folder, script, DESTDIR=str(tmp_path), PREFIX=prefix)
    assert done.returncode == 1
    assert "absolute path" in done.stderr
    assert files(tmp_path) == []


def test_an_unknown_word_changes_nothing(release: Release, tmp_path: Path) -> None:
    for script in ("install.sh", "uninstall.sh"):
        done = install(release.folder, script, "--prfix", DESTDIR=str(tmp_path))
        assert (done.returncode, done.stderr.split(" ")[0]) == (2, "Usage:")
    assert files(tmp_path) == []


def test_an_incomplete_release_is_refused(release: Release, tmp_path: Path) -> None:
    (tmp_path / "half").mkdir()
    shutil.copy(release.folder / "install.sh", tmp_path / "half")
    done = install(tmp_path / "half", DESTDIR=str(tmp_path / "dest"))
    assert done.returncode == 1
    assert "unpack the archive again" in done.stderr


def test_nothing_to_remove_is_an_error(release: Release, tmp_path: Path) -> None:
    done = install(release.folder, "uninstall.sh", DESTDIR=str(tmp_path))
    assert done.returncode == 1
    assert "give the PREFIX it was installed with" in done.stderr
