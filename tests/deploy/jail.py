"""A system in a directory: its own root, mounts that no other process sees, and the kernel's own file systems."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from dev.distribution.libraries import loader
from integration.harness.process import Process, accepts

TIMEOUT_S = 120
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# glibc, and what of it names are resolved with: what a node brings.
C_LIBRARY = ("libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1", "libresolv.so.2")
_MOUNTS = (
    ("-t", "proc", "proc", "proc"),
    ("-t", "sysfs", "sysfs", "sys"),
    ("--bind", "/dev", "dev"),
    ("-t", "tmpfs", "tmpfs", "run"),
)


class Jail:
    """Runs programs in it; they get no variable of ours but PATH."""

    def __init__(self, root: Path, holder: int) -> None:
        self.root = root
        self._namespace = ["nsenter", f"--mount=/proc/{holder}/ns/mnt"]
        self._enter = [*self._namespace, "chroot", str(root), "/usr/bin/env", "-i"]
        self._env = {"PATH": PATH}

    def attach(self, folder: Path, name: str) -> None:
        """Show a folder of this machine read-only as `/<name>`, where there is a directory."""
        target = self.root / name
        for words in (["--bind", str(folder), str(target)], ["-o", "remount,bind,ro", str(target)]):
            subprocess.run([*self._namespace, "mount", *words], check=True)

    def run(self, *command: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Run it to its end, whatever the end is."""
        return subprocess.run(self._argv(command, env), capture_output=True, text=True, check=False, timeout=TIMEOUT_S)

    def output(self, *command: str, env: Mapping[str, str] | None = None) -> str:
        """Standard output of a program that must succeed."""
        done = self.run(*command, env=env)
        assert done.returncode == 0, f"{command} ended with {done.returncode}: {done.stdout}{done.stderr}"
        return done.stdout

    @contextmanager
    def daemon(self, log: Path, *command: str, env: Mapping[str, str] | None = None) -> Iterator[Process]:
        """A process that becomes ready when containerd could call it; it is stopped at the end."""
        process = Process("snapshotter", self._argv(command, env), log)
        try:
            # Seen from here the socket is on a file system that only the jail has.
            socket = Path("/proc", str(process.pid), "root", "run", "estargz", "snapshotter.sock")
            process.wait_until(lambda: accepts(str(socket)), TIMEOUT_S)
            yield process
        finally:
            process.stop(timeout_s=60)

    def _argv(self, command: tuple[str, ...], env: Mapping[str, str] | None) -> list[str]:
        variables = [f"{name}={value}" for name, value in {**self._env, **(env or {})}.items()]
        return [*self._enter, *variables, *command]


@contextmanager
def jail(root: Path) -> Iterator[Jail]:
    """`root` as a system. Its mounts live in a namespace that goes with its last process, also when a test fails.

    That may be a keeper, which lasts as long as the mounts do: it is killed.
    """
    for name in ("proc", "sys", "dev", "run", "tmp"):
        (root / name).mkdir(exist_ok=True)
    mounts = " && ".join(f"mount {' '.join(words[:-1])} '{root}/{words[-1]}'" for words in _MOUNTS)
    holder = subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", f"{mounts} && echo ready && read -r wait"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == b"ready\n"
        yield Jail(root, holder.pid)
    finally:
        for pid in _others_in_namespace_of(holder.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        holder.stdin.close()
        holder.wait(TIMEOUT_S)
        holder.stdout.close()


def _others_in_namespace_of(holder: int) -> Iterator[int]:
    """Processes that see the mounts of `holder`, a child of ours in a mount namespace of its own."""
    own = os.readlink(f"/proc/{holder}/ns/mnt")
    if own == os.readlink("/proc/self/ns/mnt"):
        return
    for name in os.listdir("/proc"):
        with suppress(OSError):
            if name.isdecimal() and int(name) != holder and os.readlink(f"/proc/{name}/ns/mnt") == own:
                yield int(name)


def minimal_root(root: Path) -> Path:
    """Make `root` a system of a static busybox and the C library: no Python, no OpenSSL, no libfuse, no package manager."""
    for name in ("bin", "usr/bin", "etc", "var/lib", "tmp"):
        (root / name).mkdir(parents=True)
    busybox = shutil.which("busybox")
    assert busybox is not None
    shutil.copy(busybox, root / "bin" / "busybox")
    applets = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split()
    for applet in applets:
        if applet != "busybox":
            (root / "bin" / applet).symlink_to("busybox")
    (root / "usr/bin/env").symlink_to("/bin/env")
    for library in c_library():
        target = root / library.relative_to("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library, target)
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\n")
    return root


def c_library() -> Iterator[Path]:
    """The C library's files on this machine, and the loader, by the paths that programs ask for."""
    listing = subprocess.run(["ldconfig", "-p"], capture_output=True, text=True, check=True).stdout
    for line in listing.splitlines():
        name, _, path = line.strip().partition(" => ")
        if name.split(" ")[0] in C_LIBRARY and "x32" not in line:
            yield Path(path)
    yield Path(loader(Path(sys.executable)))
