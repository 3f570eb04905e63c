"""The tarball: the same bytes for the same files, root's, with every licence."""

import hashlib
import tarfile
from pathlib import Path

import pytest

from dev.distribution.archive import write_archive
from dev.distribution.build import TOP, build_release
from dev.distribution.pins import runtime_pins
from dev.distribution.release import Release
from tests.deploy.conftest import PYTHON


def test_the_same_files_give_the_same_archive_whoever_owns_them(tmp_path: Path) -> None:
    digests = []
    for name, mode in (("a", 0o644), ("b", 0o644)):
        folder = tmp_path / name / "release-1"
        (folder / "x").mkdir(parents=True)
        (folder / "x" / "file").write_text("text")
        (folder / "x" / "file").chmod(mode)
        (folder / "link").symlink_to("x/file")
        archive = write_archive(Release(folder, 1_700_000_000), tmp_path / f"out-{name}")
        digest, listed = (archive.parent / "SHA256SUMS").read_text().split()
        assert listed == archive.name == "release-1.tar.gz"
        assert digest == hashlib.sha256(archive.read_bytes()).hexdigest()
        digests.append(digest)
        with tarfile.open(archive) as tar:
            assert {(entry.uid, entry.gid, entry.mtime) for entry in tar} == {(0, 0, 1_700_000_000)}
            assert [entry.name for entry in tar] == ["release-1", "release-1/link", "release-1/x", "release-1/x/file"]
    assert digests[0] == digests[1]


def test_the_lock_is_cut_down_to_what_runs() -> None:
    pins = runtime_pins(TOP / "dev" / "requirements.lock", TOP / "pyproject.toml", "3.11.2")
    names = {line.split("==")[0] for line in pins.splitlines() if not line.startswith(" ")}
    assert {"pyfuse3", "trio", "attrs", "httpcore", "h11", "backports-zstd", "protobuf"} <= names
    assert names & {"pytest", "mypy", "ruff", "grpcio-tools", "hatchling", "setuptools", "trustme"} == set()
    assert pins.count("==") == len(names)
    assert all("--hash=sha256:" in line for line in pins.splitlines() if line.startswith(" "))
    newer = runtime_pins(TOP / "dev" / "requirements.lock", TOP / "pyproject.toml", "3.14.0")
    assert "backports-zstd" not in newer


def test_everything_in_the_tree_has_its_licence_with_it(release: Release) -> None:
    licences = release.folder / "tree" / "share" / "licenses"
    index = (licences / "INDEX").read_text()
    assert "no text of its own" not in index
    for line in index.splitlines():
        for name in line.rpartition(": ")[2].split(", "):
            assert (licences / name).is_file() or (release.folder / "tree" / name).is_file(), line
    for library in (release.folder / "tree" / "lib").glob("*.so*"):
        assert library.name in index or library.name.split(".so")[0] in index


@pytest.mark.long
def test_a_release_built_twice_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    archives = []
    for name in ("a", "b"):
        # Not even the runtime is shared.
        release = build_release(PYTHON, tmp_path / f"build-{name}", tmp_path / f"build-{name}")
        archives.append(write_archive(release, tmp_path / name).read_bytes())
    assert archives[0] == archives[1]
