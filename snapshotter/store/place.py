"""`<root>/objects/<place>`: below a name that nobody can guess lies all content.

overlayfs looks the path of a file's body up in the ordinary layers below before it asks the data-only ones [M, Linux
6.18]. An image with a file of that very path would put its own bytes in the place of verified ones, so the path has a
part that only root can know. The directory is the only record of its name: nothing else can be lost or disagree.
"""

import errno
import logging
import os
import re
import secrets
from contextlib import suppress
from pathlib import Path

from snapshotter.errors import StoreError
from snapshotter.store.tree import SHARDS, ObjectTree

# "_" + 13 letters of 5 bits = 14 characters, 65 bits. No sharing domain has a "_", and domains lay here before.
_PLACE = re.compile(r"_[a-z2-7]{13}")
_LETTERS = "abcdefghijklmnopqrstuvwxyz234567"
PRIVATE = 0o700

log = logging.getLogger(__name__)


def content_place(root: Path) -> str:
    """The name of the directory below `<root>/objects` that holds all content; made at the first call for a root.

    Domains that lie in `objects` itself, as older versions had them, move below it. Each step is one rename, and a
    start finds by itself what an earlier one left undone. The caller holds the root's lock, and nothing is mounted
    that reads the old paths.

    Raises:
        StoreError: there is more than one such directory.
        OSError: the disk refused.
    """
    top = ObjectTree(root / "objects")
    try:
        # A directory that was copied or restored may have come out readable, and with it the name.
        os.fchmod(top.fd, PRIVATE)
        place = _found(top) or _made(top)
        _gather(top, place)
    finally:
        top.close()
    return place


def _found(top: ObjectTree) -> str | None:
    with os.scandir(top.fd) as entries:
        places = [
            entry.name for entry in entries if _PLACE.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)
        ]
    if len(places) > 1:
        # The names stay out of the log, which more people read than root.
        raise StoreError(
            f"{top.path} has {len(places)} directories whose names begin with '_', and content belongs in one: keep the "
            "one in use (as a rule the largest) and move the others away; what only they had is fetched again"
        )
    return places[0] if places else None


def _made(top: ObjectTree) -> str:
    place = "_" + "".join(secrets.choice(_LETTERS) for _ in range(13))
    os.mkdir(place, PRIVATE, dir_fd=top.fd)
    return place


def _gather(top: ObjectTree, place: str) -> None:
    new = ObjectTree(top.path / place)
    try:
        os.fchmod(new.fd, PRIVATE)
        domains = top.domains()
        for domain in domains:
            try:
                os.rename(domain, domain, src_dir_fd=top.fd, dst_dir_fd=new.fd)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                _merge(top, new, domain)
        if domains:
            log.info("cached files of %d sharing domains moved to where this version looks for them", len(domains))
    finally:
        new.close()


def _merge(top: ObjectTree, new: ObjectTree, domain: str) -> None:
    """Move a domain that is in both places, which an older version has made that ran in between."""
    for shard in SHARDS:
        top.move_shard_to(new, domain, shard)
        # Not empty: names in it are not ours.
        with suppress(OSError):
            os.rmdir(f"{domain}/{shard}", dir_fd=top.fd)
    with suppress(OSError):
        os.rmdir(domain, dir_fd=top.fd)
