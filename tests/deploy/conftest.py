"""The release that all tests of this directory install: built once a run, from a runtime that is kept between runs."""

import os
import subprocess
from pathlib import Path

import pytest

from dev.distribution.build import TOP, build_release
from dev.distribution.release import Release

PYTHON = os.environ.get("DIST_PYTHON") or "/usr/bin/python3"


@pytest.fixture(scope="session")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    """The release of this checkout as it is now."""
    return build_release(PYTHON, TOP / "build" / "dist", tmp_path_factory.mktemp("release"))


@pytest.fixture(scope="session")
def next_release(release: Release, tmp_path_factory: pytest.TempPathFactory) -> Release:
    """The same under another version, as an upgrade brings it."""
    folder = tmp_path_factory.mktemp("next") / release.folder.name
    subprocess.run(["cp", "-a", "--reflink=auto", release.folder, folder], check=True)
    facts = folder / "release"
    facts.write_text(facts.read_text().replace("id=", "id=9-").replace("version=", "version=9-"))
    return Release(folder, release.epoch)


def install(release: Path, script: str = "install.sh", *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run one of the release's scripts on this machine, with DESTDIR or a PREFIX in a test's folder."""
    path = {"PATH": os.environ["PATH"]}
    return subprocess.run(
        ["/bin/sh", release / script, *words], env=path | env, capture_output=True, text=True, check=False, timeout=120
    )
