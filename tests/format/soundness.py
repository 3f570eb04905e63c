"""What every consumer of an index relies on, and how a file is read through one."""

import hashlib

from snapshotter.format.index import Index, Kind
from snapshotter.format.members import inflate
from tests.doubles.layers import BuiltLayer


def content(built: BuiltLayer, index: Index, node: int) -> bytes:
    """A file's bytes, read through the index."""
    out = b""
    for chunk in index.chunks(node, 0, 1 << 40):
        if chunk.member < 0:
            out += bytes(chunk.size)
            continue
        member = index.member(chunk.member)
        plain = inflate(built.codec, built.blob[member.blob_offset : member.blob_end], 1 << 30)
        piece = plain[chunk.inner_offset : chunk.inner_offset + chunk.size]
        assert chunk.digest == hashlib.sha256(piece).digest()
        out += piece
    return out


def check_soundness(index: Index) -> None:
    """What every consumer relies on."""
    links = [0] * index.node_count
    for directory in range(index.node_count):
        listed = list(index.entries(directory, 0))
        found = [name for _, name, _ in listed]
        assert found == sorted(set(found))
        for _, name, node in listed:
            assert name not in (b"", b".", b"..")
            assert b"/" not in name
            assert index.lookup(directory, name) == node
            links[node] += 1
    for node in range(index.node_count):
        attributes = index.attributes(node)
        if attributes.kind is not Kind.DIR:
            assert attributes.nlink == links[node] > 0
        assert not any(name.startswith(b"trusted.") for name in index.xattrs(node) if b"opaque" not in name)
        end = 0
        for ordinal, chunk in enumerate(index.chunks(node, 0, 1 << 62)):
            assert (chunk.ordinal, chunk.file_offset) == (ordinal, end)
            end += chunk.size
            if chunk.member >= 0:
                member = index.member(chunk.member)
                assert 0 <= member.blob_offset < member.blob_end <= index.payload_end
                assert chunk in index.member_chunks(chunk.member)
        assert end == (attributes.size if attributes.kind is Kind.REG else 0)
