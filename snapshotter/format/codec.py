"""The compressions that members come in."""

from enum import StrEnum


class Codec(StrEnum):
    """How the members of a blob are compressed."""

    GZIP = "gzip"
    ZSTD = "zstd"
