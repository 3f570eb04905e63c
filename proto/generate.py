"""Generate `snapshotter/api/` from the `.proto` files beside this script: `python proto/generate.py [DIRECTORY]`.

What is generated is committed, so that an installation needs no compiler; a test asserts that both agree. The
compiler is the one in grpcio-tools, whose version appears in what it writes.
"""

import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

PROTO = Path(__file__).resolve().parent
API = PROTO.parent / "snapshotter" / "api"

# A virtual directory gives the modules their place in our package: protoc derives Python imports from file paths.
PACKAGE = "snapshotter/api"


def generate(target: Path) -> None:
    """Write the modules of every `.proto` file here into the directory `target`.

    Raises:
        RuntimeError: the compiler refused; it has said why on standard error.
    """
    names = sorted(path.name for path in PROTO.glob("*.proto"))
    with tempfile.TemporaryDirectory() as staging:
        arguments = [
            f"-I{PACKAGE}={PROTO}",
            f"-I{files('grpc_tools') / '_proto'}",
            f"--python_out={staging}",
            f"--pyi_out={staging}",
            f"--grpc_python_out={staging}",
            *(f"{PACKAGE}/{name}" for name in names),
        ]
        if protoc.main(["protoc", *arguments]) != 0:
            raise RuntimeError("protoc failed")
        for path in Path(staging, PACKAGE).iterdir():
            text = path.read_text()
            if path.name.endswith("_pb2_grpc.py") and "Servicer" not in text:
                continue  # a file without a service: nothing but version checks
            (target / path.name).write_text(text)


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else API)
