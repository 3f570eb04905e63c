"""Configuration: TOML to frozen dataclasses; every key, its default and its explanation live here and nowhere else."""

from dataclasses import dataclass, field
from pathlib import Path

MIB = 1 << 20
GIB = 1 << 30


def _key(default: object, doc: str) -> object:
    """A configuration key with its default and the sentence that `snapshotter config default` prints above it."""
    return field(default=default, metadata={"doc": doc})


@dataclass(frozen=True, slots=True)
class LazyConfig:
    """Which images may be pulled lazily, and what is asked of them."""

    allow: tuple[str, ...] = ("*",)
    deny: tuple[str, ...] = ()
    allow_unverified: bool = False
    resolve_timeout_s: float = 30.0
    max_waiting_pulls: int = 16


@dataclass(frozen=True, slots=True)
class FetchConfig:
    """How content crosses the wire."""

    on_outage: str = "wait:60s"
    prefetch: bool = True
    prefetch_size: int = 0
    prefetch_max: int = 512 * MIB
    background: bool = True
    background_bandwidth: int = 0
    background_delay_s: float = 2.0
    demand_window: int = 128 * 1024
    connections_per_host: int = 24


@dataclass(frozen=True, slots=True)
class CacheConfig:
    """What stays on the node."""

    share: str = "node"
    quota: int = 0
    high_water: float = 0.95
    low_water: float = 0.85
    min_free: int = 1 * GIB
    keep_unreferenced: int = 0


@dataclass(frozen=True, slots=True)
class RegistryConfig:
    """How registries are reached."""

    docker_config: Path | None = None
    plain_http: tuple[str, ...] = ()
    connect_timeout_s: float = 5.0
    read_timeout_s: float = 20.0
    retries: int = 4


@dataclass(frozen=True, slots=True)
class LogConfig:
    """What the daemon says on standard error."""

    level: str = "info"
    format: str = "text"


@dataclass(frozen=True, slots=True)
class Config:
    """The whole configuration of one daemon."""

    root: Path = Path("/var/lib/estargz")
    run_dir: Path = Path("/run/estargz")
    address: Path | None = None
    plane: str = "auto"
    lazy: LazyConfig = LazyConfig()
    fetch: FetchConfig = FetchConfig()
    cache: CacheConfig = CacheConfig()
    registry: RegistryConfig = RegistryConfig()
    log: LogConfig = LogConfig()
