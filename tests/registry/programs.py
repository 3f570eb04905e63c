"""Credential helpers as tests need them: small programs in a folder of the test's own, and a config.json that names them."""

import json
from collections.abc import Mapping
from pathlib import Path

from snapshotter.registry.credentials import DockerConfig

Environ = Mapping[str, str]


def make_environ(folder: Path) -> Environ:
    """An environment whose PATH begins with an empty folder, and whose HOME is `folder`."""
    (folder / "bin").mkdir()
    return {"PATH": f"{folder / 'bin'}:/usr/bin:/bin", "HOME": str(folder)}


def helper(environ: Environ, script: str, name: str = "site") -> Path:
    """A helper that notes what it is asked in `asked`, then does what `script` says."""
    path = Path(environ["PATH"].partition(":")[0]) / f"docker-credential-{name}"
    beside = path.with_suffix(".new")
    beside.write_text(f'#!/bin/sh\nread -r server; echo "$1 $server" >>"$HOME/asked"\n{script}\n')
    beside.chmod(0o755)
    # In one step, as a package manager does: it may be running.
    beside.rename(path)
    return path


def asked(environ: Environ) -> list[str]:
    """What helpers were asked so far."""
    path = Path(environ["HOME"]) / "asked"
    return path.read_text().splitlines() if path.exists() else []


def says(answer: str) -> str:
    """A script that prints `answer`."""
    return f"cat <<'END'\n{answer}\nEND"


def gives(environ: Environ, password: str, username: str = "me") -> Path:
    """A helper that has this password."""
    return helper(environ, says(json.dumps({"Username": username, "Secret": password})))


def config(environ: Environ, **document: object) -> DockerConfig:
    """A config.json with these keys, in the home of `environ`."""
    path = Path(environ["HOME"]) / "config.json"
    path.write_text(json.dumps(document))
    return DockerConfig(path, environ, helper_timeout_s=20.0)
