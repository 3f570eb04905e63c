"""Configuration: TOML to frozen dataclasses; every key, its default and its explanation live here and nowhere else.

`load` reads a file, `override` lays command line options over it, `dump` writes the commented file that
`snapshotter config default` prints. What these return has been checked; a mistake is a `ConfigError` that names the
file, the table, the key and what would be right.
"""

# ruff: noqa: RUF009 (_key is dataclasses.field with a check; what it returns is no shared default)

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar

from snapshotter.config_values import (
    BOOL,
    GIB,
    HOSTS,
    KIB,
    LISTENER,
    MIB,
    OUTAGE,
    PATH,
    PATHS,
    PATTERNS,
    SECONDS,
    SHARE,
    SIZE,
    Kind,
    count,
    number,
    one_of,
    outage_seconds,
    quote,
)
from snapshotter.errors import ConfigError

T = TypeVar("T")

DEFAULT_PATH = Path("/etc/estargz/config.toml")

RUN_DIR_BYTES_MAX = 20
"""Mount options end at one page: 128 lower directories named `<run>/l/<n>` fit only if `<run>` is this short."""

SOCKET_BYTES_MAX = 107
"""`sun_path` of a unix socket holds 108 bytes, the last of them NUL (unix(7))."""


def _key(default: T, kind: Kind, doc: str) -> T:
    """A key with its default, its check, and the sentence that `snapshotter config default` prints above it."""
    made: T = field(default=default, metadata={"doc": doc, "kind": kind})
    return made


@dataclass(frozen=True, slots=True)
class LazyConfig:
    """Which images may be pulled lazily, and what is asked of them."""

    allow: tuple[str, ...] = _key(
        ("*",),
        PATTERNS,
        "Images that may be lazy: shell patterns over the whole normalised reference, where * also matches slashes.",
    )
    deny: tuple[str, ...] = _key((), PATTERNS, "Images that are never lazy, even if allowed; containerd unpacks them.")
    allow_unverified: bool = _key(
        False,
        BOOL,
        "Also mount layers whose content nothing vouches for: legacy stargz, or an image that asks to skip verification.",
    )
    resolve_timeout_s: float = _key(
        30.0, SECONDS, "How long a pull waits to learn whether its layers can be lazy before it goes the ordinary way."
    )
    max_waiting_pulls: int = _key(
        16, count(1, 256), "Pulls that may wait for a registry at once; further ones go the ordinary way."
    )

    def admits(self, reference: str) -> bool:
        """Say whether the image with this normalised reference may be lazy; `deny` outranks `allow`."""
        return not any(fnmatchcase(reference, pattern) for pattern in self.deny) and any(
            fnmatchcase(reference, pattern) for pattern in self.allow
        )


@dataclass(frozen=True, slots=True)
class FetchConfig:
    """How content crosses the wire."""

    on_outage: str = _key(
        "wait:60s",
        OUTAGE,
        'What a read does while the registry is down: "error" at once, "wait" for ever, or wait so long: "wait:60s".',
    )
    prefetch: bool = _key(True, BOOL, "Fetch the part of a layer that its author marked as needed at start.")
    prefetch_size: int = _key(
        0, SIZE, "Bytes to prefetch from a layer whose author marked nothing; 0 prefetches nothing of such a layer."
    )
    prefetch_max: int = _key(512 * MIB, SIZE, "The most to prefetch from one layer, whatever the image asks for.")
    background: bool = _key(True, BOOL, "Fetch the rest of every layer while nothing more urgent is asked for.")
    background_bandwidth: int = _key(
        0, SIZE, "The most bytes per second that background fetching takes; 0 sets no limit."
    )
    background_delay_s: float = _key(
        2.0, number(0, 86400, " of seconds"), "How long after the last demand background fetching begins."
    )
    demand_window: int = _key(
        128 * KIB,
        SIZE,
        "Bytes of a blob that one demand read asks for, so that neighbours come with it; more where answers take long.",
    )
    connections_per_host: int = _key(24, count(1, 256), "Connections held open to one registry host.")

    @property
    def outage_wait_s(self) -> float:
        """Seconds that a read waits for a registry that is down: 0 for `error`, infinity for `wait`."""
        return outage_seconds(self.on_outage)


@dataclass(frozen=True, slots=True)
class CacheConfig:
    """What stays on the node."""

    share: str = _key(
        "node",
        one_of("node", "registry", "image"),
        "Who shares fetched files: every image of the node, images of one registry, or nobody beyond the image.",
    )
    quota: int = _key(0, SIZE, "The most bytes of fetched files to keep; 0 leaves it to min_free alone.")
    high_water: float = _key(0.95, SHARE, "Share of the quota at which files begin to leave.")
    low_water: float = _key(0.85, SHARE, "Share of the quota at which they stop leaving.")
    min_free: int = _key(1 * GIB, SIZE, "Bytes that stay free on the file system of root, whatever the quota.")
    keep_unreferenced: int = _key(
        0, SIZE, "Bytes of fetched files to keep for later although no image on the node names them any more."
    )


@dataclass(frozen=True, slots=True)
class RegistryConfig:
    """How registries are reached."""

    docker_config: Path | None = _key(
        None, PATH, "File with registry credentials; unset: $DOCKER_CONFIG/config.json, else ~/.docker/config.json."
    )
    config_path: tuple[Path, ...] = _key(
        (Path("/etc/containerd/certs.d"), Path("/etc/docker/certs.d")),
        PATHS,
        "Directories with a directory for each registry host that holds its hosts.toml, as containerd's config_path.",
    )
    credential_helper_timeout_s: float = _key(
        10.0, SECONDS, "How long a credential helper (credHelpers, credsStore of docker's config.json) may take."
    )
    plain_http: tuple[str, ...] = _key(
        (), HOSTS, "Registry hosts (host or host:port) spoken to without TLS; localhost is, without being named."
    )
    connect_timeout_s: float = _key(5.0, SECONDS, "How long a connection attempt may take.")
    read_timeout_s: float = _key(20.0, SECONDS, "How long a registry may send nothing before the request is repeated.")
    retries: int = _key(4, count(0, 100), "How often a failed request is repeated before it counts as failed.")


@dataclass(frozen=True, slots=True)
class ContainerdConfig:
    """The containerd that this daemon serves."""

    address: Path = _key(
        Path("/run/containerd/containerd.sock"),
        PATH,
        "containerd's socket: manifests that it fetched already are read there instead of fetched once more.",
    )


@dataclass(frozen=True, slots=True)
class MetricsConfig:
    """Figures for Prometheus."""

    address: str = _key(
        "",
        LISTENER,
        'Where GET /metrics is answered, such as "127.0.0.1:9717"; empty: nowhere. Anybody who gets there may read.',
    )


@dataclass(frozen=True, slots=True)
class TakeOverConfig:
    """What happens to running containers while no daemon serves them."""

    abort_after_s: int = _key(
        900,
        count(0, 604800),
        "How long readers wait for a daemon that has ended before the keeper aborts the FUSE connection; 0: for ever.",
    )
    resend: bool = _key(
        True,
        BOOL,
        "Have the kernel send again what a dead daemon had in hand (Linux 6.9); off: as on kernels that cannot.",
    )


@dataclass(frozen=True, slots=True)
class LogConfig:
    """What the daemon says on standard error."""

    level: str = _key("info", one_of("debug", "info", "warning", "error"), "The least important messages to show.")
    format: str = _key("text", one_of("text", "json"), "Lines for people, or one JSON object per line for programs.")


@dataclass(frozen=True, slots=True)
class Config:
    """The whole configuration of one daemon."""

    root: Path = _key(Path("/var/lib/estargz"), PATH, "Where snapshots, fetched files and the state live.")
    run_dir: Path = _key(
        Path("/run/estargz"), PATH, f"Where mounts and the socket live; a path of at most {RUN_DIR_BYTES_MAX} bytes."
    )
    address: Path | None = _key(
        None, PATH, "The unix socket that containerd and this program's commands use; unset: run_dir/snapshotter.sock."
    )
    plane: str = _key(
        "auto",
        one_of("auto", "fuse", "erofs"),
        "How a layer becomes a directory: erofs leaves all it can to the kernel, fuse runs anywhere; auto: erofs if it works.",
    )
    lazy: LazyConfig = LazyConfig()
    fetch: FetchConfig = FetchConfig()
    cache: CacheConfig = CacheConfig()
    registry: RegistryConfig = RegistryConfig()
    containerd: ContainerdConfig = ContainerdConfig()
    metrics: MetricsConfig = MetricsConfig()
    take_over: TakeOverConfig = TakeOverConfig()
    log: LogConfig = LogConfig()

    @property
    def socket(self) -> Path:
        """The unix socket: `address`, or its default in the run directory."""
        return self.address or self.run_dir / "snapshotter.sock"


def load(path: Path | None = None) -> Config:
    """Return the checked configuration of `path`; of None: of `DEFAULT_PATH`, or the defaults where that is absent.

    Raises:
        ConfigError: the file cannot be read, is not TOML, or holds a key or value that is wrong.
    """
    source = path or DEFAULT_PATH
    try:
        text = source.read_text(encoding="utf-8")
    except FileNotFoundError:
        if path is None:
            return Config()
        raise ConfigError(f"{path}: no such configuration file; give another, or none to run with defaults") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{source}: not UTF-8 at byte {error.start}; save it as UTF-8") from None
    except PermissionError:
        raise ConfigError(f"{source}: no permission to read it: run this command as root (sudo)") from None
    except OSError as error:
        raise ConfigError(f"{source}: cannot be read: {error.strerror}") from None
    return parse(text, str(source))


def parse(text: str, source: str) -> Config:
    """Return the checked configuration written in `text`; `source` names it in errors.

    Raises:
        ConfigError: not TOML, or a key or value is wrong.
    """
    try:
        tables = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:
        # ValueError: digits beyond Python's own limit for integers; RecursionError: a thousand brackets.
        raise ConfigError(f"{source}: not valid TOML: {error}") from None
    config = _read_table(Config(), tables, source, "")
    _check_together(config, source)
    return config


def override(config: Config, table: str = "", **options: Path | str | None) -> Config:
    """Return `config` with the options that are not None laid over it: command line before file.

    `table` is the table that the keys belong to, "" for those at the top.

    Raises:
        ConfigError: a value is wrong; the option is named.
    """
    for name, value in options.items():
        if value is not None:
            entry = {name: str(value)}
            option = f"--{table}-{name}" if table else f"--{name.replace('_', '-')}"
            config = _read_table(config, {table: entry} if table else entry, option, "")
    _check_together(config, "with the options given")
    return config


def dump(config: Config) -> str:
    """Return `config` as a TOML file with every key and its explanation; `parse` reads it back to an equal value."""
    lines = [f"# {Config.__doc__}", ""]
    lines += _dump_keys(config)
    for table in fields(config):
        value = getattr(config, table.name)
        if is_dataclass(value):
            lines += [f"# {value.__doc__}", f"[{table.name}]", "", *_dump_keys(value)]
    return "\n".join(lines).rstrip() + "\n"


def _dump_keys(config: Any) -> list[str]:
    lines = []
    for key in fields(config):
        value = getattr(config, key.name)
        if is_dataclass(value):
            continue
        shown = f'# {key.name} = "/…"' if value is None else f"{key.name} = {key.metadata['kind'].show(value)}"
        lines += [f"# {key.metadata['doc']}", shown, ""]
    return lines


def _read_table(into: T, table: Mapping[str, object], source: str, name: str) -> T:
    """Return the dataclass `into` with the keys of one TOML table laid over it; `name` is "" at the top."""
    known = {key.name: key for key in fields(into)}  # type: ignore[arg-type]
    where = f"{source}: [{name}] " if name else f"{source}: "
    read: dict[str, Any] = {}
    for key, value in table.items():
        if key not in known:
            raise ConfigError(f"{where}{quote(key)}: no such {'key' if name else 'key or table'}{_nearest(key, known)}")
        current = getattr(into, key)
        if is_dataclass(current):
            if not isinstance(value, dict):
                raise ConfigError(f"{where}{key} is a table: write its keys below a line [{key}]")
            read[key] = _read_table(current, value, source, key)
            continue
        try:
            read[key] = known[key].metadata["kind"].read(value)
        except ValueError as error:
            raise ConfigError(f"{where}{key} must be {error}; it is {_shorten(value)}") from None
    return replace(into, **read)  # type: ignore[type-var]


def _nearest(key: str, known: Mapping[str, object]) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if near:
        return f"; did you mean {near[0]}?"
    for table in fields(Config()):
        if is_dataclass(table.default) and key in {inner.name for inner in fields(table.default)}:
            return f"; it belongs below [{table.name}]"
    return f"; there are {', '.join(sorted(known))}"


def _shorten(value: object) -> str:
    text = quote(value) if isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _check_together(config: Config, source: str) -> None:
    """Refuse values that are wrong only together, or only for the kernel."""
    run_dir, socket = bytes(config.run_dir), bytes(config.socket)
    if len(run_dir) > RUN_DIR_BYTES_MAX:
        raise ConfigError(
            f"{source}: run_dir {config.run_dir} is {len(run_dir)} bytes long; the kernel takes mount options of one "
            f"page, so at most {RUN_DIR_BYTES_MAX} are possible: choose a shorter path such as /run/estargz"
        )
    if len(socket) > SOCKET_BYTES_MAX:
        raise ConfigError(
            f"{source}: address {config.socket} is {len(socket)} bytes long; a unix socket's path has at most "
            f"{SOCKET_BYTES_MAX}: choose a shorter one"
        )
    for name, path in (("root", config.root), ("run_dir", config.run_dir)):
        # overlayfs splits lowerdir at ":", mount options at ",", and takes a backslash as its escape.
        if any(mark in str(path) for mark in ':,\\"\n') or ".." in path.parts:
            raise ConfigError(f'{source}: {name} {quote(path)} must not contain ":", ",", a quote, a backslash or ".."')
        if path == Path("/"):
            raise ConfigError(f"{source}: {name} is the root of the file system; give it a directory of its own")
    if config.root == config.run_dir:
        raise ConfigError(f"{source}: root and run_dir are both {config.root}; they must be two directories")
    if config.cache.low_water >= config.cache.high_water:
        raise ConfigError(
            f"{source}: [cache] low_water {config.cache.low_water:g} must be below high_water "
            f"{config.cache.high_water:g}, else files would leave without end"
        )
