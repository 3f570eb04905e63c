"""The three settings of `cache.share`: who gets a content without fetching it, honestly or by naming its digest."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from snapshotter.errors import SnapshotterError
from snapshotter.layer.layer import Layer
from tests.doubles.layers import BuiltLayer, file, layer, sha256
from tests.doubles.memory_registry import MemoryRegistry
from tests.layer.world import QUIET, World, request, run, world

TRUTH = b"what only some may read" * 100
FIRST, NEIGHBOUR, ELSEWHERE = "registry.test/app", "registry.test/other", "elsewhere.test/app"

SHARED = [
    ("node", NEIGHBOUR, True),
    ("node", ELSEWHERE, True),
    ("registry", NEIGHBOUR, True),
    ("registry", ELSEWHERE, False),
    ("image", NEIGHBOUR, False),
    ("image", ELSEWHERE, False),
]
every_setting = pytest.mark.parametrize(("share", "name", "shared"), SHARED, ids=[f"{s}-{n[:6]}" for s, n, _ in SHARED])


def lying() -> BuiltLayer:
    """Has a file with another's digest and size, and not its bytes."""

    def lie(toc: dict[str, Any]) -> None:
        for row in toc["entries"]:
            row["digest"] = row["chunkDigest"] = sha256(TRUTH)

    return layer(file("lie", b"x" * len(TRUTH)), edit=lie)


async def pulled(it: World, built: BuiltLayer, name: str) -> Layer:
    """The layer, of an image of its own in the repository `name`."""
    tag = name.replace("/", "-")
    manifest = it.registry.add_image(tag, [(built.blob, dict(built.annotations))])
    return await it.room.resolve(request(built, manifest.digest, tag=tag, name=name))


@every_setting
def test_content_is_fetched_again_exactly_where_it_is_not_shared(
    tmp_path: Path, share: str, name: str, shared: bool
) -> None:
    async def main() -> None:
        registry = MemoryRegistry()
        async with world(tmp_path, registry, replace(QUIET, cache=replace(QUIET.cache, share=share))) as it:
            one = await pulled(it, layer(file("x", TRUTH)), FIRST)
            assert await it.read(one, "x") == TRUTH
            other = await pulled(it, layer(file("another-name", TRUTH)), name)
            assert (other.domain == one.domain) is shared
            registry.requests.clear()
            assert await it.read(other, "another-name") == TRUTH
            assert len(registry.requests) == (0 if shared else 1)

    run(main)


@every_setting
def test_naming_a_digest_gives_content_only_where_it_is_shared(
    tmp_path: Path, share: str, name: str, shared: bool
) -> None:
    async def main() -> None:
        async with world(tmp_path, MemoryRegistry(), replace(QUIET, cache=replace(QUIET.cache, share=share))) as it:
            one = await pulled(it, layer(file("x", TRUTH)), FIRST)
            assert await it.read(one, "x") == TRUTH
            evil = await pulled(it, lying(), name)
            digest = sha256(TRUTH).removeprefix("sha256:")
            if shared:
                assert await it.read(evil, "lie") == TRUTH
                return
            with pytest.raises(SnapshotterError):
                await it.read(evil, "lie")
            with pytest.raises(SnapshotterError):
                await it.room.contents.bring(evil.domain, digest)
            assert not list((tmp_path / "objects" / it.store.place / evil.domain).rglob(digest))

    run(main)
