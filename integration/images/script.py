"""A small image of two layers whose program is a script: a shell with its libraries below, the script and its files above."""

import hashlib
import io
import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

from integration.images.oci import Image, packed

SHELL = "usr/bin/dash"
SCRIPT = "app/run"
FIRST, SECOND, NEVER = "app/first", "app/second", "app/never-read"
LINE = "listening on 80"
SLEEPER = "usr/bin/busybox"
SLEEP = f"/{SLEEPER} sleep 1000"
USER, UID, GROUP_GID = "worker", 1234, 77
"""The image runs as this user, who is in one more group."""

# What the shell itself cannot do it has a program for. That is used before the line as well, so that every run that ends with the
# line reads the same files.
PROGRAM = f"""#!/{SHELL}
read -r word < /{FIRST}
echo "$word from $PWD as $(while read -r key value rest; do case $key in (Uid:) echo "$value";; esac; done < /proc/self/status)"
read -r word < /{SECOND}
echo "$word $GREETING" >&2
/{SLEEPER} true
case "$1" in
    serve) trap 'echo told to end; exit 0' TERM ;;
    stuck) trap '' TERM ;;
esac
echo {LINE}
case "$1" in
    serve) while read -r word; do echo "got $word"; done; echo no more input; {SLEEP} & wait ;;
    stuck) {SLEEP} ;;
    fail) exit 3 ;;
esac
"""


def script_image(folder: Path) -> Image:
    """The image; it is packed again when the machine's shell has changed."""
    shell = os.path.realpath(shutil.which("dash") or "/bin/sh")
    files = {
        SHELL: shell,
        SLEEPER: shutil.which("busybox") or "/bin/busybox",
        **{path[1:]: os.path.realpath(path) for path in _libraries(shell)},
    }
    passwd = f"root:x:0:0::/:/{SHELL}\n{USER}:x:{UID}:{UID}::/app:/{SHELL}\n"
    group = f"root:x:0:\n{USER}:x:{UID}:\nextra:x:{GROUP_GID}:{USER}\n"
    parts = (PROGRAM, passwd, group, [(name, os.stat(path).st_mtime_ns) for name, path in files.items()])
    recipe = hashlib.sha256(repr(parts).encode())

    def lower(tar: tarfile.TarFile) -> None:
        for name in ("dev", "etc", "proc", "run", "sys", "tmp"):
            _add(tar, f"{name}/", b"")
        _add(tar, "etc/passwd", passwd.encode())
        _add(tar, "etc/group", group.encode())
        _add(tar, "etc/unused", b"nobody reads this\n" * 1000)
        for name, path in sorted(files.items()):
            _add(tar, name, Path(path).read_bytes(), 0o755)

    def upper(tar: tarfile.TarFile) -> None:
        _add(tar, "app/", b"")
        _add(tar, NEVER, os.urandom(100_000))
        _add(tar, SECOND, b"second\n")
        _add(tar, FIRST, b"first\n")
        _add(tar, SCRIPT, PROGRAM.encode(), 0o755)

    run = {
        "Entrypoint": [f"/{SCRIPT}"],
        "Cmd": ["serve"],
        "WorkingDir": "/app",
        "User": USER,
        "Env": ["GREETING=hello"],
        "StopSignal": "SIGTERM",
    }
    return packed(folder, recipe.hexdigest(), (lower, upper), run)


def libraries() -> set[str]:
    """Names in the image of the shell's interpreter and libraries."""
    return {path[1:] for path in _libraries(os.path.realpath(shutil.which("dash") or "/bin/sh"))}


def _libraries(program: str) -> list[str]:
    """Paths of the program's interpreter and libraries, where a linker looks for them."""
    done = subprocess.run(["ldd", program], capture_output=True, text=True, check=True)
    return re.findall(r"(/\S+) \(0x", done.stdout)


def _add(tar: tarfile.TarFile, name: str, data: bytes, mode: int = 0o644) -> None:
    info = tarfile.TarInfo(name.rstrip("/"))
    info.size, info.mode = len(data), mode
    if name.endswith("/"):
        info.type, info.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp/" else 0o755
    tar.addfile(info, io.BytesIO(data))
