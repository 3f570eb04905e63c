"""Sample images made from what the machine has: a real distribution, an interpreter, an application; and a pause image."""

import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from integration.images.oci import Image, Write, packed

# What a container of the sample image runs: an interpreter that loads pure and compiled modules.
WORKLOAD = ("python3", "-c", "import json, ssl, sqlite3, email.parser, http.client; print('ready', json.dumps([1]))")
SMALL_WORKLOAD = ("/bin/busybox", "cat", "/data/of-layer-1", "/data/changed")
SMALL_OUTPUT = "layer 1 says hello\nlayer 2 says hello\n"
RUN = {
    "Env": ["PATH=/usr/local/bin:/usr/bin:/bin", "PYTHONPATH=/opt/application", "PYTHONDONTWRITEBYTECODE=1"],
    "Cmd": ["python3"],
    "WorkingDir": "/",
}
MERGED = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
EMPTY_FOLDERS = (
    "dev",
    "opt",
    "opt/application",
    "proc",
    "root",
    "run",
    "sys",
    "tmp",
    "usr/local",
    "usr/local/bin",
    "usr/local/lib",
)
NOT_IN_INTERPRETER = {"test", "tests", "idlelib", "turtledemo", "site-packages", "dist-packages", "ensurepip"}


def sample_image(folder: Path) -> Image:
    """An image of three layers, well over 100 MB: Debian's required packages, Python, and this project's dependencies.

    Packed once into `folder` and again only after the machine's packages changed.
    """
    write, installed = distribution()
    parts = (installed, sys.version, *sorted(os.listdir(sysconfig.get_path("purelib"))))
    recipe = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    return packed(folder, recipe, (write, _interpreter, _application), RUN)


def distribution() -> tuple[Write, str]:
    """The lowest layer alone, and a word that changes when it would."""
    installed = _dpkg("--show", "--showformat", "${Package} ${Version} ${Priority}\\n")
    return _distribution, hashlib.sha256((installed + Path(__file__).read_text()).encode()).hexdigest()


def pause_image(folder: Path) -> Image:
    """One layer with a static busybox that sleeps: what holds a pod's namespaces."""
    write, recipe = _busybox()
    return packed(folder, recipe, (write,), {"Cmd": ["/bin/busybox", "sleep", "2147483647"]})


def small_image(folder: Path) -> Image:
    """Three layers of busybox and a few files: for what an image's size changes nothing of."""
    write, recipe = _busybox()

    def files(number: int) -> Write:
        def write_files(tar: tarfile.TarFile) -> None:
            tar.addfile(_folder("data"))
            for name in ("changed", f"of-layer-{number}"):
                text = f"layer {number} says hello\n".encode()
                info = tarfile.TarInfo(f"data/{name}")
                info.size = len(text)
                tar.addfile(info, io.BytesIO(text))

        return write_files

    return packed(folder, f"small {recipe}", (write, files(1), files(2)), {"Cmd": list(SMALL_WORKLOAD)})


def _busybox() -> tuple[Write, str]:
    """A layer with nothing but a static busybox, and a word that changes when it would."""
    busybox = shutil.which("busybox")
    if busybox is None:
        message = "no busybox found; run make setup"
        raise RuntimeError(message)

    def write(tar: tarfile.TarFile) -> None:
        for name in ("bin", "tmp"):
            tar.addfile(_folder(name))
        _add(tar, busybox, "bin/busybox")

    return write, f"{busybox} {os.stat(busybox).st_mtime_ns} {os.stat(busybox).st_size}"


def _distribution(tar: tarfile.TarFile) -> None:
    """What a minimal installation of Debian is, with its modes, owners and links."""
    paths = {_merged(path) for path in _dpkg("--listfiles", *_required_packages()).splitlines() if path.startswith("/")}
    paths |= {"/etc/passwd", "/etc/group", *(f"/{name}" for name in MERGED)}
    # Without an entry of its own a folder's time is that of the unpacking.
    paths |= {str(parent) for path in paths for parent in Path(path).parents}
    written = set()
    for path in sorted(path for path in paths if path != "/" and os.path.lexists(path)):
        _add(tar, path, path[1:])
        written.add(path[1:])
    for name in EMPTY_FOLDERS:
        if name not in written:
            tar.addfile(_folder(name, 0o1777 if name == "tmp" else 0o755))


def _interpreter(tar: tarfile.TarFile) -> None:
    """The Python that runs this, its standard library and every shared library that they need."""
    program = os.path.realpath(sys.executable)
    library = sysconfig.get_path("stdlib", vars={"installed_base": sys.base_prefix, "base": sys.base_prefix})
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    modules = [path for path in _walk(library) if not _left_out(os.path.relpath(path, library))]
    place = f"usr/lib/{sysconfig.get_config_var('MULTIARCH')}"
    folders = ("usr", "usr/local", "usr/local/bin", "usr/local/lib", f"usr/local/lib/{version}", "usr/lib", place)
    for name in folders:
        tar.addfile(_folder(name))
    _add(tar, program, "usr/local/bin/python3")
    for path in modules:
        _add(tar, path, f"usr/local/lib/{version}/{os.path.relpath(path, library)}")
    for name, path in sorted(_libraries([program, *(path for path in modules if path.endswith(".so"))]).items()):
        _add(tar, os.path.realpath(path), f"{place}/{name}")


def _application(tar: tarfile.TarFile) -> None:
    """What this project is built on, as an application's own layer: thousands of small files and some large ones."""
    library = sysconfig.get_path("purelib")
    for name in ("opt", "opt/application"):
        tar.addfile(_folder(name))
    for path in _walk(library):
        if "__pycache__" not in path:
            _add(tar, path, f"opt/application/{os.path.relpath(path, library)}")


def _required_packages() -> list[str]:
    """Installed packages of priority "required" and everything that they depend on."""
    fields = "${Package}\\t${binary:Package}\\t${Priority}\\t${Pre-Depends}, ${Depends}\\n"
    lines = [line.split("\t") for line in _dpkg("--show", "--showformat", fields).splitlines()]
    known = {name: (full, re.findall(r"(?:^|[,|]) *([a-z0-9.+-]+)", needs)) for name, full, _, needs in lines}
    chosen: set[str] = set()
    waiting = [name for name, _, priority, _ in lines if priority == "required"]
    while waiting:
        name = waiting.pop()
        if name in known and name not in chosen:
            chosen.add(name)
            waiting += known[name][1]
    return sorted(known[name][0] for name in chosen)


def _left_out(path: str) -> bool:
    first = path.partition(os.sep)[0]
    return first in NOT_IN_INTERPRETER or first.startswith("config-") or path.endswith(".a") or "__pycache__" in path


def _walk(top: str) -> Iterator[str]:
    """Everything below `top`, sorted, folders before what they hold."""
    with os.scandir(top) as listing:
        entries = sorted(listing, key=lambda entry: entry.name)
    for entry in entries:
        yield entry.path
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(entry.path)


def _libraries(binaries: Iterable[str]) -> dict[str, str]:
    """Shared libraries by name that the dynamic linker would load for `binaries`."""
    found = {}
    for binary in binaries:
        done = subprocess.run(["ldd", binary], capture_output=True, text=True, check=False)
        for line in done.stdout.splitlines():
            name, arrow, rest = line.strip().partition(" => ")
            if arrow and rest.startswith("/"):
                found[name] = rest.rpartition(" (")[0]
    return found


def _dpkg(*args: str) -> str:
    """The distribution's own knowledge of its files."""
    return subprocess.run(["dpkg-query", *args], capture_output=True, text=True, check=True).stdout


def _merged(path: str) -> str:
    """`path` with the links of a merged /usr followed in its folder, as it lies on disk."""
    head, _, rest = path[1:].partition("/")
    return f"/usr/{head}/{rest}" if rest and head in MERGED and os.path.islink(f"/{head}") else path


def _folder(name: str, mode: int = 0o755) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.mode = tarfile.DIRTYPE, mode
    return info


def _add(tar: tarfile.TarFile, path: str, name: str) -> None:
    """Add one file with its owner's numbers, nanoseconds and extended attributes; not what lies below a folder."""
    info = tar.gettarinfo(path, name)
    if info is None:  # a socket, which tar cannot hold
        return
    info.uname = info.gname = ""
    info.mtime = os.lstat(path).st_mtime_ns / 1e9
    info.pax_headers = {
        f"SCHILY.xattr.{name}": os.getxattr(path, name, follow_symlinks=False).decode("utf-8", "surrogateescape")
        for name in os.listxattr(path, follow_symlinks=False)
    }
    if info.isreg():
        with open(path, "rb") as content:
            tar.addfile(info, content)
    else:
        tar.addfile(info)
