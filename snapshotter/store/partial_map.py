"""The side file of a partial file: who it is, and a record for each chunk that is present. Bytes ↔ meaning, no I/O.

    magic 8 · identity (identity.py) · records of 16 bytes, appended

A record is written after the bytes that it speaks of, so a killed daemon leaves at most a torn last record. A power
loss can keep the record and lose the bytes: a SYNCED record follows only after a syncfs, a SESSION record names the
boot in which the records after it were written, and what another boot wrote and no SYNCED covers is doubtful.
"""

import hashlib
import struct
import zlib
from dataclasses import dataclass, field
from enum import IntEnum

from snapshotter.errors import FormatError
from snapshotter.store.identity import StoredIdentity, decode_identity, partial_name

MAGIC = b"ESGZMAP1"
# kind 1 + padding 3 + value 8 + checksum 4 = 16
_RECORD = struct.Struct("<B3xQI")
_CHECKED = struct.Struct("<B3xQQ")
RECORD_SIZE = _RECORD.size


class Record(IntEnum):
    """What a record says of its value."""

    PRESENT = 1  # chunk `value` was verified and written
    SESSION = 2  # `value`: tag of the boot that wrote the records from here on
    SYNCED = 3  # records before position `value`, and their chunks, are on disk
    MISMATCH = 4  # all chunks are good and the whole is not what the TOC says


def header(encoded_identity: bytes) -> bytes:
    """The beginning of a map file."""
    return MAGIC + encoded_identity


def boot_tag(boot_id: str) -> int:
    """A boot id as a record's value."""
    return int.from_bytes(hashlib.sha256(boot_id.encode()).digest()[:8], "little")


def record(kind: Record, value: int, position: int) -> bytes:
    """One record for `position` of the map file; the checksum covers the position, so stale blocks are no records."""
    return _RECORD.pack(kind, value, zlib.crc32(_CHECKED.pack(kind, value, position)))


@dataclass(slots=True)
class MapState:
    """What a map file says."""

    identity: StoredIdentity
    end: int  # where the next record goes
    present: bytearray  # 1 for each chunk on record
    doubtful: list[int] = field(default_factory=list)  # on record, but a power loss may have taken the bytes
    mismatch: bool = False
    session: int | None = None  # boot tag of the last records
    unsynced: bool = False  # chunks are on record that no SYNCED covers


def parse_map(data: bytes, name: str, boot: int) -> MapState:
    """Read the map file of the partial file `name`; `boot` is the tag of the present boot.

    Records end at the first that is torn or wrong.

    Raises:
        FormatError: not a map file, or not this one's.
    """
    if not data.startswith(MAGIC):
        raise FormatError(f"partial file {name}: not a map file of this revision")
    identity, length = decode_identity(data[len(MAGIC) :])
    end = len(MAGIC) + length
    if partial_name(data[len(MAGIC) : end]) != name:
        raise FormatError(f"partial file {name}: its map describes another file")
    state = MapState(identity, end, bytearray(len(identity.chunks)))
    pending: list[tuple[int, int, int | None]] = []  # (position, chunk, boot tag) that no SYNCED covers
    while (kind := _checked_kind(data, state.end)) is not None:
        value = _RECORD.unpack_from(data, state.end)[1]
        if kind is Record.PRESENT:
            if value >= len(state.present):
                break
            state.present[value] = 1
            pending.append((state.end, value, state.session))
        elif kind is Record.SESSION:
            state.session = value
        elif kind is Record.SYNCED:
            pending = [entry for entry in pending if entry[0] >= value]
        else:
            state.mismatch = True
        state.end += RECORD_SIZE
    state.unsynced = bool(pending)
    state.doubtful = sorted({chunk for _, chunk, tag in pending if tag != boot})
    return state


def _checked_kind(data: bytes, position: int) -> Record | None:
    if position + RECORD_SIZE > len(data):
        return None
    kind, value, checksum = _RECORD.unpack_from(data, position)
    if checksum != zlib.crc32(_CHECKED.pack(kind, value, position)) or kind not in _KINDS:
        return None
    return Record(kind)


_KINDS = frozenset(Record)
