"""Layers from Debian's packages, downloaded by apt at the versions that its lists have then, and unpacked without scripts."""

import os
import subprocess
import tarfile
from pathlib import Path

MERGED = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
FOLDERS = ("dev", "etc", "proc", "root", "run", "sys", "tmp")


class PackageTree:
    """A root that grows by groups of packages below `place`; what each group adds is a layer."""

    def __init__(self, place: Path) -> None:
        self.root = place / "tree"
        self._packages = place / "packages"
        (self._packages / "partial").mkdir(parents=True)

    def install(self, group: tuple[str, ...], tar: tarfile.TarFile) -> None:
        """Unpack a group and all that it depends on over the root; into `tar` goes what was not there before."""
        before = set[Path]()
        if self.root.exists():
            before = set(self.root.rglob("*"))
        else:
            for name in (*(f"usr/{name}" for name in MERGED), *FOLDERS):
                (self.root / name).mkdir(parents=True)
            for name in MERGED:
                (self.root / name).symlink_to(f"usr/{name}")
        for package in self._download(group):
            with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE) as content:
                unpack = ["tar", "-x", "--keep-directory-symlink", "-C", str(self.root)]
                subprocess.run(unpack, stdin=content.stdout, check=True)
        self.add_new(tar, before)

    def add_new(self, tar: tarfile.TarFile, before: set[Path]) -> None:
        """Add everything that is not among `before`, and the folders above it."""
        new = set(self.root.rglob("*")) - before
        parents = {parent for path in new for parent in path.parents if self.root in parent.parents}
        for path in sorted(new | parents):
            info = tar.gettarinfo(path, str(path.relative_to(self.root)))
            info.uname = info.gname = ""
            info.mtime = int(os.lstat(path).st_mtime)
            if info.isreg():
                with open(path, "rb") as content:
                    tar.addfile(info, content)
            else:
                tar.addfile(info)

    def _download(self, names: tuple[str, ...]) -> list[Path]:
        """Have apt download `names` and what they depend on, as for a machine that has nothing; return the new files."""
        before = set(self._packages.glob("*.deb"))
        nothing = self._packages / "status"
        nothing.touch()
        options = {
            "Dir::State::status": nothing,
            "Dir::Cache::archives": self._packages,
            "Dir::Cache::pkgcache": "",
            "Dir::Cache::srcpkgcache": "",
            "Debug::NoLocking": "true",
            "APT::Sandbox::User": "root",
            "APT::Install-Recommends": "false",
        }
        words = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
        subprocess.run(["apt-get", "-qq", "-y", *words, "--download-only", "install", *names], check=True)
        return sorted(set(self._packages.glob("*.deb")) - before)
