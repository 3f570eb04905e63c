import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from snapshotter.errors import StoreError
from snapshotter.store.place import content_place
from tests.store.content import bytes_of, content, du, identity_of, killed, object_path, opened, place_of, put

FILES = [bytes_of(3000, seed) for seed in range(6)]
# The last two could be taken for a place if its first character did not tell.
DOMAINS = ["node", "registry-example-org-0123456789abcdef", "abcdefghij2345", "-bcdefghij2345"]
STEPS = ("mkdir", "rename", "rmdir", "fchmod", "link", "unlink")


class Killed(BaseException):
    """The process ended here."""


@contextmanager
def killed_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let `steps` changes of the disk pass and no further one."""
    left = steps

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal left
            if left == 0:
                raise Killed
            left -= 1
            return real(*arguments, **named)

        return call

    with monkeypatch.context() as patch:
        for name in STEPS:
            patch.setattr(os, name, counted(getattr(os, name)))
        yield


def old_layout(root: Path, domains: list[str]) -> None:
    """A root as the version before places left it, every domain with all files."""
    with opened(root) as store:
        for domain in domains:
            for data in FILES:
                put(store, data, identity_of(data), 0, domain)
    folder = root / "objects" / place_of(root)
    for domain in domains:
        os.rename(folder / domain, root / "objects" / domain)
    folder.rmdir()


def assert_all_there(root: Path, domains: list[str]) -> None:
    with opened(root) as store:
        assert os.listdir(root / "objects") == [store.place]
        assert sorted(os.listdir(root / "objects" / store.place)) == sorted(domains)
        assert store.usage().unproven == 0
        assert store.usage().used == du(root)
        for domain in domains:
            assert [content(store, identity_of(data), domain) for data in FILES] == FILES


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_place_is_a_random_name_made_once_and_only_for_root(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    place = content_place(tmp_path / "a")
    assert re.fullmatch(r"_[a-z2-7]{13}", place)
    assert content_place(tmp_path / "a") == place
    assert content_place(tmp_path / "b") != place
    assert mode(tmp_path / "a" / "objects") == mode(tmp_path / "a" / "objects" / place) == 0o700


def test_place_that_could_be_read_is_closed_at_the_next_start(tmp_path: Path) -> None:
    place = content_place(tmp_path)
    for path in (tmp_path / "objects" / place, tmp_path / "objects"):
        path.chmod(0o755)
    assert content_place(tmp_path) == place
    assert mode(tmp_path / "objects") == mode(tmp_path / "objects" / place) == 0o700


def test_store_keeps_its_objects_below_the_place(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        put(store, FILES[0], identity_of(FILES[0]), 0)
        digest = identity_of(FILES[0]).digest
        assert (tmp_path / "objects" / store.place / "node" / digest.hex()[:2] / digest.hex()).read_bytes() == FILES[0]


def test_content_of_the_old_layout_moves_below_the_place(tmp_path: Path) -> None:
    old_layout(tmp_path, DOMAINS)
    folder = (tmp_path / "objects").stat().st_ino
    assert_all_there(tmp_path, DOMAINS)
    # Mounts hold the directory itself, so that it must stay the same one.
    assert (tmp_path / "objects").stat().st_ino == folder


def test_content_of_the_old_layout_is_as_trusted_as_before(tmp_path: Path) -> None:
    synced, torn = identity_of(FILES[0]), identity_of(FILES[1])
    with killed(tmp_path) as store:
        put(store, FILES[0], synced, 0)
        store.sync()
        put(store, FILES[1], torn, 0)
    folder = tmp_path / "objects" / place_of(tmp_path)
    os.rename(folder / "node", tmp_path / "objects" / "node")
    folder.rmdir()
    with opened(tmp_path, boot="boot 2") as store:
        assert store.has("node", synced.digest, synced.size)
        assert not store.has("node", torn.digest, torn.size)
        assert store.usage().unproven == 1


def test_migration_killed_at_any_step_is_completed_by_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for steps in range(100):
        root = tmp_path / str(steps)
        old_layout(root, DOMAINS)
        with killed_after(steps, monkeypatch):
            try:
                content_place(root)
            except Killed:
                ended = False
            else:
                ended = True
        assert_all_there(root, DOMAINS)
        if ended:
            break
    # Two modes, the directory, and each domain.
    assert steps >= 3 + len(DOMAINS)


def test_migration_killed_again_and_again_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old_layout(tmp_path, DOMAINS)
    for steps in (1, 2, 3, 4):
        with killed_after(steps, monkeypatch), pytest.raises(Killed):
            content_place(tmp_path)
    assert_all_there(tmp_path, DOMAINS)


def in_both_layouts(root: Path) -> None:
    """As if an older version had run once more after the migration: the domain is in both places, each with its half."""
    with opened(root) as store:
        for data in FILES[::2]:
            put(store, data, identity_of(data), 0)
    os.rename(root / "objects" / place_of(root), root / "kept")
    with opened(root) as store:
        for data in FILES[:5]:
            put(store, data, identity_of(data), 0)
        store.sync()
    other = root / "objects" / place_of(root)
    os.rename(other / "node", root / "objects" / "node")
    other.rmdir()
    os.rename(root / "kept", root / "objects" / "_abcdefghij234")
    with opened(root) as store:
        put(store, FILES[5], identity_of(FILES[5]), 0)


def test_domain_in_both_layouts_is_merged_and_a_kill_at_any_step_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for steps in range(2000):
        root = tmp_path / str(steps)
        if steps > 20 and steps % 97:  # one step is like the other, and most are failed renames of shards
            continue
        in_both_layouts(root)
        with killed_after(steps, monkeypatch):
            try:
                content_place(root)
            except Killed:
                ended = False
            else:
                ended = True
        assert_all_there(root, ["node"])
        if ended:
            break
    assert steps > 4


def test_two_places_are_an_error_that_says_what_to_do_and_keeps_the_names(tmp_path: Path) -> None:
    first = content_place(tmp_path)
    (tmp_path / "objects" / "_abcdefghij234").mkdir()
    (tmp_path / "objects" / "node").mkdir()
    with pytest.raises(StoreError, match="keep the one in use") as raised:
        content_place(tmp_path)
    assert first not in str(raised.value)
    assert "abcdefghij234" not in str(raised.value)
    assert (tmp_path / "objects" / "node").exists()
    with pytest.raises(StoreError, match="keep the one in use"), opened(tmp_path):
        pass


def test_what_is_not_ours_stays_where_it_is(tmp_path: Path) -> None:
    top = tmp_path / "objects"
    for name in ("lost+found", "_tooshort", "_ABCDEFGHIJ234", "=node"):
        (top / name).mkdir(parents=True)
    (top / "file").write_text("mine")
    (top / "_bcdefghij2345").write_text("a file with the name of a place")
    with opened(tmp_path) as store:
        (top / store.place / "lost+found").mkdir()
        assert store.domains() == []
        assert store.usage().used == 0
        assert {path.name for path in top.iterdir()} == {
            "lost+found", "_tooshort", "_ABCDEFGHIJ234", "=node", "file", "_bcdefghij2345", store.place,
        }  # fmt: skip


def test_planted_symlinks_are_neither_places_nor_domains(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "ab").mkdir(parents=True)
    root = tmp_path / "root"
    (root / "objects").mkdir(parents=True)
    (root / "objects" / "_abcdefghij234").symlink_to(outside)
    (root / "objects" / "node").symlink_to(outside)
    with opened(root) as store:
        assert store.place != "_abcdefghij234"
        assert os.listdir(root / "objects" / store.place) == []
        put(store, FILES[0], identity_of(FILES[0]), 0)
        assert content(store, identity_of(FILES[0])) == FILES[0]
    assert os.listdir(outside) == ["ab"]
    assert os.listdir(outside / "ab") == []


@pytest.mark.parametrize("name", ["objects", "late"])
def test_planted_symlink_in_place_of_a_directory_is_a_store_error(tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    (outside / "node").mkdir(parents=True)
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / name).symlink_to(outside)
    with pytest.raises(StoreError), opened(tmp_path / "root"):
        pass
    assert os.listdir(outside) == ["node"]


def test_content_deleted_under_a_running_daemon_does_not_stop_it_from_storing(tmp_path: Path) -> None:
    first, second = identity_of(FILES[0]), identity_of(FILES[1])
    with opened(tmp_path) as store:
        for gone in (f"objects/{store.place}/node", f"objects/{store.place}", "objects", "late"):
            put(store, FILES[0], first, 0)
            assert store.link_late("node", first.digest, first.size)
            shutil.rmtree(tmp_path / gone)
            put(store, FILES[1], second, 0)
            assert object_path(tmp_path, second.digest).read_bytes() == FILES[1]
            assert store.link_late("node", second.digest, second.size)
            assert mode(tmp_path / "objects") == mode(tmp_path / "late") == 0o700
            store.remove("node", second.digest)
            store.remove("node", first.digest)
            store.sweep_late(0)
