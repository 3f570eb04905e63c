r"""The TOC's JSON, decoded entry by entry into typed values; `tree` checks what the values mean.

Entries are decoded one at a time from slices of the JSON, so that a million of them never exist as objects together.

Names that are not UTF-8: JSON cannot carry them, and writers differ. Our own writer puts their bytes into the string as
they are; msgspec refuses such a string, and only then the entry is decoded a second time with surrogate escapes, which
gives the bytes back. Go's encoder writes the six characters `\ufffd` for each byte it cannot encode (a real U+FFFD it
writes as UTF-8), so that the name is lost and two names may have become one: such a TOC is refused.

Source: stargz-snapshotter docs/estargz.md, "TOC"; containers/storage pkg/chunked; Go's encoding/json, `appendString`.
"""

import json
from collections.abc import Iterator

import msgspec

from snapshotter.errors import FormatError

from .limits import TOC_ENTRIES, TOC_RAW

VERSION = 1

_LOST = b"\\ufffd"


class Entry(msgspec.Struct, rename="camel", gc=False):
    """One entry as it stands in the TOC: types are right, nothing else is checked. Names of fields are the TOC's."""

    name: str = ""
    type: str = ""
    size: int = 0
    modtime: str | None = None
    link_name: str = ""
    mode: int = 0
    uid: int = 0
    gid: int = 0
    offset: int = 0
    inner_offset: int = 0
    dev_major: int = 0
    dev_minor: int = 0
    xattrs: dict[str, bytes | None] | None = None
    digest: str = ""
    chunk_offset: int = 0
    chunk_size: int = 0
    chunk_digest: str = ""
    chunk_type: str = ""
    end_offset: int = 0


class _Toc(msgspec.Struct):
    version: int
    entries: list[msgspec.Raw] | None = None


class _AnyObject(msgspec.Struct):
    pass


class _Objects(msgspec.Struct):
    entries: list[_AnyObject] | None = None


_ENTRY = msgspec.json.Decoder(Entry)
_TOC = msgspec.json.Decoder(_Toc)
_OBJECTS = msgspec.json.Decoder(_Objects)
_FAULTS = (msgspec.MsgspecError, UnicodeError, ValueError, RecursionError)


def decode_entries(toc_json: bytes) -> Iterator[Entry]:
    """Yield the entries of a TOC in its order.

    Raises:
        FormatError: no JSON, another version, over a limit, or a field of the wrong type.
    """
    if len(toc_json) > TOC_RAW:
        raise FormatError(f"the TOC's JSON has {len(toc_json)} bytes, the limit is {TOC_RAW}")
    rows = _rows(toc_json)
    lossy = _LOST in toc_json
    decode = _ENTRY.decode
    for number, row in enumerate(rows):
        try:
            entry = decode(row)
        except UnicodeDecodeError:
            entry = _decode_raw_names(row, number)
        except (msgspec.MsgspecError, RecursionError) as fault:
            raise FormatError(f"entry {number} of the TOC is malformed: {fault}") from fault
        if lossy and ("\ufffd" in entry.name or "\ufffd" in entry.link_name) and _LOST in bytes(row):
            raise FormatError(
                f"the TOC has the name {entry.name[:100]!r}, from which its writer dropped bytes that are not UTF-8; "
                "convert the image with a tool that keeps them, or pull it whole"
            )
        yield entry


def _rows(toc_json: bytes) -> list[msgspec.Raw]:
    try:
        if toc_json.count(b",") > TOC_ENTRIES:
            # Only a TOC this large could turn `[0,0,0,…` into more row objects than memory holds: an object needs a
            # brace, and decoding to objects without fields stops at the first element that is none.
            if toc_json.count(b"{") > 2 * TOC_ENTRIES + 2:
                raise FormatError(f"the TOC has more than {TOC_ENTRIES} entries")
            _OBJECTS.decode(toc_json)
        toc = _TOC.decode(toc_json)
    except _FAULTS as fault:
        raise FormatError(f"the TOC is no JSON of the expected shape: {fault}") from fault
    if toc.version != VERSION:
        raise FormatError(f"the TOC is of version {toc.version}; only version {VERSION} is known")
    rows = toc.entries or []
    if len(rows) > TOC_ENTRIES:
        raise FormatError(f"the TOC has {len(rows)} entries, the limit is {TOC_ENTRIES}")
    return rows


def _decode_raw_names(row: msgspec.Raw, number: int) -> Entry:
    try:
        return msgspec.convert(json.loads(bytes(row).decode("utf-8", "surrogateescape")), Entry)
    except _FAULTS as fault:
        raise FormatError(f"entry {number} of the TOC is malformed: {fault}") from fault
