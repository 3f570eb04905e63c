"""What a container of the erofs plane sees of contents that are not on the node: real overlays over a real FUSE mount."""

import errno
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.composed import Composed, composed
from tests.mount.conftest import PATIENCE_S, Served, child
from tests.mount.gate_world import LARGE, built

READ = "print(json.dumps(open(sys.argv[1], 'rb').read().decode('latin-1')))"
ERRNO = """
try:
    open(sys.argv[1], "rb").read()
    print(json.dumps(0))
except OSError as error:
    print(json.dumps(error.errno))
"""


@pytest.fixture(scope="module")
def gate(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Composed]:
    """Each test takes files of its own: what one has fetched is there for all. Nobody is given an inode for a long wait."""
    with composed(served, tmp_path_factory.mktemp("gate")) as made:
        served.command("patience 3600")
        yield made


def text(path: str) -> str:
    return built().files[path].decode("latin-1")


# --- small files


@pytest.mark.parametrize("writable", [True, False])
def test_a_small_file_is_brought_by_one_lookup_and_read_natively(gate: Composed, writable: bool) -> None:
    path = "small/000" if writable else "small/001"
    root = gate.overlay(writable=writable)
    reads = gate.served.command("reads")
    assert not gate.content(path).exists()
    assert child(READ, root / path) == text(path)
    for top in ("objects", "late"):
        assert gate.content(path, top).read_bytes() == built().files[path]
    assert gate.lookups(path) == 1
    # Once it is there nobody asks again, in other containers neither, and the late name is not needed.
    gate.content(path, "late").unlink()
    for place in (root, root, gate.overlay()):
        assert child(READ, place / path) == text(path)
    assert (gate.lookups(path), gate.served.command("reads") - reads) == (1, 0)
    assert gate.served.command(f"brought {path}") == 1


def test_names_and_attributes_cost_no_request(gate: Composed) -> None:
    root = gate.overlay()
    code = """
top = sys.argv[1]
seen = [os.lstat(os.path.join(folder, name)).st_size for folder, _, names in os.walk(top) for name in names]
print(json.dumps([len(seen), os.readlink(top + "/small/link"), os.getxattr(top + "/small/folder", "user.note").decode(),
                  os.access(top + "/outage/0", os.R_OK), open(top + "/small/empty").read()]))
"""
    before = gate.served.command("requests")
    count, *rest = child(code, root)
    assert count == len(built().files) + 1
    assert rest == ["000", "of a folder", True, ""]
    assert gate.served.command("requests") == before


def test_a_program_that_is_not_on_the_node_is_started(gate: Composed) -> None:
    code = """
import subprocess
print(json.dumps(subprocess.run([sys.argv[1]], capture_output=True).stdout.decode()))
"""
    assert child(code, gate.overlay() / "small/program") == "it runs\n"


def test_readers_at_the_same_time_bring_a_file_once(gate: Composed) -> None:
    code = """
import threading
together, found = threading.Barrier(40), []
def read(path):
    together.wait()
    found.append(open(path).read())
threads = [threading.Thread(target=read, args=(sys.argv[1 + number % 2],)) for number in range(40)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(json.dumps([len(found), list(set(found))]))
"""
    path = "small/002"
    assert child(code, gate.overlay() / path, gate.overlay() / path) == [40, [text(path)]]
    assert gate.served.command(f"brought {path}") == 1


def test_what_is_changed_is_copied_up_whole(gate: Composed) -> None:
    code = """
root = sys.argv[1]
before = os.stat(root + "/small/003")
os.chmod(root + "/small/003", 0o600)
open(root + "/small/004", "ab").write(b"more")
os.rename(root + "/small/005", root + "/moved")
os.link(root + "/small/006", root + "/linked")
print(json.dumps([oct(os.stat(root + "/small/003").st_mode), os.stat(root + "/small/003").st_ino == before.st_ino,
                  *(open(root + "/" + name).read() for name in ("small/003", "small/004", "moved", "linked"))]))
"""
    expected = [text("small/003"), text("small/004") + "more", text("small/005"), text("small/006")]
    assert child(code, gate.overlay()) == [oct(0o100600), True, *expected]


def test_what_leaves_the_node_stays_with_a_container_that_has_found_it_and_is_brought_again_for_others(
    gate: Composed,
) -> None:
    root, paths = gate.overlay(), [f"small/{number:03}" for number in range(12, 16)]
    code = """
paths = sys.argv[1:]
found = [open(path).read() for path in paths]
# Names alone: the kernel does not forget them, whoever has it drop its caches on this machine.
names = [os.open(path, os.O_PATH) for path in paths]
print(json.dumps(found), flush=True)
sys.stdin.readline()
os.chmod(paths[0], 0o600)
open(paths[1], "a").write("more")
os.rename(paths[2], paths[2] + "-moved")
paths[2] += "-moved"
print(json.dumps([open(path).read() for path in paths]))
"""
    expected = [text(path) for path in paths]
    process = gate.start(code, *(root / path for path in paths))
    assert process.stdin is not None
    assert process.stdout is not None
    assert json.loads(process.stdout.readline()) == expected
    for path in paths:
        for top in ("objects", "late"):
            gate.content(path, top).unlink()
    process.stdin.write(b"\n")
    process.stdin.close()
    assert json.loads(process.stdout.read()) == [expected[0], expected[1] + "more", *expected[2:]]
    assert process.wait(PATIENCE_S) == 0
    assert [gate.lookups(path) for path in paths] == [1] * 4
    for path in paths:
        assert child(READ, gate.overlay() / path) == text(path)
    assert [gate.lookups(path) for path in paths] == [2] * 4


def test_what_is_removed_or_replaced_is_not_fetched(gate: Composed) -> None:
    code = """
root = sys.argv[1]
os.unlink(root + "/small/007")
open(root + "/new", "w").write("new")
os.rename(root + "/new", root + "/small/008")
try:
    os.open(root + "/small/009", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
except FileExistsError:
    os.rename(root + "/small", root + "/folder")
print(json.dumps([os.path.exists(root + "/folder/007"), open(root + "/folder/008").read()]))
"""
    assert child(code, gate.overlay()) == [False, "new"]
    assert [gate.lookups(f"small/{number:03}") for number in (7, 8, 9)] == [0, 0, 0]


# --- contents that cannot be had


@pytest.mark.parametrize("fault", ["outage", "bug"])
def test_a_file_that_cannot_be_had_is_an_io_error_and_costs_nobody_else(gate: Composed, fault: str) -> None:
    root = gate.overlay()
    for _ in range(2):
        assert child(ERRNO, root / fault / "0") == errno.EIO
    path = "small/010" if fault == "bug" else "small/011"
    assert child(READ, root / path) == text(path)
    assert child("print(json.dumps(os.stat(sys.argv[1]).st_size))", root / fault / "0") == len(text(f"{fault}/0"))


@pytest.mark.parametrize("fault", ["outage", "bug"])
def test_changing_a_file_that_cannot_be_had_is_an_io_error_and_leaves_it_as_it_was(gate: Composed, fault: str) -> None:
    code = """
try:
    open(sys.argv[1], "ab")
except OSError as error:
    print(json.dumps([error.errno, os.stat(sys.argv[1]).st_size]))
"""
    assert child(code, gate.overlay() / fault / "1") == [errno.EIO, len(text(f"{fault}/1"))]


def test_a_small_file_that_the_disk_does_not_take_is_read_through_fuse(gate: Composed) -> None:
    root = gate.overlay()
    for _ in range(2):
        assert child(READ, root / "full/0") == text("full/0")
    assert not gate.content("full/0").exists()


# --- large files, which are served by an inode


def test_a_large_file_reads_right_before_it_is_whole(gate: Composed) -> None:
    code = """
import hashlib, mmap
fd = os.open(sys.argv[1], os.O_RDONLY)
m = mmap.mmap(fd, 0, prot=mmap.PROT_READ)
middle, mapped = os.pread(fd, 10, 500_003), m[700_001:700_011]
whole = hashlib.sha256(open(sys.argv[1], "rb").read()).hexdigest()
print(json.dumps([middle.hex(), mapped.hex(), whole, hashlib.sha256(m).hexdigest(), os.pread(fd, 9, 1 << 30).hex()]))
"""
    whole = hashlib.sha256(LARGE).hexdigest()
    expected = [LARGE[500_003:500_013].hex(), LARGE[700_001:700_011].hex(), whole, whole, ""]
    assert child(code, gate.overlay() / "large/0") == expected
    assert not gate.content("large/0").exists()
    assert gate.lookups("large/0") == 1


def test_a_large_file_that_became_whole_is_native_to_the_next_container(gate: Composed) -> None:
    first = gate.overlay()
    # To its end: what the kernel reads ahead is behind it then.
    code = "print(json.dumps(len(open(sys.argv[1], 'rb').read())))"
    assert child(code, first / "large/1") == len(LARGE) - 1
    gate.served.command("whole large/1")
    reads, lookups = gate.served.command("reads"), gate.lookups("large/1")
    digest = "import hashlib; print(json.dumps(hashlib.sha256(open(sys.argv[1], 'rb').read()).hexdigest()))"
    expected = hashlib.sha256(built().files["large/1"]).hexdigest()
    assert child(digest, gate.overlay() / "large/1") == expected
    assert (gate.served.command("reads"), gate.lookups("large/1")) == (reads, lookups)
    assert child(digest, first / "large/1") == expected


def test_a_large_file_that_is_whole_when_first_asked_for_is_native(gate: Composed) -> None:
    gate.served.command("whole-when-asked large/2")
    reads = gate.served.command("reads")
    code = "print(json.dumps(len(open(sys.argv[1], 'rb').read())))"
    assert child(code, gate.overlay() / "large/2") == len(LARGE) - 2
    assert gate.served.command("reads") == reads
    assert gate.content("large/2", "late").stat().st_size == len(LARGE) - 2


CHANGES = {
    "rename over it": "open(root + '/new', 'w').write('new'); os.rename(root + '/new', path)",
    "rename it": "os.rename(path, path + '-moved'); path += '-moved'",
    "unlink and create": "os.unlink(path); os.close(os.open(path, os.O_CREAT | os.O_EXCL)); open(path, 'w').write('new')",
    "truncate": "open(path, 'w').write('new')",
    "append": "open(path, 'ab').write(b'more')",
    "chmod": "os.chmod(path, 0o600)",
    "link": "os.link(path, root + '/link'); path = root + '/link'",
    "exchange": "os.rename(path, root + '/aside'); open(path, 'w').write('new')",
}


@pytest.mark.parametrize("became_whole", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_has_an_inode_of_the_gate_can_be_changed_in_every_way(
    gate: Composed, change: str, became_whole: bool
) -> None:
    """The kernel asks the gate by name again, and must be given the same inode: else ESTALE."""
    path = f"changed/{2 * list(CHANGES).index(change) + became_whole:02}"
    root = gate.overlay()
    code = f"""
root, path = sys.argv[1], sys.argv[1] + "/" + sys.argv[2]
held = open(path, "rb", buffering=0)
head = held.read(10).hex()
print(json.dumps(head), flush=True)
sys.stdin.readline()
{CHANGES[change]}
try:
    os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
except FileExistsError:
    pass
print(json.dumps([len(open(path, "rb").read()), held.seek(0) or len(held.read())]))
"""
    process = gate.start(code, root, path)
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline().strip() == f'"{built().files[path][:10].hex()}"'.encode()
    lookups = gate.lookups(path)
    if became_whole:
        gate.served.command(f"whole {path}")
    process.stdin.write(b"\n")
    process.stdin.close()
    size = len(built().files[path])
    # Who holds the file sees what is written into it, and not what takes its name.
    after, held = {
        "append": (size + 4, size + 4),
        "truncate": (3, 3),
        "chmod": (size, size),
        "link": (size, size),
        "rename it": (size, size),
    }.get(change, (3, size))
    assert process.stdout.read().strip() == f"[{after}, {held}]".encode()
    assert process.wait(PATIENCE_S) == 0
    if change == "rename over it":
        assert gate.lookups(path) > lookups


def test_a_deleted_directory_of_files_with_inodes_comes_back_empty(gate: Composed) -> None:
    code = """
import shutil
path = sys.argv[1] + "/large"
open(path + "/5", "rb").read(10)
shutil.rmtree(path)
os.mkdir(path)
print(json.dumps(os.listdir(path)))
"""
    assert child(code, gate.overlay()) == []


def test_nobody_reaches_a_content_by_its_path(gate: Composed) -> None:
    content = gate.content("small/000").relative_to(gate.served.state_dir / "objects")
    code = "print(json.dumps([os.path.lexists(p) for p in sys.argv[1:]]))"
    root: Path = gate.overlay()
    assert child(code, root / content, root / content.parts[0]) == [False, False]
