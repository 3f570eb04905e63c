"""What a 401 asks for: WWW-Authenticate headers to challenges. Pure.

Source: RFC 9110 section 11.3 and 11.6.1 (several challenges may share one header, in a grammar where a comma separates
both parameters and challenges); OCI distribution's token specification for the Bearer parameters.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

_WORD = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_PARAMETER = re.compile(rf'({_WORD})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|(?!=)([^\s,"]*))')
_SCHEME = re.compile(_WORD)
_TOKEN68 = re.compile(r"[A-Za-z0-9\-._~+/]+=*(?=\s*(?:,|$))")
_SEPARATOR = re.compile(r"[\s,]*")
_ESCAPE = re.compile(r"\\(.)")

# A longer header is no challenge that we could answer.
HEADER_MAX = 16 << 10


@dataclass(frozen=True, slots=True)
class Challenge:
    """One scheme, lower case, with its parameters, names lower case."""

    scheme: str
    parameters: Mapping[str, str]


def parse_challenges(headers: Iterable[str]) -> tuple[Challenge, ...]:
    """Return the challenges of all `headers` in order; what cannot be read ends its header and is left out."""
    found: list[Challenge] = []
    for header in headers:
        found.extend(_parse_one(header[:HEADER_MAX]))
    return tuple(found)


def _parse_one(header: str) -> list[Challenge]:
    found: list[Challenge] = []
    position = _skip(header, 0)
    while position < len(header):
        scheme = _SCHEME.match(header, position)
        if scheme is None:
            return found
        position = _skip(header, scheme.end())
        parameters: dict[str, str] = {}
        if not _PARAMETER.match(header, position) and (opaque := _TOKEN68.match(header, position)):
            after = header[scheme.end() : position]
            # "Negotiate abc=" has a blob; "Negotiate, Basic" has another scheme.
            position = _skip(header, opaque.end()) if "," not in after else position
        while parameter := _PARAMETER.match(header, position):
            name, quoted, plain = parameter.groups()
            value = _ESCAPE.sub(r"\1", quoted) if quoted is not None else plain
            parameters.setdefault(name.lower(), value)
            position = _skip(header, parameter.end())
        found.append(Challenge(scheme[0].lower(), parameters))
    return found


def _skip(header: str, position: int) -> int:
    match = _SEPARATOR.match(header, position)
    return match.end() if match else position
