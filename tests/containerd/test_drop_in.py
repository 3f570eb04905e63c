"""--write and --revert: what containerd makes of the result, and that the way back leads to the same bytes."""

import subprocess
from pathlib import Path

import pytest

from snapshotter.containerd import files
from snapshotter.containerd.drop_in import revert, write
from snapshotter.containerd.effective import effective
from snapshotter.containerd.introspection import Version
from snapshotter.containerd.lines import Wanted
from snapshotter.containerd.settings import UnpackConfig, complaints, read_settings
from snapshotter.containerd.site import DROP_IN_NAME
from snapshotter.errors import ConfigError
from tests.containerd.main_files import DEBIAN, KUBEADM, OF_1, OF_2, merged, parsed
from tests.containerd.nodes import (
    ROOT,
    SOCKET,
    V16,
    V21,
    needs_containerd,
    node,
    parsed_text,
    snapshot,
    wanted,
    with_program,
)


@needs_containerd
@pytest.mark.parametrize("text", OF_1.values(), ids=OF_1)
def test_on_1_containerd_takes_what_was_written_and_loses_nothing(tmp_path: Path, text: str) -> None:
    found = node(tmp_path, text, checked=True)
    as_it_was, files_before = effective(found), snapshot(tmp_path)
    assert write(found, wanted(found)).checked
    now = effective(found)
    settings = read_settings(now, V16, SOCKET)
    assert settings.plugin_name == "estargz"
    expected = {**as_it_was, "imports": now["imports"]}
    expected["proxy_plugins"] = {**as_it_was["proxy_plugins"], "estargz": now["proxy_plugins"]["estargz"]}
    if not settings.cri_disabled:
        assert (settings.snapshotter, settings.annotations_disabled) == ("estargz", False)
        for side in (expected, now):
            cri = side["plugins"]["io.containerd.grpc.v1.cri"]["containerd"]
            del cri["snapshotter"], cri["disable_snapshot_annotations"]
    expected["version"] = now["version"]
    assert now == expected
    revert(found)
    assert snapshot(tmp_path) == files_before


@pytest.mark.parametrize("transfer", [False, True])
@pytest.mark.parametrize("text", OF_2.values(), ids=OF_2)
def test_on_2_everything_is_in_the_drop_in(tmp_path: Path, text: str, transfer: bool) -> None:
    found = node(tmp_path, text, V21)
    (tmp_path / "a.toml").write_text("[debug]\nlevel = 'warn'\n")
    as_it_was, before = merged(tmp_path / "config.toml"), snapshot(tmp_path)
    write(found, wanted(found, transfer=transfer))
    now = merged(tmp_path / "config.toml")
    settings = read_settings(now, V21, SOCKET)
    wrong = [one for one in complaints(settings, V21, SOCKET, ROOT) if one.severity != "note"]
    if transfer and "discard_unpacked_layers" in text:
        assert settings.own_puller == "discard_unpacked_layers = true"
    else:
        assert (wrong, settings.transfer) == ([], transfer)
    main = parsed(tmp_path / "config.toml")
    assert {**main, "imports": []} == {**parsed_text(before["config.toml"]), "imports": []}
    assert parsed(tmp_path / "conf.d" / DROP_IN_NAME)["version"] == main["version"]
    assert now["debug"] == as_it_was.get("debug") if "debug" in as_it_was else True
    revert(found)
    assert snapshot(tmp_path) == before


def test_a_main_file_that_is_not_there_is_made_and_goes_again(tmp_path: Path) -> None:
    found = node(tmp_path, None, V21)
    write(found, wanted(found))
    assert read_settings(merged(tmp_path / "config.toml"), V21, SOCKET).snapshotter == "estargz"
    revert(found)
    assert snapshot(tmp_path) == {}


@needs_containerd
def test_without_a_main_file_1_takes_what_is_made(tmp_path: Path) -> None:
    found = node(tmp_path, None, checked=True)
    write(found, wanted(found))
    assert read_settings(effective(found), V16, SOCKET).snapshotter == "estargz"
    revert(found)
    assert snapshot(tmp_path) == {}


def test_written_again_nothing_changes(tmp_path: Path) -> None:
    found = node(tmp_path, KUBEADM)
    assert write(found, wanted(found)).changes
    before = snapshot(tmp_path)
    assert not write(found, wanted(found)).changes
    assert snapshot(tmp_path) == before


def test_written_with_another_name_the_first_is_gone_and_the_way_back_is_the_same(tmp_path: Path) -> None:
    found = node(tmp_path, KUBEADM)
    before = snapshot(tmp_path)
    write(found, wanted(found))
    write(found, wanted(found, "other"))
    assert list(parsed(tmp_path / "conf.d" / DROP_IN_NAME)["proxy_plugins"]) == ["other"]
    revert(found)
    assert snapshot(tmp_path) == before


def test_after_an_upgrade_to_2_everything_moves_into_the_drop_in(tmp_path: Path) -> None:
    old = node(tmp_path, KUBEADM)
    before = snapshot(tmp_path)
    write(old, wanted(old))
    new = node(tmp_path, None, V21)
    write(new, wanted(new))
    assert parsed(tmp_path / "config.toml")["plugins"] == parsed_text(before["config.toml"])["plugins"]
    assert read_settings(merged(tmp_path / "config.toml"), V21, SOCKET).snapshotter == "estargz"
    revert(new)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("version", [V16, V21])
def test_later_edits_of_the_admin_stay(tmp_path: Path, version: Version) -> None:
    found = node(tmp_path, KUBEADM, version)
    write(found, wanted(found))
    main = tmp_path / "config.toml"
    edited = main.read_text().replace('level = "info"', 'level = "debug"  # mine').replace("# mirrored", "# not")
    main.write_text(edited.replace('"/etc', '"/etc') + '\n[metrics]\n  address = "127.0.0.1:1338"\n')
    revert(found)
    expected = KUBEADM.replace("/nowhere", str(tmp_path)).replace('level = "info"', 'level = "debug"  # mine')
    expected = expected.replace("# mirrored", "# not") + '\n[metrics]\n  address = "127.0.0.1:1338"\n'
    assert main.read_text() == expected
    assert not (tmp_path / "conf.d").exists()


def test_a_key_that_the_admin_changed_since_stays_and_is_named(tmp_path: Path) -> None:
    found = node(tmp_path, KUBEADM)
    write(found, wanted(found))
    main = tmp_path / "config.toml"
    main.write_text(main.read_text().replace('snapshotter = "estargz"', 'snapshotter = "native"'))
    outcome = revert(found)
    assert outcome.kept == (f"{main}: plugins.io.containerd.grpc.v1.cri.containerd.snapshotter",)
    assert parsed(main)["plugins"]["io.containerd.grpc.v1.cri"]["containerd"]["snapshotter"] == "native"


def test_an_import_that_the_admin_added_since_stays(tmp_path: Path) -> None:
    found = node(tmp_path, DEBIAN, V21)
    write(found, wanted(found))
    main = tmp_path / "config.toml"
    main.write_text(main.read_text().replace("imports = [", 'imports = ["/x.toml", '))
    revert(found)
    assert parsed(main)["imports"] == ["/x.toml"]


def test_lines_that_the_admin_added_to_the_drop_in_stay_imported(tmp_path: Path) -> None:
    found = node(tmp_path, DEBIAN, V21)
    write(found, wanted(found))
    drop_in = tmp_path / "conf.d" / DROP_IN_NAME
    drop_in.write_text(drop_in.read_text() + '[proxy_plugins.mine]\ntype = "snapshot"\naddress = "/run/mine"\n')
    revert(found)
    assert list(merged(tmp_path / "config.toml")["proxy_plugins"]) == ["mine"]


def test_a_directory_that_is_imported_already_is_used(tmp_path: Path) -> None:
    found = node(tmp_path, 'version = 3\nimports = ["/nowhere/d/*.toml"]\n', V21)
    (tmp_path / "d").mkdir()
    before = snapshot(tmp_path)
    write(found, wanted(found))
    assert (tmp_path / "config.toml").read_bytes() == before["config.toml"]
    assert read_settings(merged(tmp_path / "config.toml"), V21, SOCKET).snapshotter == "estargz"
    revert(found)
    assert snapshot(tmp_path) == before


@needs_containerd
def test_on_1_the_keys_go_where_the_section_counts(tmp_path: Path) -> None:
    """An imported file with a section about CRI, as a GPU's installer writes it, makes containerd forget the main file's."""
    found = node(tmp_path, KUBEADM, checked=True)
    (tmp_path / "conf.d").mkdir()
    gpu = tmp_path / "conf.d" / "gpu.toml"
    gpu.write_text('version = 2\n[plugins."io.containerd.grpc.v1.cri".containerd]\n  default_runtime_name = "nvidia"\n')
    before = snapshot(tmp_path)
    write(found, wanted(found))
    now = effective(found)
    assert read_settings(now, V16, SOCKET).snapshotter == "estargz"
    assert now["plugins"]["io.containerd.grpc.v1.cri"]["containerd"]["default_runtime_name"] == "nvidia"
    assert (tmp_path / "config.toml").read_bytes() == before["config.toml"]
    revert(found)
    assert snapshot(tmp_path) == before


@needs_containerd
def test_what_containerd_does_not_take_is_put_back(tmp_path: Path) -> None:
    found = node(
        tmp_path, DEBIAN + '[plugins."io.containerd.gc.v1.scheduler"]\n  pause_threshold = "much"\n', checked=True
    )
    before = snapshot(tmp_path)
    with pytest.raises(ConfigError, match="containerd does not take it"):
        write(found, wanted(found))
    assert snapshot(tmp_path) == before


def test_a_later_import_that_overrides_is_named_and_all_put_back(tmp_path: Path) -> None:
    found = node(tmp_path, 'version = 3\nimports = ["/nowhere/d/*.toml"]\n', V21)
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "zz.toml").write_text("[plugins.'io.containerd.cri.v1.images']\nsnapshotter = 'native'\n")
    before = snapshot(tmp_path)
    with pytest.raises(ConfigError, match=r"zz\.toml overrides it"):
        write(with_program(found, tmp_path), wanted(found))
    assert {key: value for key, value in snapshot(tmp_path).items() if not key.startswith("program")} == before


def test_broken_toml_is_named_with_its_line_and_nothing_is_written(tmp_path: Path) -> None:
    found = node(tmp_path, "version = 2\n[grpc\n")
    before = snapshot(tmp_path)
    with pytest.raises(ConfigError, match=r"config\.toml: not valid TOML: .*line 2"):
        write(found, Wanted("estargz", SOCKET, ROOT, V16, 2))
    assert snapshot(tmp_path) == before


def test_a_symbolic_link_stays_one(tmp_path: Path) -> None:
    found = node(tmp_path, DEBIAN)
    main, real = tmp_path / "config.toml", tmp_path / "real.toml"
    main.rename(real)
    main.symlink_to("real.toml")
    write(found, wanted(found))
    assert main.is_symlink()
    assert "imports" in parsed(real)
    revert(found)
    assert main.is_symlink()
    assert real.read_text() == DEBIAN


def test_mode_of_the_main_file_is_kept_also_by_the_backup(tmp_path: Path) -> None:
    found = node(tmp_path, DEBIAN)
    (tmp_path / "config.toml").chmod(0o600)
    write(found, wanted(found))
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir() if path.is_file()}
    assert modes["config.toml"] == modes["config.toml.before-estargz-snapshotter"] == 0o600


def test_a_file_mounted_over_itself_is_written_in_place(tmp_path: Path) -> None:
    found = node(tmp_path, DEBIAN)
    main = tmp_path / "config.toml"
    if subprocess.run(["mount", "--bind", main, main], check=False, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        write(found, wanted(found))
        assert "imports" in parsed(main)
        revert(found)
        assert main.read_text() == DEBIAN
    finally:
        subprocess.run(["umount", main], check=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.toml"]


def test_on_a_read_only_file_system_nothing_is_half_done(tmp_path: Path) -> None:
    found = node(tmp_path, DEBIAN)
    before = snapshot(tmp_path)
    if subprocess.run(["mount", "--bind", tmp_path, tmp_path], check=False, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", tmp_path], check=True)
        with pytest.raises(ConfigError, match="Read-only file system; nothing was changed"):
            write(found, wanted(found))
    finally:
        subprocess.run(["umount", tmp_path], check=True)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("failing", range(5))
def test_a_disk_that_fails_at_any_file_leaves_all_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    found = node(tmp_path, KUBEADM)
    before = snapshot(tmp_path)
    count = iter(range(100))
    real = files._put

    def put(path: Path, data: bytes | None, like: Path | None) -> None:
        if next(count) == failing:
            raise OSError(28, "No space left on device")
        real(path, data, like)

    monkeypatch.setattr(files, "_put", put)
    if failing < 4:
        with pytest.raises(ConfigError, match="No space left"):
            write(found, wanted(found))
        assert snapshot(tmp_path) == before
    else:
        write(found, wanted(found))


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("killed_after", range(12))
def test_a_write_that_was_killed_half_way_can_be_reverted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_after: int, *, again: bool
) -> None:
    found = node(tmp_path, KUBEADM)
    before = snapshot(tmp_path)
    if again:
        write(found, wanted(found))
    calls = iter(range(100))
    real = files._put

    def put(path: Path, data: bytes | None, like: Path | None) -> None:
        if next(calls) < killed_after:
            real(path, data, like)

    with monkeypatch.context() as patch:
        patch.setattr(files, "_put", put)
        write(found, wanted(found, "other"))
    revert(found)
    left = snapshot(tmp_path)
    left.pop("conf.d", None)  # who was killed before the record was written has made an empty directory at most
    assert left == before


def test_a_disk_that_does_not_take_the_old_content_back_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = node(tmp_path, KUBEADM)
    calls = iter(range(100))
    real = files._put

    def put(path: Path, data: bytes | None, like: Path | None) -> None:
        if next(calls) >= 3:
            raise OSError(5, "Input/output error")
        real(path, data, like)

    monkeypatch.setattr(files, "_put", put)
    with pytest.raises(ConfigError, match=r"Input/output error; and .* could not be put back"):
        write(found, wanted(found))


def test_a_drop_in_that_somebody_else_wrote_is_left_alone(tmp_path: Path) -> None:
    found = node(tmp_path, DEBIAN)
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / DROP_IN_NAME).write_text("# mine\n")
    with pytest.raises(ConfigError, match="not written by this command"):
        write(found, wanted(found))


def test_a_damaged_record_says_what_to_do(tmp_path: Path) -> None:
    found = node(tmp_path, DEBIAN)
    write(found, wanted(found))
    (tmp_path / "estargz-snapshotter.json").write_text("{}")
    with pytest.raises(ConfigError, match="put the files back by hand"):
        revert(found)


def test_a_dry_run_changes_nothing(tmp_path: Path) -> None:
    found = node(tmp_path, KUBEADM)
    before = snapshot(tmp_path)
    assert write(found, wanted(found), dry_run=True).changes
    assert snapshot(tmp_path) == before
    write(found, wanted(found))
    before = snapshot(tmp_path)
    assert revert(found, dry_run=True).changes
    assert snapshot(tmp_path) == before


def test_the_transfer_service_goes_on_unpacking_for_others(tmp_path: Path) -> None:
    found = node(tmp_path, "version = 3\n", V21)
    wish = Wanted("estargz", SOCKET, ROOT, V21, 3, True, unpack=(UnpackConfig("linux/amd64", "native"),))
    write(found, wish)
    settings = read_settings(merged(tmp_path / "config.toml"), V21, SOCKET)
    assert settings.unpack_config == (UnpackConfig("linux", "estargz"), UnpackConfig("linux/amd64", "native"))
