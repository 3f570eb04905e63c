"""What a container sees of layers: everything through a real overlay, looked at by other processes."""

import hashlib
import stat
from pathlib import Path
from typing import Any

import pytest

from tests.mount import torture
from tests.mount.conftest import Served, child, run

READ = "print(json.dumps(open(sys.argv[1], 'rb').read().decode('latin-1')))"
STAT = """
s = os.lstat(os.fsencode(sys.argv[1]))
print(json.dumps([s.st_mode, s.st_uid, s.st_gid, s.st_size, s.st_mtime_ns, s.st_nlink, s.st_rdev, s.st_blocks]))
"""
LIST = "print(json.dumps(sorted(os.listdir(sys.argv[1]))))"


@pytest.fixture(scope="module")
def merged(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The layer with every kind of entry, under a writable overlay that the tests do not write to."""
    return served.overlay(tmp_path_factory.mktemp("plain"), torture.TORTURE)


@pytest.fixture(scope="module")
def stacked(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers."""
    return served.overlay(tmp_path_factory.mktemp("stacked"), torture.UPPER, torture.TORTURE)


def test_stat_shows_what_the_index_says_of_every_entry(merged: Path) -> None:
    code = """
    seen = {}
    for folder, folders, files in os.walk(os.fsencode(sys.argv[1])):
        for name in folders + files:
            path = os.path.join(folder, name)
            s = os.lstat(path)
            seen[os.path.relpath(path, os.fsencode(sys.argv[1])).decode("latin-1")] = [
                s.st_mode, s.st_uid, s.st_gid, s.st_size, s.st_mtime_ns, s.st_rdev]
    print(json.dumps(seen))
    """
    tree = torture.torture()
    expected: dict[str, list[int]] = {}

    def walk(node: int, path: bytes) -> None:
        for name, below in tree.nodes[node].children.items():
            a = tree.nodes[below].attributes
            entry = [a.mode, a.uid, a.gid, a.size, a.mtime_ns, a.rdev]
            expected[(path + name).decode("latin-1")] = entry
            walk(below, path + name + b"/")

    walk(0, b"")
    seen: dict[str, list[int]] = child(_dedent(code), merged)
    assert seen.keys() == expected.keys()
    for path, entry in expected.items():
        assert seen[path] == entry, path


def test_block_count_is_that_of_the_size(merged: Path) -> None:
    size, blocks = _stat(merged / "big")["size"], _stat(merged / "big")["blocks"]
    assert blocks * 512 == size == len(torture.BIG)
    assert _stat(merged / "dir/file")["blocks"] == 1
    assert _stat(merged / "dir/empty")["blocks"] == 0


def test_hard_links_are_one_inode_with_the_index_link_count(merged: Path) -> None:
    code = "a, b = map(os.stat, sys.argv[1:3]); print(json.dumps([a.st_ino == b.st_ino, a.st_nlink, b.st_nlink]))"
    assert child(code, merged / "linked", merged / "linked-too") == [True, 2, 2]


def test_a_long_directory_is_listed_once_each_with_dot_and_dot_dot(served: Served) -> None:
    listed = run("ls", "-1f", served.layer(torture.TORTURE) / "many").splitlines()
    assert listed[:2] == [".", ".."]
    assert listed[2:] == [f"entry-{i:04}" for i in range(2000)]


def test_symlink_targets_are_as_in_the_index(merged: Path) -> None:
    code = "print(json.dumps([os.readlink(p) for p in sys.argv[1:]]))"
    targets = child(code, merged / "link", merged / "long-link")
    assert targets == ["dir/file", torture.LONG_TARGET.decode()]


def test_contents_are_right_read_whole_and_in_the_middle(merged: Path) -> None:
    code = """
import hashlib, mmap
fd = os.open(sys.argv[1], os.O_RDONLY)
m = mmap.mmap(fd, 0, prot=mmap.PROT_READ)
whole = hashlib.sha256(open(sys.argv[1], "rb").read()).hexdigest()
middle, beyond = os.pread(fd, 10, 1_500_003), os.pread(fd, 9, 1 << 30)
print(json.dumps([whole, middle.hex(), m[2_000_001:2_000_005].hex(), beyond.hex()]))
"""
    expected = [
        hashlib.sha256(torture.BIG).hexdigest(),
        torture.BIG[1_500_003:1_500_013].hex(),
        torture.BIG[2_000_001:2_000_005].hex(),
        "",
    ]
    assert child(code, merged / "big") == expected


def test_extended_attributes_keep_their_bytes(merged: Path) -> None:
    code = "p = sys.argv[1]; print(json.dumps({n: os.getxattr(p, n).hex() for n in os.listxattr(p)}))"
    assert child(code, merged / "marked") == {"user.a": "00ff", "user.empty": ""}
    assert child(code, merged / "dir/file") == {}


def test_posix_acls_are_enforced(merged: Path) -> None:
    _let_others_pass(merged)
    assert child(READ, merged / "guarded", user=1000) == "for 1000\n"
    code = """
try:
    open(sys.argv[1])
except PermissionError:
    print(json.dumps("refused"))
"""
    assert child(code, merged / "guarded", user=1001) == "refused"


def test_suid_programs_get_their_owner_through_the_overlay(merged: Path) -> None:
    _let_others_pass(merged)
    assert child("os.execv(sys.argv[1], ['id', '-u'])", merged / "suid", user=1000) == 0


def test_programs_get_their_capabilities_through_the_overlay(merged: Path) -> None:
    _let_others_pass(merged)
    code = """
out, into = os.pipe()
if os.fork() == 0:
    os.dup2(into, 1)
    os.execv(sys.argv[1], ["cat", "/proc/self/status"])
os.close(into)
status = open(out).read()
print(json.dumps([line.split()[1] for line in status.splitlines() if line.startswith(("CapPrm", "CapEff"))]))
"""
    assert child(code, merged / "capable", user=1000) == [f"{1 << 10:016x}"] * 2


def test_devices_open_through_the_overlay(merged: Path) -> None:
    code = "fd = os.open(sys.argv[1], os.O_RDWR); print(json.dumps([os.write(fd, b'x'), len(os.read(fd, 1))]))"
    assert child(code, merged / "null") == [1, 0]


def test_whiteout_hides_what_is_below(stacked: Path) -> None:
    names = child(LIST, stacked)
    assert "linked" not in names
    assert "linked-too" in names


def test_opaque_directory_hides_what_is_below(stacked: Path) -> None:
    assert child(LIST, stacked / "dir/sub") == ["only"]


def test_upper_layer_replaces_a_file_and_merges_a_directory(stacked: Path) -> None:
    assert child(LIST, stacked / "dir") == ["empty", "file", "sub"]
    assert child(READ, stacked / "dir/file") == "newer\n"


def test_statfs_speaks_of_the_state_directory(served: Served) -> None:
    code = """
a, b = map(os.statvfs, sys.argv[1:3])
print(json.dumps([a.f_blocks == b.f_blocks, a.f_files == b.f_files, a.f_bfree > 0, a.f_namemax]))
"""
    assert child(code, served.layer(torture.TORTURE), served.state_dir) == [True, True, True, 255]


def test_the_mount_refuses_writing(served: Served) -> None:
    code = """
try:
    os.open(sys.argv[1], os.O_RDWR)
except OSError as error:
    print(json.dumps(error.errno == errno.EROFS))
"""
    assert child(code, served.layer(torture.TORTURE) / "dir/file") is True


class TestChanges:
    """What a container may do to its files; each in an overlay of its own."""

    @pytest.fixture
    def root(self, served: Served, tmp_path: Path) -> Path:
        return served.overlay(tmp_path, torture.TORTURE)

    def test_appending_copies_the_whole_file_up(self, root: Path) -> None:
        code = "open(sys.argv[1], 'ab').write(b'more'); print(json.dumps(len(open(sys.argv[1], 'rb').read())))"
        assert child(code, root / "big") == len(torture.BIG) + 4

    def test_copy_up_keeps_attributes_and_inode_number(self, root: Path) -> None:
        code = """
p = sys.argv[1]
before = os.stat(p)
os.chmod(p, 0o600)
after = os.stat(p)
print(json.dumps([after.st_mode, after.st_uid, after.st_gid, after.st_mtime_ns == before.st_mtime_ns,
                  after.st_ino == before.st_ino, os.getxattr(sys.argv[2], "user.a").hex()]))
"""
        mode = stat.S_IFREG | 0o600
        seen = child(code, root / "dir/file", root / "marked")
        assert seen == [mode, 70_000, 80_000, True, True, "00ff"]

    def test_deleted_file_is_gone_and_may_come_back(self, root: Path) -> None:
        code = """
p = sys.argv[1]
os.unlink(p)
gone = os.path.basename(p) not in os.listdir(os.path.dirname(p)) and not os.path.exists(p)
open(p, "w").write("again")
print(json.dumps([gone, open(p).read()]))
"""
        assert child(code, root / "dir/file") == [True, "again"]

    def test_deleted_directory_comes_back_empty(self, root: Path) -> None:
        code = "import shutil; p = sys.argv[1]; shutil.rmtree(p); os.mkdir(p); print(json.dumps(os.listdir(p)))"
        assert child(code, root / "dir") == []

    def test_renamed_file_keeps_its_content(self, root: Path) -> None:
        code = "os.rename(sys.argv[1], sys.argv[2]); print(json.dumps(open(sys.argv[2]).read()))"
        assert child(code, root / "dir/file", root / "moved") == "hello\n"


def _stat(path: Path) -> dict[str, Any]:
    names = ("mode", "uid", "gid", "size", "mtime_ns", "nlink", "rdev", "blocks")
    return dict(zip(names, child(STAT, path), strict=True))


def _dedent(code: str) -> str:
    return "\n".join(line[4:] for line in code.splitlines())


def _let_others_pass(path: Path) -> None:
    """Let other users walk to the overlay: pytest closes its directories."""
    for folder in path.parents:
        if folder.stat().st_uid == 0 and folder.stat().st_mode & 0o777 == 0o700:
            folder.chmod(0o711)
