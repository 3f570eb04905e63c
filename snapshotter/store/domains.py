"""Sharing domains: who may use content that somebody else fetched."""

import hashlib
import re

from snapshotter.errors import ConfigError, StoreError

_DOMAIN = re.compile(r"[a-z0-9-]{1,64}")
_SLUG = 29  # 29 + "-" + 32 hex digits of the hash = 62


def is_domain(name: str) -> bool:
    """Whether `name` can be a directory of the store; other names beside those of domains are not ours."""
    return _DOMAIN.fullmatch(name) is not None


def check_domain(domain: str) -> str:
    """Return `domain` if it can be a directory name of the store.

    Raises:
        StoreError: it cannot.
    """
    if not is_domain(domain):
        raise StoreError(f"sharing domain {domain!r}: must be 1 to 64 of a-z, 0-9 and '-'")
    return domain


def sharing_domain(share: str, registry_host: str, repository: str) -> str:
    """The domain of an image's content under `cache.share`: one for the node, for the registry or for the repository.

    Different registries or repositories never get the same domain: 128 bits of a hash follow the readable part.

    Raises:
        ConfigError: `share` is none of "node", "registry" and "image".
    """
    if share == "node":
        return "node"
    if share == "registry":
        name = registry_host
    elif share == "image":
        name = f"{registry_host}/{repository}"
    else:
        raise ConfigError(f'cache.share = {share!r}: must be "node", "registry" or "image"')
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower())[:_SLUG].strip("-")
    return f"{slug}-{hashlib.sha256(f'{share}:{name}'.encode()).hexdigest()[:32]}".lstrip("-")
