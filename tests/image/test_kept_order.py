"""What an earlier conversion put in front stays there, unless a list says otherwise."""

from pathlib import Path

import pytest

from tests.format.tars import entry, folder, hard_link, tar
from tests.image.converting import run
from tests.image.images import Image, Layout

pytestmark = pytest.mark.usefixtures("scratch")

BASE = tar(folder("a"), entry("a/1", b"1"), folder("b"), entry("b/2", b"22"), hard_link("b/3", "a/1"), entry("c", b"3"))
TOP = tar(folder("b"), entry("b/4", b"4"), entry("b/5", b"55"), entry("empty"))


def digests(path: Path, name: str) -> list[str]:
    return [layer["digest"] for layer in Layout(path).top(name)["layers"]]


def test_order_and_landmarks_outlast_another_conversion(tmp_path: Path) -> None:
    names = tmp_path / "list"
    names.write_text("/b/5\n/b/3\n/c\n")
    image = Image(BASE, TOP)
    assert run(image.lay_out(tmp_path / "a"), f"oci:{tmp_path}/b:one", "--prefetch-list", names) == 0
    assert run(f"oci:{tmp_path}/b:one", f"oci:{tmp_path}/b:two") == 0
    assert digests(tmp_path / "b", "two") == digests(tmp_path / "b", "one")
    assert run(image.lay_out(tmp_path / "a"), f"oci:{tmp_path}/b:plain") == 0
    assert digests(tmp_path / "b", "plain") != digests(tmp_path / "b", "one")


def test_new_list_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text("/b/5\n/c\n")
    new.write_text("/b/4\n/b/2\n")
    image = Image(BASE, TOP).lay_out(tmp_path / "a")
    assert run(image, f"oci:{tmp_path}/b:old", "--prefetch-list", old) == 0
    assert run(f"oci:{tmp_path}/b:old", f"oci:{tmp_path}/b:new", "--prefetch-list", new, "--json") == 0
    layout = Layout(tmp_path / "b")
    for before, after in zip(layout.top("old")["layers"], layout.top()["layers"], strict=True):
        assert after["digest"] != before["digest"]


def test_empty_list_puts_nothing_in_front(tmp_path: Path) -> None:
    names, nothing = tmp_path / "list", tmp_path / "nothing"
    names.write_text("/b/5\n/c\n")
    nothing.write_text("# nothing\n")
    image = Image(BASE).lay_out(tmp_path / "a")
    assert run(image, f"oci:{tmp_path}/b:one", "--prefetch-list", names) == 0
    assert run(f"oci:{tmp_path}/b:one", f"oci:{tmp_path}/b:two", "--prefetch-list", nothing) == 0
    assert digests(tmp_path / "b", "two") != digests(tmp_path / "b", "one")
