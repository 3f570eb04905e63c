"""A network namespace that CNI plugins connect: the first network that is configured, its plugins in order.

Source: CNI specification 1.0.0, section 1 (configuration), 2 (execution protocol) and 5 (result types).
"""

import json
import os
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from snapshotter.errors import ConfigError, SnapshotterError, StoreError
from snapshotter.image.optimize.apart import new_network

CONF_DIR = Path("/etc/cni/net.d")
PLUGIN_DIRS = (Path("/opt/cni/bin"), Path("/usr/lib/cni"))
"""Where CNI's own archives put plugins, and where Debian does."""

INTERFACE = "eth0"
PLUGIN_TIMEOUT_S = 60.0

_ENDINGS = (".conf", ".conflist", ".json")
_VERSION_UNSAID = "0.1.0"


@dataclass(frozen=True, slots=True)
class Network:
    """A configured network; `plugins` are their configurations, in order."""

    name: str
    version: str
    plugins: tuple[Mapping[str, Any], ...]


def first_network(folder: Path) -> Network:
    """The network whose file comes first in a directory of configurations, by name.

    Raises:
        ConfigError: there is none, or it cannot be understood.
    """
    try:
        names = sorted(name for name in os.listdir(folder) if name.endswith(_ENDINGS))
    except OSError as fault:
        raise ConfigError(f"--cni: no network is configured in {folder}: {fault.strerror}") from None
    if not names:
        raise ConfigError(
            f"--cni: {folder} has no network's configuration (*.conflist, *.conf); --cni-plugin-conf-dir names another"
        )
    path = folder / names[0]
    try:
        document = json.loads(path.read_bytes())
    except OSError as fault:
        raise ConfigError(f"{path}: {fault.strerror}") from None
    except (ValueError, RecursionError) as fault:
        raise ConfigError(f"{path} is not JSON: {fault}") from None
    if not isinstance(document, dict):
        raise ConfigError(f"{path} is not a network's configuration: no object")
    # A file for one plugin is that plugin's configuration with the network's name in it.
    plugins = document.get("plugins", [document])
    if not isinstance(plugins, list) or not plugins or not all(_is_plugin(plugin) for plugin in plugins):
        raise ConfigError(f"{path} is not a network's configuration: each plugin needs a type, the name of a program")
    name, version = document.get("name"), document.get("cniVersion", _VERSION_UNSAID)
    if not isinstance(name, str) or not name or not isinstance(version, str):
        raise ConfigError(f"{path} is not a network's configuration: its name is missing")
    return Network(name, version, tuple(plugins))


@asynccontextmanager
async def connected_network(network: Network, plugin_dirs: Sequence[Path], container_id: str) -> AsyncIterator[str]:
    """Yield the path of a new network namespace that the plugins have connected; they are undone when the block ends.

    Raises:
        ConfigError: a plugin's program is missing.
        StoreError: a plugin failed.
    """
    programs = [_program(str(plugin["type"]), plugin_dirs) for plugin in network.plugins]
    namespace = await trio.to_thread.run_sync(new_network)
    try:
        # The path of our descriptor, so that no file is left if this process is killed.
        path = f"/proc/{os.getpid()}/fd/{namespace}"
        chain = _Chain(network, programs, plugin_dirs, container_id, path)
        try:
            await chain.add()
            yield path
        except BaseException:
            with trio.CancelScope(shield=True):
                await chain.delete(quiet=True)
            raise
        with trio.CancelScope(shield=True):
            await chain.delete(quiet=False)
    finally:
        os.close(namespace)


class _Chain:
    """The plugins of one network for one container."""

    def __init__(
        self, network: Network, programs: Sequence[Path], plugin_dirs: Sequence[Path], container_id: str, path: str
    ) -> None:
        self._network = network
        self._programs = programs
        self._result: Mapping[str, Any] | None = None
        self._environ = {
            **os.environ,
            "CNI_CONTAINERID": container_id,
            "CNI_NETNS": path,
            "CNI_IFNAME": INTERFACE,
            "CNI_ARGS": "IgnoreUnknown=1",
            "CNI_PATH": ":".join(map(str, plugin_dirs)),
        }

    async def add(self) -> None:
        """Run every plugin, each with the result of the one before it."""
        for plugin, program in zip(self._network.plugins, self._programs, strict=True):
            self._result = await self._run("ADD", plugin, program)

    async def delete(self, *, quiet: bool) -> None:
        """Run them the other way round; all, also where one fails. What was never added is no error to a plugin."""
        failure: SnapshotterError | None = None
        for plugin, program in reversed(list(zip(self._network.plugins, self._programs, strict=True))):
            try:
                await self._run("DEL", plugin, program)
            except SnapshotterError as error:
                failure = failure or error
        if failure is not None and not quiet:
            raise failure

    async def _run(self, command: str, plugin: Mapping[str, Any], program: Path) -> Mapping[str, Any] | None:
        conf = {**plugin, "name": self._network.name, "cniVersion": self._network.version}
        # What the runtime could give by capabilities (port mappings and the like) nobody asked for.
        conf.pop("capabilities", None)
        if self._result is not None:
            conf["prevResult"] = self._result
        answer: subprocess.CompletedProcess[bytes] | None = None
        with trio.move_on_after(PLUGIN_TIMEOUT_S):
            try:
                answer = await trio.run_process(
                    [program],
                    stdin=json.dumps(conf).encode(),
                    capture_stdout=True,
                    capture_stderr=True,
                    check=False,
                    env={**self._environ, "CNI_COMMAND": command},
                )
            except OSError as fault:
                raise ConfigError(f"CNI plugin {program} cannot be run: {fault.strerror}") from None
        if answer is None:
            raise StoreError(f"CNI plugin {program} ({command}) did not end within {PLUGIN_TIMEOUT_S:.0f} s")
        if answer.returncode != 0:
            raise StoreError(f"CNI plugin {program} ({command}) failed: {_words(answer)}")
        result = _json(answer.stdout)
        return result if command == "ADD" else None


def _is_plugin(plugin: object) -> bool:
    kind = plugin.get("type") if isinstance(plugin, dict) else None
    return isinstance(kind, str) and kind not in ("", ".", "..") and "/" not in kind


def _program(kind: str, folders: Sequence[Path]) -> Path:
    for folder in folders:
        if os.access(folder / kind, os.X_OK):
            return folder / kind
    raise ConfigError(
        f"there is no CNI plugin {kind} in {', '.join(map(str, folders))}: install it (Debian: containernetworking-"
        "plugins), or say where it is with --cni-plugin-dir"
    )


def _words(answer: "subprocess.CompletedProcess[bytes]") -> str:
    """What a plugin says of its failure: an object with msg and details on standard output, else anything."""
    said = _json(answer.stdout)
    if said is not None and isinstance(said.get("msg"), str):
        return f"{said['msg']} {said.get('details') or ''}".strip()
    text = (answer.stderr or answer.stdout).decode("utf-8", "replace").strip()
    return text[-500:] or f"exit code {answer.returncode}"


def _json(data: bytes) -> dict[str, Any] | None:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None
