"""containerd with everything it writes below one folder, and the two ways to talk to it: ctr and CRI."""

import shlex
import signal
import subprocess
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from integration.harness.process import Process, accepts
from snapshotter.containerd.introspection import Version, parse_version

COMMAND_TIMEOUT_S = 300
# cri: no CAP_SYS_RESOURCE in many test environments, where runc cannot lower a score and dies without a word.
CONFIG = """\
version = 2
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper"]
[grpc]
  address = "{folder}/c.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "{folder}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  stream_server_port = "0"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{folder}/cni"
    conf_dir = "{folder}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "{snapshotter}"
    disable_snapshot_annotations = false
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        Root = "{folder}/runc"
"""
PROXY = """\
[proxy_plugins.{name}]
  type = "snapshot"
  address = "{address}"
"""


class CommandFailed(RuntimeError):
    """A command line tool ended with an error; the message has its words."""


class Containerd:
    """One containerd. `proxies` maps plugin names to the sockets of snapshotters."""

    def __init__(self, folder: Path, pause: str, snapshotter: str, proxies: Mapping[str, Path]) -> None:
        folder.mkdir()
        self.folder = folder
        self.address = folder / "c.sock"
        text = CONFIG.format(folder=folder, pause=pause, snapshotter=snapshotter)
        text += "".join(PROXY.format(name=name, address=address) for name, address in proxies.items())
        (folder / "config.toml").write_text(text)
        self._process: Process | None = None

    def start(self) -> None:
        """Start it; running containers of an earlier start are found again."""
        argv = ["containerd", "--config", str(self.folder / "config.toml")]
        self._process = Process("containerd", argv, self.folder / "log")
        self._process.wait_until(lambda: accepts(str(self.address)))

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End it with a signal; containers go on."""
        if self._process:
            self._process.stop(number)
            self._process = None

    def log(self) -> str:
        """Everything it said so far."""
        return (self.folder / "log").read_text(errors="replace")

    def ctr(self, namespace: str = "default", program: str = "ctr") -> "Ctr":
        """containerd's command line, or another program that speaks it, in one namespace."""
        return Ctr(self, namespace, program)


class Ctr:
    """`ctr` against one containerd and one namespace; call it with arguments. `prefix` is what stands before them."""

    def __init__(self, containerd: Containerd, namespace: str, program: str) -> None:
        self._folder = containerd.folder
        self.prefix = [program, "--address", str(containerd.address), "--namespace", namespace]

    def __call__(self, *args: str) -> str:
        """Run it and return standard output.

        Raises:
            CommandFailed: it ended with an error.
        """
        return run([*self.prefix, *args])

    def run(self, image: str, name: str, command: Sequence[str], *, snapshotter: str, cgroup: str) -> str:
        """Run a container to its end and return what it printed, on standard error too; remove it."""
        where = ("--runc-root", str(self._folder / "runc"), "--cgroup", f"/{cgroup}/{name}")
        words = ("run", "--rm", "--snapshotter", snapshotter, *where)
        return self.listening(name, words, image, name, *command)

    def listening(self, name: str, words: Sequence[str], *args: str) -> str:
        """Run `words` with `args`, and return what the program printed that they start in a container.

        The shim writes it down, in a file called `name`: ctr stops reading when the program has ended, whether it has
        read everything or not.
        """
        printed = self._folder / "printed" / name
        printed.unlink(missing_ok=True)
        try:
            self(*words, "--log-uri", f"file://{printed}", *args)
        except CommandFailed as error:
            said = printed.read_text(errors="replace") if printed.exists() else ""
            raise CommandFailed(f"{error}\n{said}".rstrip()) from None
        return printed.read_text(errors="replace")

    def content(self) -> list[str]:
        """Digests of the blobs in the content store."""
        return self("content", "ls", "--quiet").split()

    def pull(self, reference: str, snapshotter: str) -> None:
        """Download an image and unpack it; ctr itself does so, for any snapshotter that containerd knows."""
        own = ("--local",) if containerd_version().major >= 2 else ()
        self("images", "pull", "--plain-http", *own, "--snapshotter", snapshotter, reference)

    def images(self) -> list[str]:
        """References of the images."""
        return self("images", "ls", "--quiet").split()

    def snapshots(self, snapshotter: str) -> list[str]:
        """Keys of the snapshots."""
        return [line.split()[0] for line in self("snapshots", "--snapshotter", snapshotter, "ls").splitlines()[1:]]

    def view(self, snapshotter: str, key: str, parent: str) -> None:
        """Make a read-only view of a committed snapshot, which stays until it is removed."""
        for last in (False, False, True):
            self("snapshots", "--snapshotter", snapshotter, "view", key, parent)
            # ctr marks no view as used: a collection that is due just now takes it away before its label is there.
            try:
                self("snapshots", "--snapshotter", snapshotter, "label", key, f"containerd.io/gc.root={key}")
                break
            except CommandFailed as error:
                if last or "not found" not in str(error):
                    raise

    def mounted_view(self, snapshotter: str, key: str, parent: str, target: Path) -> None:
        """Make a view and mount it at `target`, as containerd says it is mounted."""
        self.view(snapshotter, key, parent)
        commands = self("snapshots", "--snapshotter", snapshotter, "mounts", str(target), key)
        for command in filter(None, commands.splitlines()):
            run(shlex.split(command))

    def prepare(self, snapshotter: str, key: str) -> None:
        """Make an active snapshot of nothing."""
        self("snapshots", "--snapshotter", snapshotter, "prepare", key)

    def remove_snapshot(self, snapshotter: str, key: str) -> None:
        """Remove a snapshot."""
        self("snapshots", "--snapshotter", snapshotter, "rm", key)


@cache
def containerd_version() -> Version:
    """The version of the containerd that is started here: that on PATH."""
    found = parse_version(run(["containerd", "--version"]).split()[2])
    assert found is not None
    return found


def run(argv: Sequence[str], timeout_s: float = COMMAND_TIMEOUT_S) -> str:
    """Run a command and return its standard output.

    Raises:
        CommandFailed: it ended with an error; the message has its words.
    """
    done = subprocess.run([*argv], capture_output=True, text=True, errors="replace", timeout=timeout_s, check=False)
    if done.returncode:
        message = f"{shlex.join(argv)} ended with {done.returncode}: {done.stderr.strip() or done.stdout.strip()}"
        raise CommandFailed(message)
    return done.stdout
