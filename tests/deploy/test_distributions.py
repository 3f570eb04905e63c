"""Real distributions without Python, made by debootstrap: the tarball as an admin unpacks it."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from dev.distribution.archive import write_archive
from dev.distribution.release import Release
from tests.deploy.jail import jail
from tests.deploy.node import UNINSTALL, use


@pytest.fixture(scope="session")
def archive(release: Release, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tarball."""
    return write_archive(release, tmp_path_factory.mktemp("archive"))


@pytest.fixture
def bootstrapped(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """The root of a minimal system of the distribution that the test asks for, from the mirror of this machine."""
    root = tmp_path / "root"
    log = tmp_path / "debootstrap.log"
    with log.open("wb") as out:
        done = subprocess.run(
            ["debootstrap", "--variant=minbase", request.param, root, debian_mirror()],
            stdout=out,
            stderr=out,
            check=False,
            timeout=900,
        )
    assert done.returncode == 0, log.read_text()[-2000:]
    yield root
    shutil.rmtree(root)


def debian_mirror() -> str:
    """Where this machine's apt has Debian from."""
    listing = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(ORIGIN) $(SITE)", "Created-By: Packages"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\n")
    return next(line.split(" ")[1] for line in sorted(listing) if line.startswith("Debian ") and "security" not in line)


@pytest.mark.long
@pytest.mark.skipif(shutil.which("debootstrap") is None, reason="debootstrap is not installed")
@pytest.mark.parametrize("bootstrapped", ["bookworm", "trixie"], indirect=True)
def test_a_distribution_without_python_takes_the_tarball(bootstrapped: Path, archive: Path, tmp_path: Path) -> None:
    shutil.copy(archive, bootstrapped / "tmp" / "release.tar.gz")
    with jail(bootstrapped) as node:
        node.output("tar", "-C", "/tmp", "-xzf", "/tmp/release.tar.gz")
        (unpacked,) = (bootstrapped / "tmp").glob("estargz-snapshotter-*")
        before = set(node.output("find", "/etc", "/usr", "/var/lib").splitlines())
        node.output("sh", f"/tmp/{unpacked.name}/install.sh")
        use(node, tmp_path / "log")
        node.output("sh", UNINSTALL)
        node.output("sh", f"/tmp/{unpacked.name}/install.sh")
        node.output("sh", UNINSTALL, "--purge")
        assert set(node.output("find", "/etc", "/usr", "/var/lib").splitlines()) == before
