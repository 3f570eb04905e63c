"""An image with three languages from Debian's packages: for the benchmarks that start programs in containers."""

import os
import shlex
import subprocess
import tarfile
import tempfile
from functools import partial
from pathlib import Path

from integration.images.oci import Image, packed
from integration.images.packages import PackageTree

# One layer each, with everything that the packages need and no lower layer has.
GROUPS = (("dash", "coreutils", "findutils", "python3"), ("nodejs",), ("gcc", "libc6-dev"))
READY = b"ready\n"
RUN = {"Env": ["PATH=/usr/bin", "PYTHONDONTWRITEBYTECODE=1"], "Cmd": ["python3"], "WorkingDir": "/"}
C_PROGRAM = (
    "#include <math.h>\n#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n#include <sys/socket.h>\n"
    '#include <time.h>\n#include <unistd.h>\nint main(void) { puts("ready"); return 0; }\n'
)
COMMANDS = {
    "python": (
        "/usr/bin/python3",
        "-c",
        "import asyncio, email.parser, http.client, json, logging.config, sqlite3, ssl, xml.dom.minidom; print('ready')",
    ),
    "node": ("/usr/bin/node", "-e", "require('/usr/share/nodejs/undici'); console.log('ready')"),
    "gcc": ("/bin/sh", "-c", f"echo {shlex.quote(C_PROGRAM)} | gcc -x c - -o /tmp/a && /tmp/a"),
}


def tools_image(folder: Path) -> Image:
    """Python with its bytecode, Node and a C compiler, in four layers; `COMMANDS` run in it.

    Packed once into `folder`; the packages come by apt, at the versions that its lists have then.
    """
    with tempfile.TemporaryDirectory() as place:
        tree = PackageTree(Path(place))
        layers = [partial(tree.install, group) for group in GROUPS]
        return packed(folder, Path(__file__).read_text(), (*layers, partial(_compile, tree)), RUN)


def _compile(tree: PackageTree, tar: tarfile.TarFile) -> None:
    """Python's bytecode, as Debian makes it when it installs the packages. It is taken whatever the source's time is."""
    before = set(tree.root.rglob("*"))
    compiler = ["/usr/bin/python3", "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash"]
    subprocess.run(
        ["chroot", str(tree.root), *compiler, "/usr/lib/python3.11"], check=True, env={"PATH": os.environ["PATH"]}
    )
    tree.add_new(tar, before)
