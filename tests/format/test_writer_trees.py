"""Random trees through the writer, with every option, and back."""

import hashlib
import tarfile
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from snapshotter.format.codec import Codec
from snapshotter.format.writer.options import WriterOptions
from tests.format.tars import Made, entry, listing, tar, trees
from tests.format.written import OURS, Written, written

CHUNK = 4096


@st.composite
def options(draw: Callable[..., Any]) -> WriterOptions:
    """Every combination that is allowed."""
    compression = draw(st.sampled_from(Codec))
    gzip = compression is Codec.GZIP
    return WriterOptions(
        chunk_size=CHUNK,
        level=draw(st.sampled_from([None, 1])),
        parallelism=draw(st.integers(1, 4)),
        min_chunk_size=draw(st.sampled_from([0, 1, 3000, CHUNK, 20_000])) if gzip else 0,
        compression=compression,
        external_toc=gzip and draw(st.booleans()),
    )


@st.composite
def sparse_files(draw: Callable[..., Any]) -> list[tuple[Made, bytes]]:
    """Sparse files as GNU tar writes them (PAX, version 1.0), each with the content that it unpacks to."""
    made = []
    for number in range(draw(st.integers(0, 2))):
        size = draw(st.sampled_from([1, CHUNK - 1, CHUNK, 3 * CHUNK + 1]))
        content = bytearray(size)
        numbers, stored, at = [], b"", 0
        while at < size and draw(st.booleans()):
            start = draw(st.integers(at, size - 1))
            piece = b"s" * draw(st.integers(1, size - start))
            content[start : start + len(piece)] = piece
            numbers += [start, len(piece)]
            stored, at = stored + piece, start + len(piece)
        numbers = [len(numbers) // 2 + 1, *numbers, size, 0]
        head = "".join(f"{number}\n" for number in numbers).encode()
        name = f"sparse-{number}"
        records = {"major": "1", "minor": "0", "name": name, "realsize": str(size)}
        pax = {f"GNU.sparse.{key}": value for key, value in records.items()}
        made.append((entry(name, head + bytes(-len(head) % 512) + stored, pax_headers=pax), bytes(content)))
    return made


def in_order(rows: list[tuple[object, ...]]) -> list[tuple[object, ...]]:
    return sorted(rows, key=lambda row: str(row[0]))


@given(trees(), sparse_files(), options(), st.data())
def test_what_is_written_reads_back_as_the_same_tree(
    made: list[Made], sparse: list[tuple[Made, bytes]], how: WriterOptions, data: st.DataObject
) -> None:
    source = tar(*made, *(one for one, _ in sparse))
    names = [info.name for info, _ in made]
    prioritised = data.draw(st.lists(st.sampled_from(names), max_size=3)) if names else []
    found = written(source, how, prioritised)
    assert in_order(listing(found.plain, OURS)) == in_order(listing(source))
    check_layer(found)
    for info, content in made:
        check_entry(found, info, content)
    for (info, _), content in sparse:
        assert found.content(info.name) == content
    assert bool(found.layer.prefetch_size) == bool(prioritised)
    assert found.index.prefetch_end == found.layer.prefetch_size
    again = written(source, replace(how, parallelism=5 - how.parallelism), prioritised)
    assert (again.layer, again.blob) == (found.layer, found.blob)


def check_layer(found: Written) -> None:
    """What the writer says of its blob is so."""
    layer = found.layer
    assert (layer.digest, layer.size) == (f"sha256:{hashlib.sha256(found.blob).hexdigest()}", len(found.blob))
    assert (layer.diff_id, layer.plain_size) == (f"sha256:{hashlib.sha256(found.plain).hexdigest()}", len(found.plain))
    assert layer.toc_digest == f"sha256:{hashlib.sha256(found.document).hexdigest()}"
    assert layer.annotations["containerd.io/snapshot/stargz/toc.digest"] == layer.toc_digest
    assert layer.annotations["io.containers.estargz.uncompressed-size"] == str(layer.plain_size)
    assert found.index.verified


def check_entry(found: Written, info: tarfile.TarInfo, content: bytes) -> None:
    """A lazy reader sees the entry as the source has it."""
    index, node = found.index, found.node(info.name)
    if info.islnk():
        assert node == found.node(info.linkname)
        return
    seen = index.attributes(node)
    mode = 0o777 if info.issym() else info.mode  # Linux gives links no mode of their own
    assert (seen.mode & 0o7777, seen.uid, seen.gid) == (mode, info.uid, info.gid)
    assert seen.mtime_ns == info.mtime * 10**9
    xattrs = {f"SCHILY.xattr.{key.decode()}": value for key, value in index.xattrs(node).items()}
    assert xattrs == {key: value.encode("utf-8", "surrogateescape") for key, value in info.pax_headers.items()}
    if info.issym():
        assert index.readlink(node) == info.linkname.encode("utf-8", "surrogateescape")
    if info.isreg():
        assert seen.size == len(content)
        assert not content or index.digest(node) == hashlib.sha256(content).digest()
        assert found.content(info.name) == content


def test_a_tree_with_every_kind_of_size_is_the_same_in_every_form() -> None:
    sizes = [0, 1, 511, 512, 513, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 3 * CHUNK + 1]
    made = [entry(f"f{size}", bytes([size % 251]) * size) for size in sizes]
    source = tar(*made)
    for compression in Codec:
        found = written(source, WriterOptions(chunk_size=CHUNK, compression=compression))
        check_layer(found)
        for info, content in made:
            check_entry(found, info, content)
