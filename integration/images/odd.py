"""Layers as old tools, odd tools and attackers write them: each a tar that containerd may or may not unpack."""

from collections.abc import Mapping, Sequence

BLOCK = 512
END = bytes(2 * BLOCK)
HOLES = ((1024, 512), (3000, 512))
"""Where the sparse files have bytes."""
SPARSE_SIZE = 4096
SPARSE_BYTES = b"A" * 512 + b"B" * 512


def header(name: bytes, kind: bytes = b"0", size: int = 0, magic: bytes = b"ustar\x0000", **at: bytes) -> bytes:
    """A header block by hand; `at` puts bytes at `_OFFSET`."""
    block = bytearray(BLOCK)
    block[: len(name)] = name
    block[100:108], block[108:116], block[116:124] = b"0000644\0", b"0000000\0", b"0000000\0"
    block[124:136] = b"%011o\0" % size if size < 1 << 33 else b"\x80" + size.to_bytes(11, "big")
    block[136:148], block[156:157] = b"%011o\0" % 1_700_000_000, kind
    block[257:265] = magic
    for key, value in at.items():
        offset = int(key.removeprefix("_"))
        block[offset : offset + len(value)] = value
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def old(name: bytes, kind: bytes = b"\0", data: bytes = b"", **at: bytes) -> bytes:
    """An entry as tar wrote it in 1979: no magic, no owner's name."""
    return header(name, kind, len(data), bytes(8), **at) + padded(data)


def gnu(name: bytes, kind: bytes = b"0", data: bytes = b"", **at: bytes) -> bytes:
    """An entry of GNU tar before it wrote PAX."""
    return header(name, kind, len(data), b"ustar  \0", **at) + padded(data)


def ustar(name: bytes, kind: bytes = b"0", data: bytes = b"", **at: bytes) -> bytes:
    """An entry of POSIX.1-1988."""
    return header(name, kind, len(data), **at) + padded(data)


def pax(records: Sequence[tuple[str, str]], entry: bytes, kind: bytes = b"x") -> bytes:
    """An entry with what its headers in front say."""
    text = b"".join(_record(key, value) for key, value in records)
    return ustar(b"PaxHeaders/0", kind, text) + entry


def padded(data: bytes) -> bytes:
    """`data` up to the next block."""
    return data + bytes(-len(data) % BLOCK)


def sparse(name: str) -> list[bytes]:
    """The same sparse file in each way in which PAX archives have it, which is appended to `name`."""
    numbers = [str(number) for pair in HOLES for number in pair]
    listed = zip(("GNU.sparse.offset", "GNU.sparse.numbytes") * len(HOLES), numbers, strict=True)
    count, size = ("GNU.sparse.numblocks", str(len(HOLES))), ("GNU.sparse.size", str(SPARSE_SIZE))
    map_inside = padded("\n".join([str(len(HOLES)), *numbers, ""]).encode())
    ways = {
        "0.0": ([size, count, *listed], SPARSE_BYTES),
        "0.1": ([size, count, ("GNU.sparse.map", ",".join(numbers))], SPARSE_BYTES),
        "1.0": (
            [("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.realsize", str(SPARSE_SIZE))],
            map_inside + SPARSE_BYTES,
        ),
    }
    return [
        pax([*records, ("GNU.sparse.name", f"{name}{way}")], ustar(f"GNUSparseFile.0/{way}".encode(), data=data))
        for way, (records, data) in ways.items()
    ]


def taken() -> bytes:
    """What containerd unpacks and a lazy layer can say: every dialect, everything that comes twice."""
    long = "long/" + "n" * 200
    folders = (b"old/", b"gnu/", b"pax/", b"sparse/", b"twice/", b"long/")
    return b"".join(
        [
            *(ustar(name, b"5", _100=b"0000755\0") for name in folders),
            old(b"old/file", data=b"of 1979\n"),
            old(b"old/folder/"),
            old(b"old/folder/file", data=b"below\n"),
            old(b"old/link", b"2", _157=b"file"),
            old(b"old/hard", b"1", _157=b"old/file"),
            gnu(b"././@LongLink", b"L", long.encode() + b"\0"),
            gnu(long[:99].encode(), data=b"a long name\n"),
            gnu(b"././@LongLink", b"K", b"t" * 300 + b"\0"),
            gnu(b"gnu/link", b"2", _157=b"t" * 99),
            # Times of access and change lie where others have a prefix of the name.
            gnu(b"gnu/incremental", data=b"dump\n", _345=b"14566500000\0", _357=b"14566500000\0"),
            gnu(b"gnu/id", data=b"large ids\n", _108=b"\x80\0\0\0\0\x01\x11\x70", _116=b"\x80\0\0\0\0\x01\x11\x71"),
            ustar(b"prefixed", data=b"with a prefix\n", _345=b"long"),
            pax([("path", "everywhere")], b"", b"g"),
            pax([("path", "pax/é"), ("mtime", "1700000000.123456789")], ustar(b"pax/e", data=b"named again\n")),
            pax([("SCHILY.xattr.user.one", "1"), ("LIBARCHIVE.xattr.user.two", "Mg==")], ustar(b"pax/attribute")),
            pax([("uid", "70000"), ("gid", "70001"), ("uname", "ü"), ("comment", "none")], ustar(b"pax/owner")),
            pax([("size", "8")], header(b"pax/size", size=0) + padded(b"by size\n")),
            pax([("mtime", "-5.5"), ("atime", "1.5"), ("ctime", "2")], ustar(b"pax/before-the-epoch")),
            *sparse("sparse/"),
            ustar(b"twice/file", data=b"first\n"),
            ustar(b"./twice//file", data=b"second, and longer\n"),
            ustar(b"twice/folder/", b"5", _100=b"0000700\0"),
            ustar(b"twice/folder/inside", data=b"stays\n"),
            ustar(b"twice/folder/", b"5", _100=b"0000751\0"),
            ustar(b"twice/folder-file", b"5", _100=b"0000755\0"),
            ustar(b"twice/folder-file/gone", data=b"gone\n"),
            ustar(b"twice/folder-file", data=b"a file now\n"),
            ustar(b"twice/file-folder", data=b"a file\n"),
            ustar(b"twice/file-folder", b"5", _100=b"0000755\0"),
            ustar(b"twice/file-folder/there", data=b"there\n"),
            ustar(b"twice/link-file", b"2", _157=b"nowhere"),
            ustar(b"twice/link-file", data=b"no link now\n"),
            ustar(b"twice/device", b"3", _329=b"0000001\0", _337=b"0000003\0"),
            ustar(b"twice/device", b"6"),
            ustar(b"../../above", data=b"not above the root\n"),
            END,
            b"rubbish behind the end of the archive\n" * 40,
        ]
    )


def kept() -> list[bytes]:
    """What containerd unpacks and a lazy layer cannot say, a layer each: they stay as they are."""
    target = ustar(b"target", data=b"target\n")
    real = ustar(b"real/", b"5", _100=b"0000755\0")
    return [
        target + ustar(b"link", b"1", _157=b"target") + ustar(b"target", data=b"another\n") + END,
        real + ustar(b"alias", b"2", _157=b"real") + ustar(b"alias/inside", data=b"inside\n") + END,
    ]


def spoilt() -> Mapping[str, bytes]:
    """What is no layer, by what is wrong with it."""
    file = ustar(b"file", data=b"1" * 700)
    folder = ustar(b"folder", b"5")
    huge = b"\x80" + (10 << 30).to_bytes(11, "big")
    apart, crossing = (b"%011o\0" * 4 % numbers for numbers in ((0, 1 << 30, 5 << 30, 512), (0, 512, 256, 512)))
    short = [("GNU.sparse.size", "4096"), ("GNU.sparse.map", "0,1024")]
    return {
        "cut-in-content": file[:1000],
        "cut-in-a-header": (file + ustar(b"next"))[:1736],
        "cut-after-a-declared-10-GB": header(b"large", size=10 << 30) + bytes(5000),
        "pax-says-10-GB": pax([("size", str(10 << 30))], header(b"large") + bytes(5000)),
        "sparse-of-10-GB-cut": gnu(b"s", b"S", _386=apart, _483=huge),
        "sparse-map-overlaps": gnu(b"s", b"S", b"x" * 1024, _386=crossing, _483=b"%011o\0" % 4096) + END,
        "sparse-map-beyond-its-bytes": pax(short, ustar(b"s", data=b"x" * 512)) + file + END,
        "wrong-checksum": file[:3] + b"X" + file[4:] + END,
        "unknown-type": ustar(b"volume", b"V") + END,
        "link-to-a-folder": folder + ustar(b"link", b"1", _157=b"folder") + END,
        "text": b"this is no archive\n" * 100,
        "single-zero-block": file + bytes(BLOCK) + ustar(b"behind") + END,
        "pax-without-an-entry": pax([("path", "x")], b""),
        "pax-record-longer-than-it-says": ustar(b"PaxHeaders/0", b"x", b"99 path=x\n") + file + END,
        "negative-size": header(b"n", _124=b"\xff" * 12) + END,
        "nul-in-a-pax-path": pax([("path", "a\0b")], ustar(b"x")) + END,
        "root-is-a-file": ustar(b"./", b"0", b"1") + END,
    }


def _record(key: str, value: str) -> bytes:
    body = f" {key}={value}\n".encode()
    size = len(body) + 1
    while len(str(size)) + len(body) != size:
        size += 1
    return str(size).encode() + body
