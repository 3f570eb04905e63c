"""What a blob is made of: how it is cut, what compresses it, where its TOC lies."""

from dataclasses import dataclass

from snapshotter.errors import ConfigError
from snapshotter.format.codec import Codec as Compression

__all__ = ["Compression", "WriterOptions"]

CHUNK_SIZE_DEFAULT = 4 << 20
CHUNK_SIZE_MIN = 4 << 10
CHUNK_SIZE_MAX = 64 << 20


@dataclass(frozen=True, slots=True)
class Levels:
    """From the fastest level of a compression to the one that makes least, and which is taken if nobody says."""

    least: int
    most: int
    default: int


# libdeflate's. Of a Debian image, 326 MB in 5500 members, 6 makes 124.1 MB in 3.1 s of one processor, 7 123.6 in 4.2, 9 123.3 in
# 8.5, 12 119.9 in 38; ctr-remote's zlib at its level 9 makes 128.5 and needs more than 30 [measured].
GZIP_LEVELS = Levels(1, 12, 6)
# zstd's. Of the same, 3 makes 125.0 MB in 1.0 s, 5 121.4 in 2.3, 7 118.6 in 3.1; ctr-remote at its default 128.5 [measured].
# Those beyond 19 take windows and memory that readers need not have.
ZSTD_LEVELS = Levels(1, 19, 3)


@dataclass(frozen=True, slots=True)
class WriterOptions:
    """How a blob is cut and compressed.

    `chunk_size` is plain bytes. `level` is that of the compression, None its default. `parallelism` is how many batches
    may be under way at once and changes memory and speed, never the result. `min_chunk_size`: contents of fewer bytes go on
    in the member before, as long as that holds less than so many plain bytes, headers and padding included (0: every
    content begins a member). `compression` also says the format: eStargz for gzip, zstd:chunked for zstd. `external_toc`:
    the blob holds no TOC.
    """

    chunk_size: int = CHUNK_SIZE_DEFAULT
    level: int | None = None
    parallelism: int = 1
    min_chunk_size: int = 0
    compression: Compression = Compression.GZIP
    external_toc: bool = False

    def __post_init__(self) -> None:
        """Check the ranges, and what goes together.

        Raises:
            ConfigError: a value out of range, or two that exclude each other.
        """
        if not CHUNK_SIZE_MIN <= self.chunk_size <= CHUNK_SIZE_MAX:
            bounds = f"{CHUNK_SIZE_MIN} to {CHUNK_SIZE_MAX} bytes"
            raise ConfigError(f"the chunk size must be {bounds}, not {self.chunk_size}")
        levels = self._levels
        if not levels.least <= self.used_level <= levels.most:
            bounds = f"{levels.least} to {levels.most}"
            raise ConfigError(f"the compression level of {self.compression} must be {bounds}, not {self.level}")
        if self.parallelism < 1:
            raise ConfigError(f"the parallelism must be at least 1, not {self.parallelism}")
        if not 0 <= self.min_chunk_size <= CHUNK_SIZE_MAX:
            raise ConfigError(
                f"the least size of a member must be 0 to {CHUNK_SIZE_MAX} bytes, not {self.min_chunk_size}"
            )
        if self.compression is Compression.ZSTD and self.min_chunk_size:
            raise ConfigError(
                "files of a zstd:chunked layer cannot share members: containers/storage (podman) would read wrong bytes; "
                "leave out the least size of members, or take gzip"
            )
        if self.compression is Compression.ZSTD and self.external_toc:
            raise ConfigError("a zstd:chunked layer has its TOC in the blob; leave out the external TOC, or take gzip")

    @property
    def used_level(self) -> int:
        """The level that counts."""
        return self._levels.default if self.level is None else self.level

    @property
    def _levels(self) -> Levels:
        return ZSTD_LEVELS if self.compression is Compression.ZSTD else GZIP_LEVELS
