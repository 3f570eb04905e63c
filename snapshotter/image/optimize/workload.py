"""What a sample container is to run: the image's own configuration, and what the command line has to say about it. Pure."""

import csv
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from snapshotter.errors import ConfigError, FormatError

DEFAULT_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class Mount:
    """One more mount of the container, as the OCI runtime specification has it."""

    destination: str
    kind: str
    source: str
    options: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Overrides:
    """What the command line says instead of the image; None or empty where it says nothing."""

    entrypoint: tuple[str, ...] | None = None
    args: tuple[str, ...] | None = None
    env: tuple[str, ...] = ()
    cwd: str = ""
    user: str = ""
    mounts: tuple[Mount, ...] = ()
    terminal: bool = False


@dataclass(frozen=True, slots=True)
class Workload:
    """A program with all that it gets."""

    args: tuple[str, ...]
    env: tuple[str, ...]
    cwd: str
    user: str
    mounts: tuple[Mount, ...]
    stop_signal: str
    terminal: bool


def workload_of(config: Mapping[str, Any], overrides: Overrides) -> Workload:
    """What runs in a container of the image whose configuration is `config`.

    Raises:
        ConfigError: nobody says what to run.
        FormatError: the configuration says it in a form that it must not have.
    Source: OCI Image Specification 1.1, config.md and conversion.md; containerd's oci.WithImageConfig.
    """
    run = config.get("config")
    if run is None:
        run = {}
    if not isinstance(run, Mapping):
        raise FormatError("the image's config has a member `config` that is no object")
    entrypoint = overrides.entrypoint if overrides.entrypoint is not None else _texts(run, "Entrypoint")
    command = overrides.args if overrides.args is not None else _texts(run, "Cmd")
    args = (*entrypoint, *command)
    if not args or not args[0]:
        raise ConfigError(
            """the image says no program to run (neither Entrypoint nor Cmd): name one, such as --args '["/bin/app"]', """
            "or convert without a run: --no-optimize"
        )
    cwd = overrides.cwd or _text(run, "WorkingDir") or "/"
    if not cwd.startswith("/"):
        raise ConfigError(f"working directory {cwd!r}: it must begin with / (set another one with --cwd)")
    env = merge_env(["TERM=xterm"] if overrides.terminal else [], _texts(run, "Env") or (DEFAULT_PATH,))
    return Workload(
        args=args,
        env=tuple(merge_env(env, overrides.env)),
        cwd=cwd,
        user=overrides.user or _text(run, "User"),
        mounts=overrides.mounts,
        stop_signal=_text(run, "StopSignal"),
        terminal=overrides.terminal,
    )


def merge_env(below: Sequence[str], above: Sequence[str]) -> list[str]:
    """`below` with what `above` sets; a word of `above` without "=" takes a variable out."""
    merged = {entry.partition("=")[0]: entry for entry in below}
    for entry in above:
        name, equals, _ = entry.partition("=")
        if equals:
            merged[name] = entry
        else:
            merged.pop(name, None)
    return list(merged.values())


def parse_words(option: str, text: str) -> tuple[str, ...]:
    """The JSON array of words that an option holds.

    Raises:
        ConfigError: it is none.
    """
    try:
        words = json.loads(text)
    except (ValueError, RecursionError):
        words = None
    if not isinstance(words, list) or not all(isinstance(word, str) and "\0" not in word for word in words):
        raise ConfigError(f"""{option} {text!r}: write a JSON array of words, such as '["python3", "-m", "app"]'""")
    return tuple(words)


def check_env(entries: Sequence[str]) -> None:
    """Refuse settings of the command line that name no variable.

    Raises:
        ConfigError: one does not. Its value is nobody's business.
    """
    if any(not entry.partition("=")[0] for entry in entries):
        raise ConfigError("--env: the variable's name is missing; write NAME=VALUE, or NAME alone to take one out")


def parse_env_file(name: str, text: str, environ: Mapping[str, str]) -> list[str]:
    """The variables of an environment file: NAME=VALUE on a line, "#" begins a comment; NAME alone takes ours.

    Raises:
        ConfigError: a line that is neither.
    """
    found = []
    for number, line in enumerate(text.removeprefix("\ufeff").splitlines(), 1):
        entry = line.lstrip()
        if not entry or entry.startswith("#"):
            continue
        variable, equals, _ = entry.partition("=")
        if not variable or any(sign.isspace() for sign in variable):
            # The line may hold what nobody else must see.
            raise ConfigError(f"{name} line {number} is not NAME=VALUE; a name has no blanks")
        if equals:
            found.append(entry)
        elif variable in environ:
            found.append(f"{variable}={environ[variable]}")
    return found


def parse_mount(text: str) -> Mount:
    """A mount as ctr writes it: type=TYPE,source=PATH,destination=PATH,options=WORD:WORD.

    Raises:
        ConfigError: it is none.
    """
    wrong = f"--mount {text!r}: "
    values = {"type": "", "source": "", "destination": "", "options": ""}
    try:
        fields = next(csv.reader([text]), [])
    except csv.Error as error:
        raise ConfigError(f"{wrong}{error}") from None
    for field in fields:
        key, equals, value = field.partition("=")
        key = {"src": "source", "dst": "destination"}.get(key, key)
        if not equals or key not in values:
            raise ConfigError(
                f"{wrong}{field!r} is not one of type=, source= (src=), destination= (dst=), options=; an example: "
                "type=bind,source=/data,destination=/data,options=rbind:ro"
            )
        values[key] = value
    if not values["destination"].startswith("/"):
        raise ConfigError(f"{wrong}a destination is missing that begins with /")
    options = tuple(filter(None, values["options"].split(":")))
    bound = values["type"] in ("bind", "rbind") or {"bind", "rbind"} & set(options)
    if not bound:
        return Mount(values["destination"], values["type"], values["source"], options)
    if not values["source"]:
        raise ConfigError(f"{wrong}a source is missing, the path on this machine")
    if not {"bind", "rbind"} & set(options):
        options = ("rbind", *options)  # the runtime goes by the options alone
    source = os.path.abspath(values["source"])
    return Mount(values["destination"], values["type"] or "bind", source, options)


def _texts(run: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = run.get(key)
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise FormatError(f"the image's config has a {key} that is no list of texts")
    return tuple(value)


def _text(run: Mapping[str, Any], key: str) -> str:
    value = run.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise FormatError(f"the image's config has a {key} that is no text")
    return value
