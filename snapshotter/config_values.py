"""What a configuration value may be: reading it from TOML's types, refusing what it is not, writing it back."""

# ruff: noqa: TRY004 (a wrong type and a wrong value are one mistake to the person who wrote the file)

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
TIB = 1 << 40

_UNITS = {
    "": 1, "B": 1, "KIB": KIB, "MIB": MIB, "GIB": GIB, "TIB": TIB,
    "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
}  # fmt: skip
_SIZE = re.compile(r"([0-9]{1,19}(?:\.[0-9]{1,9})?)\s*([A-Za-z]*)")
_HOST = re.compile(r"[A-Za-z0-9._:\[\]-]+")
_LISTENER = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]*):([0-9]{1,5})")
_WAIT = re.compile(r"wait:([1-9][0-9]{0,8})([sm])")


@dataclass(frozen=True, slots=True)
class Kind:
    """How a key's TOML value is checked. `read` raises ValueError with the words that follow "must be"."""

    read: Callable[[object], Any]
    show: Callable[[Any], str]


def parse_size(text: str) -> int:
    """Return the bytes that a size such as `512MiB`, `1.5 GB` or `4096` stands for.

    Raises:
        ValueError: not a size; the message says what is one.
    """
    match = _SIZE.fullmatch(text.strip())
    unit = _UNITS.get(match[2].upper()) if match else None
    if match is None or unit is None or ("." in match[1] and unit == 1):
        raise ValueError('a size: a whole number of bytes, or a text such as "512MiB", "20GiB" or "1.5GB"')
    return _size_in_range(int(Decimal(match[1]) * unit))


def show_size(size: int) -> str:
    """Return `size` bytes as the shortest exact text that `parse_size` reads: `512MiB`, or digits alone."""
    for name, unit in (("TiB", TIB), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if size and size % unit == 0:
            return f"{size // unit}{name}"
    return str(size)


def _size_in_range(size: int) -> int:
    if not 0 <= size < 1 << 63:
        raise ValueError("a size between 0 and 8 EiB")
    return size


def _read_size(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return _size_in_range(value)
    if isinstance(value, str):
        return parse_size(value)
    raise ValueError('a size: a whole number of bytes, or a text such as "512MiB"')


def _read_bool(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def _read_path(value: object) -> Path:
    if not isinstance(value, str) or not value.startswith("/") or "\0" in value:
        raise ValueError("an absolute path in quotes")
    return Path(value)


def _read_paths(value: object) -> tuple[Path, ...]:
    if not isinstance(value, list):
        raise ValueError('a list of absolute paths, such as ["/etc/containerd/certs.d"]')
    return tuple(_read_path(item) for item in value)


def _read_listener(value: object) -> str:
    match = _LISTENER.fullmatch(value) if isinstance(value, str) else None
    if value != "" and (match is None or int(match[2]) > 65535):
        raise ValueError('"" or an address and a port, such as "127.0.0.1:9717", "[::1]:9717" or ":9717"')
    return str(value)


def _show_texts(texts: tuple[object, ...]) -> str:
    return "[" + ", ".join(map(quote, texts)) + "]"


def _read_patterns(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
        raise ValueError('a list of non-empty texts, such as ["registry.example.org/*"]')
    for pattern in value:
        # A reference ends in a tag or digest and names no scheme. What can match nothing would deny nothing either.
        exact = not set("*?[") & set(pattern) and not set(":@") & set(pattern.partition("/")[2].rpartition("/")[2])
        if exact or "://" in pattern:
            raise ValueError(
                f"a list of patterns that whole references can match, such as registry.example.org/* (with the "
                f"tag or a *, without https://), which {quote(pattern)} is not"
            )
    return tuple(value)


def _read_hosts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) and _HOST.fullmatch(item) for item in value):
        raise ValueError('a list of hosts without scheme and path, such as ["registry.example.org:5000"]')
    return tuple(value)


def _read_outage(value: object) -> str:
    if not isinstance(value, str) or not (value in ("error", "wait") or _WAIT.fullmatch(value)):
        raise ValueError('"error", "wait", or "wait:" with a time such as "wait:60s" or "wait:5m"')
    return value


def outage_seconds(on_outage: str) -> float:
    """Seconds that a read waits for a registry that is down: 0 for `error`, infinity for `wait`."""
    match = _WAIT.fullmatch(on_outage)
    if match is None:
        return math.inf if on_outage == "wait" else 0.0
    return float(match[1]) * (60 if match[2] == "m" else 1)


def number(low: float, high: float, unit: str) -> Kind:
    """A finite number with `low` ≤ value ≤ `high`; a whole number is as good as 2.0."""

    def read(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"a number{unit}")
        if not (math.isfinite(value) and low <= value <= high):
            raise ValueError(f"a number{unit} between {low:g} and {high:g}")
        return float(value)

    return Kind(read, repr)


def count(low: int, high: int) -> Kind:
    """A whole number with `low` ≤ value ≤ `high`."""

    def read(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"a whole number between {low} and {high}")
        return value

    return Kind(read, str)


def one_of(*words: str) -> Kind:
    """One of these words."""

    def read(value: object) -> str:
        if not isinstance(value, str) or value not in words:
            raise ValueError("one of " + ", ".join(f'"{word}"' for word in words))
        return value

    return Kind(read, quote)


def quote(text: object) -> str:
    """Return a TOML basic string. JSON's escapes are TOML's, but TOML also forbids a bare DEL."""
    return json.dumps(str(text), ensure_ascii=False).replace("\x7f", "\\u007f")


BOOL = Kind(_read_bool, lambda value: "true" if value else "false")
SIZE = Kind(_read_size, lambda size: quote(show_size(size)) if size and size % KIB == 0 else str(size))
PATH = Kind(_read_path, quote)
PATHS = Kind(_read_paths, _show_texts)
LISTENER = Kind(_read_listener, quote)
PATTERNS = Kind(_read_patterns, _show_texts)
HOSTS = Kind(_read_hosts, _show_texts)
OUTAGE = Kind(_read_outage, quote)
SECONDS = number(0.1, 86400, " of seconds")
SHARE = number(0.01, 1, "")
