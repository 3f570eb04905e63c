"""What containers do to lazily pulled files: the same as where the image was unpacked, and without more fetching than it takes."""

import io
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from integration.conftest import ALONE
from integration.fidelity import differences, report
from integration.harness.cri import Container
from integration.harness.node import CRI_NAMESPACE, Node, node
from integration.harness.registry import Registry
from integration.harness.roots import Roots
from integration.harness.scratch import drop_caches
from integration.images.trial import CHANGES, LARGE, PROBE, SHOW, content, expected, large

SLEEP = ("/bin/busybox", "sleep", "1000")
METACOPY = "trusted.overlay.metacopy"
SMALL = 2000
"""Bytes on the wire for one small file, with the answer's headers; its neighbours are more."""


@pytest.fixture(scope="module")
def this(registry: Registry, trial_image: str, whole_node: Node, plane: str) -> Iterator[Node]:
    """A node of each plane; the tests use different files of one image. The oracle is there before, or it would end with it."""
    with node(registry, settings=ALONE, plane=plane) as made:
        made.sandbox()
        made.pull(trial_image)
        yield made


@pytest.fixture(scope="module")
def box(this: Node) -> Container:
    """A running container whose tools are on the node."""
    made = this.start(this.reference("trial:lazy"), *SLEEP)
    assert made.exec(["/bin/busybox", "sh", "-c", "/bin/probe uid"]).stdout == "0 0\n"
    return made


def sh(box: Container, script: str) -> str:
    """What a shell in the container prints; it must end well."""
    output = box.exec(["/bin/busybox", "sh", "-ec", script])
    assert (output.exit_code, output.stderr) == (0, ""), output
    return output.stdout


def read(box: Container, path: str) -> str:
    """What the probe says of a file."""
    return box.exec([PROBE, "read", path]).stdout


@dataclass(frozen=True, slots=True)
class Wire:
    """Counts from where it was made."""

    this: Node
    begin: int

    def fetched(self) -> int:
        """Bytes received since."""
        return self.this.traffic().received - self.begin

    def fetched_small_files(self, count: int) -> bool:
        """Whether at most so many small files came, and none on the fuse plane.

        The kernel (fs/overlayfs/copy_up.c, ovl_copy_up_flags) looks for a file's content before it copies even its
        attributes up. On the erofs plane this look fetches a file of one chunk; a larger one only gets an inode.
        """
        each = SMALL if self.this.daemon.json("status")["plane"] == "erofs" else 0
        return self.fetched() <= count * each


@pytest.fixture
def wire(this: Node) -> Wire:
    """What the test has received so far."""
    return Wire(this, this.traffic().received)


def is_metadata(path: Path) -> bool:
    """Whether a file in an upper directory has attributes alone: it is one hole."""
    with open(path, "rb") as file, pytest.raises(OSError, match="No such device or address"):
        os.lseek(file.fileno(), 0, os.SEEK_DATA)
    return METACOPY in os.listxattr(path)


def test_chmod_copies_no_content(this: Node, box: Container, wire: Wire) -> None:
    assert sh(box, "chmod 604 /change/0; stat -c '%a %u %s' /change/0") == f"604 7 {len(content('change', 0))}\n"
    assert wire.fetched_small_files(1)
    assert is_metadata(this.upper(box) / "change" / "0")
    assert read(box, "/change/0") == expected(content("change", 0))


def test_attributes_of_a_large_file_change_without_fetching_it(this: Node, box: Container, wire: Wire) -> None:
    sh(box, "chown 12:34 /tree/large; chmod 444 /tree/large; touch -d @1000000000 /tree/large; mv /tree/large /tree/l")
    assert sh(box, "stat -c '%u %g %Y %s' /tree/l") == f"12 34 1000000000 {len(large('tree'))}\n"
    assert is_metadata(this.upper(box) / "tree" / "l")
    assert wire.fetched() == 0
    assert read(box, "/tree/l") == expected(large("tree"))


def test_append_copies_the_right_bytes_up(box: Container) -> None:
    sh(box, "echo more >> /change/1; echo more >> /change/large")
    assert read(box, "/change/1") == expected(content("change", 1) + b"more\n")
    assert read(box, "/change/large") == expected(large("change") + b"more\n")


def test_truncation_keeps_what_is_left(box: Container) -> None:
    sh(box, "truncate -s 5 /change/2; truncate -s 0 /change/3; truncate -s 200 /change/4; > /change/5")
    assert read(box, "/change/2") == expected(content("change", 2)[:5])
    assert read(box, "/change/3") == read(box, "/change/5") == expected(b"")
    assert read(box, "/change/4") == expected(content("change", 4).ljust(200, b"\0"))


def test_file_renamed_before_it_was_fetched_is_found_under_its_new_name(box: Container, wire: Wire) -> None:
    sh(box, "mv /change/6 /tmp/elsewhere; mv /change/7 /change/8")
    assert read(box, "/change/6") == read(box, "/change/7") == "open ENOENT\n"
    assert wire.fetched_small_files(2)
    assert read(box, "/tmp/elsewhere") == expected(content("change", 6))
    assert read(box, "/change/8") == expected(content("change", 7))


def test_removed_file_is_gone_and_may_come_back_as_another(box: Container) -> None:
    sh(box, "rm /change/9; echo new > /change/9; rm /change/10; mkdir /change/10; rm /change/11")
    assert read(box, "/change/9") == expected(b"new\n")
    assert sh(box, "ls -A /change/10; ls -d /change/11 2>&1 || true").endswith("No such file or directory\n")


def test_hard_link_to_a_file_not_yet_fetched_has_its_content(box: Container, wire: Wire) -> None:
    assert sh(box, "ln /change/12 /change/twelve; stat -c %h /change/12 /change/twelve") == "2\n2\n"
    assert wire.fetched_small_files(1)
    assert read(box, "/change/twelve") == expected(content("change", 12))
    sh(box, "echo more >> /change/twelve")
    assert read(box, "/change/12") == expected(content("change", 12) + b"more\n")


def test_directory_of_the_image_is_renamed_with_what_is_in_it(box: Container, wire: Wire) -> None:
    assert box.exec([PROBE, "rename", "/damage", "/tmp/moved"]).stdout == "rename ok\n"
    assert wire.fetched() == 0
    assert read(box, "/tmp/moved/3") == expected(content("damage", 3))
    assert read(box, "/tmp/moved/large") == expected(large("damage"))
    sh(box, "chmod 600 /tmp/moved/4; mkdir /damage; mv /tmp/moved/4 /damage/four; rm /tmp/moved/5")
    assert read(box, "/damage/four") == expected(content("damage", 4))
    assert sorted(map(int, sh(box, "ls /tmp/moved | grep -v '[a-z]'").split())) == [0, 1, 2, 3, *range(6, 24)]


def test_write_into_the_middle_of_a_large_file_is_read_back(box: Container) -> None:
    sh(box, "printf changed | dd of=/outage/large bs=1 seek=1500000 conv=notrunc 2>/dev/null")
    whole = large("outage")
    assert read(box, "/outage/large") == expected(whole[:1_500_000] + b"changed" + whole[1_500_007:])


def test_program_not_yet_fetched_is_executed(box: Container, wire: Wire) -> None:
    assert box.exec(["/change/program", "uid"]).stdout == "0 0\n"
    assert wire.fetched() > 0


def test_set_id_programs_and_devices_work_as_where_the_image_is_unpacked(box: Container) -> None:
    assert box.exec([PROBE, "as", "1000", "/special/set-uid", "uid"]).stdout == "1000 70000\n"
    assert sh(box, "echo into > /special/null; wc -c < /special/null") == "0\n"
    # Neither in the pod's device cgroup nor in the kernel.
    assert read(box, "/special/no-such-device") in {"open EPERM\n", "open ENXIO\n"}
    sh(box, "(echo through > /special/fifo &) ; read text < /special/fifo; test $text = through")


def test_new_files_and_directories_behave_as_anywhere(box: Container) -> None:
    sh(box, "mkdir -p /new/a; echo one > /new/a/1; mv /new/a /new/b; ln -s b/1 /new/link; chmod 2750 /new/b")
    assert sh(box, "cat /new/link; stat -c %a /new/b; rm -r /new; ls -d /new 2>/dev/null || true") == "one\n2750\n"


def test_container_that_changes_much_shows_what_it_does_on_overlayfs(this: Node, whole_node: Node) -> None:
    whole_node.pull("trial:lazy")
    shown = []
    for one in (this, whole_node):
        box = one.start(one.reference("trial:lazy"), *SLEEP)
        sh(box, CHANGES)
        shown.append(sorted(sh(box, SHOW).splitlines()))
        box.remove()
    assert len(shown[0]) > 600
    assert shown[0] == shown[1]


def test_changed_files_are_there_after_the_kernel_forgot_what_it_had_cached(box: Container) -> None:
    sh(box, "chmod 600 /requests/0 /requests/large; echo more >> /requests/1; mv /requests/2 /requests/two")
    sh(box, "echo more >> /requests/two; ln /requests/3 /requests/three; echo more >> /requests/3; rm /requests/4")
    # By their names alone: listing their directory would make the kernel know them in another way.
    show = (
        "for name in 0 1 two 3 three 5 large; do stat -c '%n %a %s %h' /requests/$name; sha1sum /requests/$name; done"
    )
    before = sh(box, show)
    for what in (3, 2):
        drop_caches(what)
        # The first look brings back what the second meets.
        assert sh(box, show) == before
        assert sh(box, show) == before


def changed(tree: Path) -> None:
    """What an administrator does to a tree before it is committed."""
    for path, mode in (("change/0", 0o604), ("change/large", 0o444), ("special/set-uid", 0o755), ("tree", 0o500)):
        os.chmod(tree / path, mode)
    os.chown(tree / "change" / "1", 1, 2)
    (tree / "change" / "2").rename(tree / "change" / "renamed")
    os.chmod(tree / "change" / "3", 0o600)
    (tree / "change" / "3").rename(tree / "tree" / "moved")
    os.link(tree / "special" / "linked-1", tree / "special" / "linked-3")
    (tree / "change" / "4").unlink()
    with open(tree / "change" / "5", "ab") as appended:
        appended.write(b"appended")
    (tree / "change" / "new").write_bytes(b"new")
    os.setxattr(tree / "change" / "6", "user.set", b"here")
    os.symlink("../bin/busybox", tree / "change" / "link")
    os.utime(tree / "change" / "7", (1, 2))
    for path in ("change", "tree", "special", "change/renamed", "change/5", "change/new", "change/link", "tree/moved"):
        os.utime(tree / path, (3, 4), follow_symlinks=False)


def committed(this: Node, key: str, namespace: str) -> tuple[Roots, str]:
    """An image's tree, changed and committed; returns the name of that snapshot."""
    roots = Roots(this, namespace)
    with roots.active(f"{key}-changing", roots.of_image("trial:lazy")) as tree:
        changed(tree)
    roots.commit(f"{key}-changing", f"{key}-committed")
    return roots, f"{key}-committed"


def test_committed_changes_are_a_sound_parent(this: Node, whole_node: Node, wire: Wire) -> None:
    whole_node.pull_whole("trial:lazy")
    ours, parent = committed(this, f"ours-{this.place.name}", CRI_NAMESPACE)
    assert wire.fetched() < len(LARGE)
    theirs, oracle = committed(whole_node, f"theirs-{this.place.name}", "default")
    with (
        ours.active(f"{parent}-child", parent) as left,
        theirs.active(f"{oracle}-child", oracle) as right,
    ):
        os.chmod(left / "change" / "0", 0o611)
        os.chmod(right / "change" / "0", 0o611)
        assert report(differences(left, right)) == ""


def test_committed_chmod_of_a_large_file_leaves_its_content_on_the_network(this: Node, wire: Wire) -> None:
    roots = Roots(this)
    with roots.active("metacopy", roots.of_image("trial:lazy")) as tree:
        os.chmod(tree / "kill" / "large", 0o600)
    roots.commit("metacopy", "metacopied")
    with roots.active("metacopy-child", "metacopied") as tree:
        assert (tree / "kill" / "large").stat().st_mode & 0o7777 == 0o600
        assert wire.fetched() == 0
        assert (tree / "kill" / "large").read_bytes() == large("kill")


def test_what_a_container_changed_is_exported_whole(this: Node) -> None:
    roots = Roots(this)
    with roots.active("exported", roots.of_image("trial:lazy")) as tree:
        os.chmod(tree / "kill" / "1", 0o606)
        (tree / "kill" / "2").rename(tree / "tmp" / "two")
        (tree / "kill" / "3").unlink()
    with tarfile.open(fileobj=io.BytesIO(roots.diff("exported"))) as layer:
        found = {entry.name.lstrip("/"): entry for entry in layer if not entry.isdir()}
        assert found.keys() == {"kill/1", "kill/.wh.2", "kill/.wh.3", "tmp/two"}
        assert found["kill/1"].mode == 0o606
        for name, number in (("kill/1", 1), ("tmp/two", 2)):
            extracted = layer.extractfile(found[name])
            assert extracted is not None
            assert extracted.read() == content("kill", number)
        assert all(not entry.pax_headers for entry in found.values() if entry.name.endswith("1"))
