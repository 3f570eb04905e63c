"""The house rules that a program can check: rooms, sizes, names, doors, and nothing that ties the code to one machine."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

TOP = Path(__file__).parent.parent
PACKAGE = TOP / "snapshotter"

# The drawing of ARCHITECTURE.md: what each room may import. errors, config and request are open to every room.
OPEN = {"errors", "config", "request"}
BELOW = {
    "errors": set[str](),
    "config": {"errors"},
    "request": set[str](),
    "api": set[str](),
    "keeper": {"errors"},
    "format": OPEN,
    "registry": OPEN,
    "store": OPEN,
    "layer": OPEN | {"format", "registry", "store"},
    "plane": OPEN | {"layer", "format", "registry", "store"},
    "containerd": OPEN | {"api"},
    "metrics": OPEN,
    "service": OPEN | {"api", "store"},
    "image": OPEN | {"layer", "format", "registry", "store", "api", "containerd"},
    "doctor": OPEN | {"plane", "layer", "format", "registry", "store", "api", "containerd"},
    "cli": OPEN | {"image", "doctor", "layer", "format", "registry", "store", "api", "containerd"},
    "daemon": OPEN
    | {"service", "plane", "layer", "format", "registry", "store", "api", "containerd", "metrics", "keeper"},
}
# Commands that are the daemon, or do its work while there is none: the only arrows between the two upper rooms.
DAEMON_COMMANDS = tuple(PACKAGE / "cli" / f"{name}.py" for name in ("serve", "keeper", "teardown"))
# Rooms without `async`: bytes and rules are tested without a loop. The bridge is what crosses to it.
SYNCHRONOUS = ("format", "service", "store")
BRIDGE = PACKAGE / "service" / "bridge.py"
# A broad `except` belongs at the FUSE handlers, the gRPC servicers and the command line's main; at the bridge, which hands
# an exception to the thread that waits for it; and at the top of a task in the node's nursery, whose fault would
# end every mount.
DOORS = (
    PACKAGE / "plane" / "fuse" / "operations.py",
    PACKAGE / "service" / "servicer.py",
    PACKAGE / "service" / "control.py",
    PACKAGE / "cli" / "main.py",
    PACKAGE / "service" / "bridge.py",
    PACKAGE / "layer" / "fill.py",
    PACKAGE / "layer" / "flights.py",
    PACKAGE / "layer" / "images.py",
    PACKAGE / "layer" / "manifests.py",
    # A task of the node's nursery as those above are; and a layer that must not keep the daemon from starting.
    PACKAGE / "layer" / "housekeeping.py",
    PACKAGE / "layer" / "shelf.py",
    PACKAGE / "layer" / "metadata_images.py",
    PACKAGE / "plane" / "erofs" / "gate.py",
    # One check of a node that fails in a way nobody thought of must not hide what the others found.
    PACKAGE / "doctor" / "examination.py",
)
# Never leaves its room: it says "try again" to the loop that catches it.
SIGNALS = {"Transient"}
LONGEST_MODULE = 400
LONGEST_FUNCTION = 60
BANNED_NAMES = {"utils", "util", "helpers", "helper", "common", "base", "manager", "misc"}
MACHINE_PATHS = re.compile(r"(?<![\w.])/(?:work|home|Users)/\w|(?<![\w.])/root/[\w.]")
PACKAGE_HOSTS = re.compile(
    r"pypi\.org|pythonhosted\.org|crates\.io|npmjs\.org|proxy\.golang\.org|deb\.debian\.org|maven\.org"
)


def modules(*folders: str) -> Iterator[tuple[Path, ast.Module]]:
    """Every module written by hand under `folders`, parsed."""
    for folder in folders:
        for path in sorted((TOP / folder).rglob("*.py")):
            if path.parent.name != "api":
                yield path, ast.parse(path.read_bytes(), filename=str(path))


def place(path: Path, node: ast.AST | None = None) -> str:
    """How a finding names its place."""
    name = str(path.relative_to(TOP))
    return f"{name}:{node.lineno}" if isinstance(node, ast.stmt | ast.expr | ast.excepthandler) else name


def room_of(path: Path) -> str:
    """The first part of a module's path below the package."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_rooms(tree: ast.Module) -> Iterator[tuple[str, ast.stmt]]:
    """Rooms of ours that a module imports, wherever in it the import stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "snapshotter" and len(parts) > 1:
                yield parts[1], node


def calls_nothing_but_raise(handler: ast.ExceptHandler) -> bool:
    """A handler that undoes something and lets the exception go on catches nothing."""
    last = handler.body[-1]
    return isinstance(last, ast.Raise) and last.exc is None


def is_broad(handler: ast.ExceptHandler) -> bool:
    """Bare, or of a class that takes everything."""
    types = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(
        kind is None or (isinstance(kind, ast.Name) and kind.id in {"Exception", "BaseException"}) for kind in types
    )


def test_imports_go_down_only() -> None:
    found = [
        f"{place(path, node)} imports {room}"
        for path, tree in modules("snapshotter")
        if path.parent != PACKAGE or path.stem in BELOW
        for room, node in imported_rooms(tree)
        if room in BELOW and room != room_of(path) and room not in BELOW[room_of(path)]
        if not (path in DAEMON_COMMANDS and room == "daemon")
    ]
    assert found == []


def test_every_room_is_in_the_drawing() -> None:
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and (path / "__init__.py").exists()}
    assert rooms <= set(BELOW)


def test_the_product_imports_neither_tests_nor_integration() -> None:
    found = [
        place(path, node)
        for path, tree in modules("snapshotter")
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in {"tests", "integration"}
    ]
    assert found == []


def test_modules_and_functions_fit_a_screen_or_two() -> None:
    found = []
    for path, tree in modules("snapshotter", "integration", "tests"):
        lines = len(path.read_bytes().splitlines())
        if lines > LONGEST_MODULE:
            found.append(f"{place(path)} has {lines} lines")
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            docstring = node.body[0] if ast.get_docstring(node, clean=False) is not None else None
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if docstring:
                length -= (docstring.end_lineno or docstring.lineno) - docstring.lineno + 1
            if length > LONGEST_FUNCTION:
                found.append(f"{place(path, node)} {node.name} has {length} lines")
    assert found == []


def test_no_module_is_a_drawer() -> None:
    found = [place(path) for path, _ in modules("snapshotter", "integration", "tests") if path.stem in BANNED_NAMES]
    assert found == []


def test_no_await_in_finally() -> None:
    """A cancelled holder leaves such a block at its first await: what it should have undone stays."""
    found = [
        place(path, inner)
        for path, tree in modules("snapshotter", "integration")
        for node in ast.walk(tree)
        if isinstance(node, ast.Try)
        for statement in node.finalbody
        for inner in ast.walk(statement)
        if isinstance(inner, ast.Await | ast.AsyncFor | ast.AsyncWith)
    ]
    assert found == []


def test_broad_except_stands_at_the_doors_only() -> None:
    found = [
        place(path, node)
        for path, tree in modules("snapshotter")
        if path not in DOORS
        for node in ast.walk(tree)
        if isinstance(node, ast.ExceptHandler) and is_broad(node) and not calls_nothing_but_raise(node)
    ]
    assert found == []


def test_formats_rules_and_store_have_no_async() -> None:
    found = [
        place(path, node)
        for room in SYNCHRONOUS
        for path, tree in modules(f"snapshotter/{room}")
        if path != BRIDGE
        for node in ast.walk(tree)
        if isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.AsyncFor | ast.AsyncWith)
    ]
    assert found == []


def texts() -> Iterator[Path]:
    """Every text file of the project that people write or that is generated into it."""
    for folder in ("snapshotter", "tests", "integration", "proto", "deploy", "docs", "dev", ".ci"):
        yield from (path for path in sorted((TOP / folder).rglob("*")) if path.is_file() and path.suffix != ".pyc")
    yield from (path for path in sorted(TOP.iterdir()) if path.suffix in {".md", ".toml", ""} and path.is_file())


def test_no_file_names_one_machine_or_a_package_host() -> None:
    found = [
        f"{place(path)}: {match.group()}"
        for path in texts()
        for pattern in (MACHINE_PATHS, PACKAGE_HOSTS)
        for match in pattern.finditer(path.read_text("utf-8", "replace"))
    ]
    assert found == []


def test_errors_all_stand_in_one_tree() -> None:
    """All three doors read `errors.py`; an exception class elsewhere would pass them unmapped."""
    found = [
        place(path, node)
        for path, tree in modules("snapshotter")
        if path != PACKAGE / "errors.py"
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        and node.name not in SIGNALS
        and any(isinstance(name, ast.Name) and name.id in {"Exception", "BaseException"} for name in node.bases)
    ]
    assert found == []
