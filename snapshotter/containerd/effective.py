"""What containerd makes of its configuration: asked of its own program, which merges imports and migrates old versions."""

import os
import subprocess
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from snapshotter.containerd.finding import Found, arguments_of, option
from snapshotter.errors import ConfigError, ContainerdError

TIMEOUT_S = 30.0

_FROM_COMMAND_LINE = {"root": ("root",), "state": ("state",)}


def effective(found: Found) -> Mapping[str, Any]:
    """The tables that `found` would start with now, with the directories that its command line overrides.

    Raises:
        ConfigError: containerd does not take the file.
        ContainerdError: its program is not there, or cannot be run.
    """
    tables = dumped(found, found.config_path)
    arguments = arguments_of(found.pid)
    for key, names in _FROM_COMMAND_LINE.items():
        value = option(arguments, *names)
        if value:
            tables[key] = value
    return tables


def dumped(found: Found, config_path: Path | None) -> dict[str, Any]:
    """The tables that the program of `found` makes of a file, imports merged; its defaults for None.

    Raises:
        ConfigError: containerd does not take the file; its own words are in the message.
        ContainerdError: its program is not there, or cannot be run.
    """
    if found.binary is None:
        raise ContainerdError(
            f"the program of the containerd at {found.address} is not to be found, neither by its process nor on PATH: "
            "run this command where containerd runs, as root"
        )
    words = ["--config", str(config_path), "config", "dump"] if config_path else ["config", "default"]
    try:
        # Several programs in one, as that of k3s, look at their name to know which one to be.
        done = subprocess.run(
            ["containerd", *words],
            executable=found.binary,
            capture_output=True,
            timeout=TIMEOUT_S,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        )
    except subprocess.TimeoutExpired:
        raise ContainerdError(f"{found.binary} {' '.join(words)} did not end within {TIMEOUT_S:.0f} s") from None
    except OSError as error:
        raise ContainerdError(f"cannot run {found.binary}: {error.strerror}; run this command as root") from None
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip() or f"exit status {done.returncode}"
        raise ConfigError(f"{config_path or 'the defaults'}: containerd does not take it: {said}")
    try:
        return tomllib.loads(done.stdout.decode("utf-8", "replace"))
    except tomllib.TOMLDecodeError as error:
        raise ContainerdError(f"{found.binary} {' '.join(words)} printed no TOML: {error}") from None
