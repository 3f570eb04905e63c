"""Deleted files that somebody holds: counted until they are gone, and never the cache's own business after that."""

import ctypes
import errno
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from snapshotter.store import held
from tests.store.content import DOMAIN, bytes_of, du, identity_of, object_path, opened, put

DATA = bytes_of(300_000)
FILE = identity_of(DATA)


def test_file_that_somebody_holds_is_counted_until_it_is_let_go(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        put(store, DATA, FILE, 0)
        size = store.usage().used
        # A path only: as an overlay holds it, without a descriptor that reads.
        holder = os.open(object_path(tmp_path, FILE.digest), os.O_PATH)
        evicted = store.evict([(DOMAIN, FILE.digest, FILE.size)], 1)
        assert (evicted.bytes, evicted.held) == (size, size)
        usage = store.usage()
        assert (usage.used, usage.deleted_open, usage.held) == (0, 0, size)
        os.close(holder)
        store.tend_disk()
        assert store.usage().held == 0


def test_file_that_nobody_holds_is_free_at_once(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        put(store, DATA, FILE, 0)
        assert store.read(DOMAIN, FILE.digest, FILE.size, 0, 10) == DATA[:10]
        assert store.evict([(DOMAIN, FILE.digest, FILE.size)], 1).held == 0
        assert store.usage().held == 0


def test_name_that_the_gate_has_just_given_is_counted(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        put(store, DATA, FILE, 0)
        store.link_late(DOMAIN, FILE.digest, FILE.size)
        store.remove(DOMAIN, FILE.digest)
        assert store.usage().held == du(tmp_path) > 0
        store.sweep_late(0)
        assert store.usage().held == du(tmp_path) == 0


def test_file_of_two_domains_is_not_held_by_the_other(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        for domain in ("a", "b"):
            put(store, DATA, FILE, 0, domain)
        assert store.evict([("a", FILE.digest, FILE.size)], 1).held == 0
        assert store.usage().held == 0
        assert store.usage().used == du(tmp_path)


def test_file_that_a_reader_of_ours_has_open_is_counted_once(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        put(store, DATA, FILE, 0)
        handle = store.acquire(DOMAIN, FILE.digest, FILE.size)
        assert handle is not None
        with handle:
            freed = store.remove(DOMAIN, FILE.digest)
            usage = store.usage()
            assert (usage.deleted_open, usage.held) == (freed, 0)


def test_without_the_capability_nothing_is_known_and_nothing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        ctypes.set_errno(errno.EPERM)
        return -1

    with opened(tmp_path) as store:
        put(store, DATA, FILE, 0)
        with open(object_path(tmp_path, FILE.digest), "rb"):
            monkeypatch.setattr(held, "_libc", SimpleNamespace(name_to_handle_at=refuse, open_by_handle_at=refuse))
            evicted = store.evict([(DOMAIN, FILE.digest, FILE.size)], 1)
        assert (evicted.objects, evicted.held, store.usage().held) == (1, 0, 0)
