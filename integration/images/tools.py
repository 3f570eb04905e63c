"""An image with three languages from Debian's packages: for the benchmarks that start programs in containers."""

import os
import shlex
import subprocess
import tarfile
import tempfile
from functools import partial
from pathlib import Path

from integration.images.oci import Image, packed

# One layer each, with everything that the packages need and no lower layer has.
GROUPS = (("dash", "coreutils", "findutils", "python3"), ("nodejs",), ("gcc", "libc6-dev"))
MERGED = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
FOLDERS = ("dev", "etc", "proc", "root", "run", "sys", "tmp")
READY = b"ready\n"
RUN = {"Env": ["PATH=/usr/bin", "PYTHONDONTWRITEBYTECODE=1"], "Cmd": ["python3"], "WorkingDir": "/"}
C_PROGRAM = (
    "#include <math.h>\n#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n#include <sys/socket.h>\n"
    '#include <time.h>\n#include <unistd.h>\nint main(void) { puts("ready"); return 0; }\n'
)
COMMANDS = {
    "python": (
        "/usr/bin/python3",
        "-c",
        "import asyncio, email.parser, http.client, json, logging.config, sqlite3, ssl, xml.dom.minidom; print('ready')",
    ),
    "node": ("/usr/bin/node", "-e", "require('/usr/share/nodejs/undici'); console.log('ready')"),
    "gcc": ("/bin/sh", "-c", f"echo {shlex.quote(C_PROGRAM)} | gcc -x c - -o /tmp/a && /tmp/a"),
}


def tools_image(folder: Path) -> Image:
    """Python with its bytecode, Node and a C compiler, in four layers; `COMMANDS` run in it.

    Packed once into `folder`; the packages come by apt, at the versions that its lists have then.
    """
    with tempfile.TemporaryDirectory() as place:
        tree, packages = Path(place, "tree"), Path(place, "packages")
        (packages / "partial").mkdir(parents=True)
        layers = [partial(_install, tree, packages, group) for group in GROUPS]
        return packed(folder, Path(__file__).read_text(), (*layers, partial(_compile, tree)), RUN)


def _install(tree: Path, packages: Path, group: tuple[str, ...], tar: tarfile.TarFile) -> None:
    """Unpack what a group needs over `tree`; into `tar` goes what was not there before."""
    if not tree.exists():
        for name in (*(f"usr/{name}" for name in MERGED), *FOLDERS):
            (tree / name).mkdir(parents=True)
        for name in MERGED:
            (tree / name).symlink_to(f"usr/{name}")
        before = set[Path]()
    else:
        before = set(tree.rglob("*"))
    for package in _download(packages, group):
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE) as content:
            unpack = ["tar", "-x", "--keep-directory-symlink", "-C", str(tree)]
            subprocess.run(unpack, stdin=content.stdout, check=True)
    _add_new(tar, tree, before)


def _compile(tree: Path, tar: tarfile.TarFile) -> None:
    """Python's bytecode, as Debian makes it when it installs the packages. It is taken whatever the source's time is."""
    before = set(tree.rglob("*"))
    compiler = ["/usr/bin/python3", "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash"]
    subprocess.run(
        ["chroot", str(tree), *compiler, "/usr/lib/python3.11"], check=True, env={"PATH": os.environ["PATH"]}
    )
    _add_new(tar, tree, before)


def _download(packages: Path, names: tuple[str, ...]) -> list[Path]:
    """Have apt download `names` and all that they depend on, as for a machine that has nothing; return the new files."""
    before = set(packages.glob("*.deb"))
    nothing = packages / "status"
    nothing.touch()
    options = {
        "Dir::State::status": nothing,
        "Dir::Cache::archives": packages,
        "Dir::Cache::pkgcache": "",
        "Dir::Cache::srcpkgcache": "",
        "Debug::NoLocking": "true",
        "APT::Sandbox::User": "root",
        "APT::Install-Recommends": "false",
    }
    words = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
    subprocess.run(["apt-get", "-qq", "-y", *words, "--download-only", "install", *names], check=True)
    return sorted(set(packages.glob("*.deb")) - before)


def _add_new(tar: tarfile.TarFile, tree: Path, before: set[Path]) -> None:
    """Add everything that is not among `before`, and the folders above it."""
    new = set(tree.rglob("*")) - before
    parents = {parent for path in new for parent in path.parents if tree in parent.parents}
    for path in sorted(new | parents):
        info = tar.gettarinfo(path, str(path.relative_to(tree)))
        info.uname = info.gname = ""
        info.mtime = int(os.lstat(path).st_mtime)
        if info.isreg():
            with open(path, "rb") as content:
                tar.addfile(info, content)
        else:
            tar.addfile(info)
