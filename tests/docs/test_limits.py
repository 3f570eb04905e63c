"""The table of limits names every limit of the rooms that read what strangers send."""

import ast
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from snapshotter.format.limits import ELSEWHERE

PACKAGE = Path(__file__).parents[2] / "snapshotter"

ROOMS = ("format", "registry", "layer", "service")

NAMED_AS_LIMITS = re.compile(r"_?([A-Z]+_)*(MAX|LIMIT|KEPT|DEPTH|HELD)")

ABOUT_OTHER_THINGS = frozenset({
    # What the formats themselves can hold; checked values never get there, or the layer goes through FUSE.
    "format.attributes._MODE_MAX", "format.attributes._MTIME_MAX", "format.erofs_layout.CHUNK_BITS_MAX",
    "format.erofs_layout.XATTR_SHARED_MAX", "format.erofs_layout.XATTR_WORDS_MAX", "format.erofs_xattrs._LONE_MAX",
    "format.tar_entries._MTIME_MAX_NS",
    # A list of names, not a number.
    "format.attributes._XATTR_KEPT",
    # How many of something cheap are remembered; of more the oldest are asked for again.
    "format.attributes._TIMES_KEPT", "registry.credential_helpers.SERVERS_KEPT", "registry.health.SERVERS_KEPT",
    "registry.wire._CLIENTS_KEPT", "layer.contents.NAMES_KEPT", "layer.contents.RECENT_KEPT", "layer.images.IMAGES_KEPT",
    "layer.layer.IDENTITIES_KEPT", "layer.origin.SOURCES_KEPT", "layer.sink.IDENTITIES_KEPT",
    # How much of a message is shown.
    "registry.health.COMPLAINT_MAX", "registry.helper_program.SAID_MAX", "registry.hosts_toml._LINE_MAX",
    "registry.hosts_toml._EQUALS_MAX", "registry.hosts_toml._DURATION_LENGTH_MAX",
    # What is quicker one way or the other.
    "layer.courier.INLINE_MAX", "layer.fill.GAP_MAX",
    # Between our own processes and threads.
    "layer.toc_pool.ANSWER_MAX", "layer.fill.QUEUE_MAX",
})  # fmt: skip


def limits() -> Iterator[str]:
    """Every constant that is called like a limit, as room.module.name."""
    for room in ROOMS:
        for path in sorted((PACKAGE / room).glob("*.py")):
            if path == PACKAGE / "format" / "limits.py":
                continue
            for node in ast.parse(path.read_bytes()).body:
                target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
                if isinstance(target, ast.Name) and NAMED_AS_LIMITS.fullmatch(target.id):
                    yield f"{room}.{path.stem}.{target.id}"


def test_every_limit_is_in_the_table_or_is_about_something_else() -> None:
    told = {f"{one.module}.{one.name}" for one in ELSEWHERE}
    assert set(limits()) - told - ABOUT_OTHER_THINGS == set()


def test_nothing_is_set_apart_that_is_not_there() -> None:
    assert set(limits()) >= {name for name in ABOUT_OTHER_THINGS if NAMED_AS_LIMITS.fullmatch(name.rpartition(".")[2])}


@pytest.mark.parametrize("limit", ELSEWHERE, ids=lambda one: f"{one.module}.{one.name}")
def test_what_the_table_names_is_a_number(limit: tuple[object, str, str, str]) -> None:
    _, module, name, bounds = limit
    assert getattr(import_module(f"snapshotter.{module}"), name) > 0
    assert bounds.endswith(".")
