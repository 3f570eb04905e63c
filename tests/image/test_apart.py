"""Looking into an image's root, and networks, in namespaces that nobody else sees."""

import os
from pathlib import Path

import pytest

from snapshotter.api.mount_pb2 import Mount
from snapshotter.errors import StoreError
from snapshotter.image.optimize.apart import new_network, read_root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with files, links that would lead out of it, and things that are no files."""
    tree = tmp_path / "root"
    (tree / "etc").mkdir(parents=True)
    (tree / "etc" / "passwd").write_text("of the image\n")
    (tree / "etc" / "link").symlink_to("/etc/passwd")
    (tree / "etc" / "up").symlink_to("../../../../../../../../etc/passwd")
    (tree / "etc" / "loop").symlink_to("loop")
    os.mkfifo(tree / "etc" / "fifo")
    return tree


def test_files_are_those_of_the_root_whatever_links_say(root: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    mounts = [Mount(type="bind", source=str(root), options=["rbind", "ro"])]
    names = ("etc/passwd", "etc/link", "etc/up", "etc/fifo", "etc", "none", "etc/passwd/below")
    found = read_root(mounts, place, names)
    assert found == [b"of the image\n"] * 3 + [None] * 4
    # Mounted nowhere that anybody else sees, and this process is where it was.
    assert os.listdir(place) == []
    assert Path("/etc/passwd").read_text() != "of the image\n"


def test_overlay_of_two_layers_is_read_as_one(root: Path, tmp_path: Path) -> None:
    upper, place = tmp_path / "upper", tmp_path / "place"
    (upper / "etc").mkdir(parents=True)
    place.mkdir()
    (upper / "etc" / "group").write_text("above\n")
    mounts = [Mount(type="overlay", source="overlay", options=[f"lowerdir={upper}:{root}"])]
    assert read_root(mounts, place, ("etc/group", "etc/passwd")) == [b"above\n", b"of the image\n"]


def test_overlay_of_more_layers_than_a_page_has_names_for_is_read(root: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    layers = [tmp_path / f"a-long-name-for-a-directory-of-layers-{number}" / "fs" for number in range(60)]
    for number, layer in enumerate(layers):
        (layer / "etc").mkdir(parents=True)
        (layer / "etc" / f"of-{number}").write_text(f"{number}\n")
    options = [f"lowerdir={':'.join(map(str, [*layers, root]))}"]
    assert len(options[0]) > 4096
    found = read_root(
        [Mount(type="overlay", source="overlay", options=options)], place, ("etc/of-0", "etc/of-59", "etc/passwd")
    )
    assert found == [b"0\n", b"59\n", b"of the image\n"]


def test_root_that_cannot_be_mounted_is_told(tmp_path: Path) -> None:
    mounts = [Mount(type="bind", source=str(tmp_path / "none"), options=["rbind"])]
    with pytest.raises(StoreError, match="could not be looked into: No such file or directory"):
        read_root(mounts, tmp_path, ("etc/passwd",))


def test_link_that_never_ends_is_told(root: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    mounts = [Mount(type="bind", source=str(root), options=["rbind"])]
    with pytest.raises(StoreError, match="Too many levels of symbolic links"):
        read_root(mounts, place, ("etc/loop",))


def test_network_is_another_one_and_this_process_stays_in_its_own() -> None:
    before = os.readlink("/proc/self/ns/net")
    namespace = new_network()
    try:
        assert os.readlink(f"/proc/self/fd/{namespace}") != before
        assert os.readlink("/proc/self/ns/net") == before
    finally:
        os.close(namespace)
