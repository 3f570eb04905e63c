"""A lazy image for containers that change things: small files of one content each, a large one, and what has special modes.

Every file has a member of its own and lies in the directory of the test that uses it, so that tests can share a node and
each still finds its own files not yet fetched.
"""

import random
import shutil
import subprocess
import tempfile
import zlib
from functools import cache
from pathlib import Path

from integration.harness.registry import RegistryClient
from integration.images.dialects import push_built
from tests.doubles.layers import BuiltLayer, Entry, char, dir, fifo, file, hardlink, layer, opaque, symlink, whiteout

PROBE = "/bin/probe"
SOURCE = Path(__file__).with_name("probe.c")
CHUNK = 1 << 20
LARGE = random.Random(4).randbytes(2 * CHUNK + 12_345)
"""What every `<folder>/large` ends with: three chunks of their layer."""
FOLDERS = ("change", "tree", "requests", "outage", "attack", "damage", "kill", "restart")
FILES_IN_FOLDER = 24

CHANGES = """
chmod 604 /change/0; chown 5:6 /change/large; mv /change/large /change/larger
mv /change/1 /tmp/one; chmod 600 /tmp/one; ln /special/linked-1 /special/linked-3; ln /change/8 /change/eight
echo more >> /change/2; echo more >> /change/eight; truncate -s 3 /change/4; rm /change/3; ln -s larger /change/link
rm -r /kill; mkdir -m 705 /kill; echo 1 > /kill/1; rm /change/5; mkdir /change/5; touch -d @1000000000 /change/6 /change/5
mv /layers/merged /layers/elsewhere; chmod 711 /layers/opaque; rm /layers/opaque/back; echo new > /layers/removed
cp -a /special/set-uid /special/attributes /tmp/; dd if=/tmp/one of=/damage/large bs=5 seek=200000 conv=notrunc 2> /dev/null
"""
"""For a shell: what one may do to files of an image, whatever the overlay does not do by itself."""
SHOW = """
names() { find / -xdev ! -path '/etc/*' ! -path '/dev*' ! -path '/proc*' ! -path '/sys*' ! -name stargz.index.json "$@"; }
names | xargs stat -c '%n %F %a %u %g'
names ! -type d | xargs stat -c '%n %s %h'
names -type f | xargs sha1sum
"""
"""For a shell: print everything that the root shows, but for what is not the image's, and a directory's count of links, which
tells one that was renamed from one that was copied."""


def content(folder: str, number: int) -> bytes:
    """What `<folder>/<number>` holds."""
    return f"file {number} of {folder}\n".encode() * (number + 1)


def large(folder: str) -> bytes:
    """What `<folder>/large` holds."""
    return folder.encode() + LARGE


def expected(data: bytes, what: str = "read") -> str:
    """What the probe says of a file with this content."""
    return f"{what} ok {len(data)} {zlib.crc32(data)}\n"


@cache
def probe_program() -> bytes:
    """The compiled probe; bytes behind its end make more programs of it, each another file."""
    with tempfile.TemporaryDirectory() as place:
        made = Path(place, "probe")
        subprocess.run(["gcc", "-O2", "-static", "-s", "-o", made, SOURCE], check=True)
        return made.read_bytes()


def programs() -> list[Entry]:
    """What every image here runs."""
    busybox = Path(shutil.which("busybox") or "/bin/busybox").read_bytes()
    tools = [file("bin/busybox", busybox, mode=0o755), file("bin/probe", probe_program(), mode=0o755)]
    return [*(dir(name) for name in ("bin", "dev", "etc", "proc", "sys")), dir("tmp", mode=0o1777), *tools]


def trial_layers() -> list[BuiltLayer]:
    """Three layers: nearly everything; large files, cut into smaller chunks than usual; and what hides and replaces."""
    lower = [*programs(), *_special(), *_changed_later()]
    middle = []
    for folder in FOLDERS:
        place = dir(folder, mode=0o751, uid=7)
        lower.append(place)
        lower += [file(f"{folder}/{n}", content(folder, n), mode=0o640, uid=7) for n in range(FILES_IN_FOLDER)]
        # Another content in each place: what one test has fetched is not there for the next.
        lower.append(file(f"{folder}/program", probe_program() + folder.encode(), mode=0o755))
        middle += [place, file(f"{folder}/large", large(folder))]
    return [layer(*lower), layer(*middle, chunk_size=CHUNK), layer(*_upper())]


def _special() -> list[Entry]:
    return [
        dir("special"),
        file("special/set-uid", probe_program() + b"set-uid", mode=0o4755, uid=70_000),
        file("special/set-gid", probe_program() + b"set-gid", mode=0o2711, gid=70_001),
        char("special/null", 1, 3, mode=0o666),
        char("special/no-such-device", 240, 77, mode=0o666),
        fifo("special/fifo", mode=0o622),
        symlink("special/link", "../change/1"),
        file("special/attributes", b"attributes\n", xattrs={"user.text": b"text", "user.empty": b""}),
        file("special/linked-1", b"one inode\n"),
        hardlink("special/linked-2", "special/linked-1"),
        file("special/empty", b""),
    ]


def _changed_later() -> list[Entry]:
    return [
        dir("layers"),
        file("layers/removed", b"removed\n"),
        file("layers/replaced", b"of the lower layer\n"),
        dir("layers/opaque"),
        file("layers/opaque/hidden", b"hidden\n"),
        file("layers/opaque/back", b"below\n"),
        dir("layers/merged", mode=0o700),
        file("layers/merged/lower", b"lower\n"),
    ]


def _upper() -> list[Entry]:
    return [
        dir("layers"),
        whiteout("layers/removed"),
        file("layers/replaced", b"of the upper layer, and longer\n", mode=0o600),
        dir("layers/opaque", mode=0o711),
        opaque("layers/opaque"),
        file("layers/opaque/back", b"above\n"),
        dir("layers/merged", mode=0o2755),
        file("layers/merged/upper", b"upper\n"),
    ]


def push_trial(client: RegistryClient) -> None:
    """Put it into a registry as trial:lazy."""
    push_built(client, "trial:lazy", trial_layers())
