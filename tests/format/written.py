"""A layer through the production writer, read back by our own reader and by others."""

import io
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from snapshotter.format.footer import TAIL_MIN, Flavor, Footer, parse_footer, toc_json
from snapshotter.format.index import BuildOptions, Index
from snapshotter.format.index_build import build_index
from snapshotter.format.members import inflate
from snapshotter.format.plain_tar import copy_plain
from snapshotter.format.tar_entries import NO_PREFETCH_LANDMARK, PREFETCH_LANDMARK, TOC_NAME, scan_tar
from snapshotter.format.writer.options import WriterOptions
from snapshotter.format.writer.write import WrittenLayer, write_layer

OURS = (TOC_NAME, PREFETCH_LANDMARK, NO_PREFETCH_LANDMARK)
POOL = ThreadPoolExecutor(2)


@dataclass(frozen=True)
class Written:
    """A blob, and what its writer says of it."""

    layer: WrittenLayer
    blob: bytes

    @cached_property
    def footer(self) -> Footer:
        return parse_footer(self.blob[-TAIL_MIN:], len(self.blob))

    @cached_property
    def document(self) -> bytes:
        """The TOC, from where a reader looks for it."""
        footer = self.footer
        assert (footer.flavor is Flavor.EXTERNAL) == (self.layer.external_toc is not None)
        return toc_json(footer, self.layer.external_toc or self.blob[footer.toc_offset : footer.toc_end])

    @cached_property
    def index(self) -> Index:
        footer = self.footer
        options = BuildOptions(
            footer.codec, len(self.blob), footer.payload_end, self.layer.digest, allow_unverified=False
        )
        return Index(build_index(self.document, options), "a test")

    @cached_property
    def plain(self) -> bytes:
        """The tar that anybody unpacks who knows nothing of lazy pulling."""
        out = io.BytesIO()
        copy_plain(io.BytesIO(self.blob), out)
        return out.getvalue()

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """The TOC's entries as they stand there, landmarks too, which the lazy view does not show."""
        return list(json.loads(self.document.decode("utf-8", "surrogateescape"))["entries"])

    def node(self, name: str) -> int:
        node = 0
        for part in name.encode("utf-8", "surrogateescape").split(b"/"):
            step = self.index.lookup(node, part)
            assert step is not None
            node = step
        return node

    def content(self, name: str) -> bytes:
        """A file as a lazy reader puts it together, each chunk from its own member."""
        if name in OURS:
            return b"\x0f"
        node = self.node(name)
        pieces = []
        for chunk in self.index.chunks(node, 0, self.index.attributes(node).size):
            member = self.index.member(chunk.member)
            plain = inflate(self.footer.codec, self.blob[member.blob_offset : member.blob_end], 1 << 24)
            pieces.append(plain[chunk.inner_offset : chunk.inner_offset + chunk.size])
        return b"".join(pieces)

    def place(self, name: str) -> tuple[int, int]:
        """Where a file's first chunk lies: its member's offset in the blob, its own in the member."""
        chunk = next(iter(self.index.chunks(self.node(name), 0, 1)))
        return self.index.member(chunk.member).blob_offset, chunk.inner_offset


def written(source: bytes, options: WriterOptions, prioritised: Sequence[str] = ()) -> Written:
    """Convert a plain tar."""
    blob, tar = io.BytesIO(), io.BytesIO(source)
    layer = write_layer(scan_tar(tar).entries, tar, blob, POOL, options, prioritised)
    return Written(layer, blob.getvalue())
