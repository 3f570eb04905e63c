"""At start: what may not be believed is moved out of `objects/`, so that a name there always means verified.

The kernel reads `objects/` by itself where a layer is composed with it, so doubt cannot be kept in memory: an object
that a power loss may have torn waits in `unproven/` until its hash was taken again.
"""

import logging

from snapshotter.store.cache_db import CacheDB, Trust
from snapshotter.store.tree import SHARDS, ObjectTree

log = logging.getLogger(__name__)


def distrust(objects: ObjectTree, unproven: ObjectTree, db: CacheDB) -> None:
    """Move every object that `db.trust` does not vouch for from `objects` to `unproven`, then begin this boot.

    Without rows (cache.db lost) every file moves; with rows each is looked at once, after an unclean boot only.

    Raises:
        OSError: the disk refused.
        StoreError: cache.db was not written.
    """
    if db.trust is Trust.NONE:
        for domain in objects.domains():
            for shard in SHARDS:
                for digest, _ in objects.shard(domain, shard):
                    objects.move_to(unproven, domain, digest)
                _drop_large(objects, domain, shard)
                _drop_large(unproven, domain, shard)
    elif db.trust is Trust.COVERED:
        moved = 0
        for domain in objects.domains():
            for shard in SHARDS:
                moved += _move_uncovered(objects, unproven, db, domain, shard)
        log.info("the machine stopped without a shutdown: %d cached files are checked when first needed", moved)
    db.begin()


def count_unproven(unproven: ObjectTree) -> int:
    """How many objects await their proof."""
    return sum(len(unproven.shard(domain, shard)) for domain in unproven.domains() for shard in SHARDS)


def _move_uncovered(objects: ObjectTree, unproven: ObjectTree, db: CacheDB, domain: str, shard: str) -> int:
    kept: dict[str, int] = {}
    doubtful: list[bytes] = []
    covered = db.covered(domain, shard)
    for digest, status in objects.shard(domain, shard):
        if covered.get(digest) == (status.st_ino, status.st_mtime_ns):
            kept[digest.hex()] = status.st_ino
        else:
            doubtful.append(digest)
    for name in objects.large_names(domain, shard):
        # Also one whose object somebody deleted: its bytes are as doubtful.
        named = objects.named(domain, name)
        if named is None or kept.get(name[:64]) != named.st_ino:
            objects.unlink_named(domain, name)
    for digest in doubtful:
        objects.move_to(unproven, domain, digest)
    return len(doubtful)


def _drop_large(tree: ObjectTree, domain: str, shard: str) -> None:
    """Take the names by identity from large files: what awaits proof must not be found by them."""
    for name in tree.large_names(domain, shard):
        tree.unlink_named(domain, name)
