import gzip
import hashlib
import io

import pytest

from snapshotter.errors import FormatError
from snapshotter.format.plain_tar import copy_plain
from snapshotter.format.zstd import zstd
from tests.format.tars import entry, tar

SOURCE = tar(entry("a", b"some bytes " * 300_000), entry("b", b"2"))
HALF = len(SOURCE) // 2


def plain(blob: bytes) -> bytes:
    out = io.BytesIO()
    digest = copy_plain(io.BytesIO(blob), out)
    assert digest == f"sha256:{hashlib.sha256(out.getvalue()).hexdigest()}"
    return out.getvalue()


@pytest.mark.parametrize(
    "blob",
    [
        SOURCE,
        gzip.compress(SOURCE),
        gzip.compress(SOURCE[:HALF]) + gzip.compress(b"") + gzip.compress(SOURCE[HALF:]),
        zstd.compress(SOURCE),
        b"\x53\x2a\x4d\x18\x03\0\0\0abc" + zstd.compress(SOURCE[:HALF]) + zstd.compress(SOURCE[HALF:]),
    ],
    ids=["plain", "gzip", "gzip members", "zstd", "zstd frames"],
)
def test_layer_is_unpacked_whatever_compresses_it(blob: bytes) -> None:
    assert plain(blob) == SOURCE


@pytest.mark.parametrize("packed", [gzip.compress(SOURCE), zstd.compress(SOURCE)], ids=["gzip", "zstd"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "followed"])
def test_damaged_compression_is_a_format_error(packed: bytes, damage: str) -> None:
    blob = bytearray(packed)
    if damage == "cut":
        del blob[-20:]
    elif damage == "flipped":
        blob[len(blob) // 2] ^= 0x55
    else:
        blob += b"something else"
    with pytest.raises(FormatError):
        plain(bytes(blob))
