"""Random layers of every dialect against a model of unpacking."""

from contextlib import suppress
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from snapshotter.errors import FormatError
from snapshotter.format.footer import Flavor
from snapshotter.format.index import Kind
from tests.doubles.layers import Entry, dir, fifo, file, hardlink, layer, symlink
from tests.format.soundness import check_soundness, content

THOROUGH = settings(max_examples=4 * settings().max_examples)
NAMES = ["a", "b", "c", "é", "\udcfe", "a.b"]
paths = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3).map("/".join)
attributes = st.fixed_dictionaries(
    {
        "mode": st.integers(0, 0o7777),
        "uid": st.integers(0, 70_000),
        "gid": st.integers(0, 5),
        "mtime": st.integers(0, 1 << 31),
    },
    optional={
        "xattrs": st.dictionaries(st.sampled_from(["user.a", "user.b", "trusted.c"]), st.binary(max_size=4), max_size=2)
    },
)
entries = st.lists(
    st.one_of(
        st.builds(lambda path, more: dir(path, **more), paths, attributes),
        st.builds(lambda path, data, more: file(path, data, **more), paths, st.binary(max_size=40), attributes),
        st.builds(lambda path, more: symlink(path, "../é", **more), paths, attributes),
        st.builds(lambda path, more: fifo(path, **more), paths, attributes),
        st.builds(lambda path, target, more: hardlink(path, target, **more), paths, paths, attributes),
    ),
    max_size=12,
)


class Impossible(Exception):
    """Unpacking would fail."""


def unpack(given: list[Entry]) -> dict[str, dict[str, Any]]:
    """A tar unpacked into a dict, by the plain rules: path to a node, which links share."""
    tree: dict[str, dict[str, Any]] = {}
    for entry in given:
        path = entry.name.rstrip("/")
        parts = path.split("/")
        for depth in range(1, len(parts)):
            parent = "/".join(parts[:depth])
            if tree.setdefault(parent, {"type": "dir", "mode": 0o755})["type"] != "dir":
                raise Impossible(parent)
        old = tree.get(path)
        if old is None or not old["type"] == entry.type == "dir":
            for gone in [name for name in tree if name == path or name.startswith(path + "/")]:
                del tree[gone]
            if entry.type == "hardlink":
                if tree.get(entry.target, {"type": "dir"})["type"] == "dir":
                    raise Impossible(entry.target)
                tree[path] = tree[entry.target]
            else:
                tree[path] = {"type": entry.type, "data": entry.data, "target": entry.target}
        node = tree[path]
        node["xattrs"] = node.get("xattrs", {}) | {
            name.encode(): value for name, value in entry.xattrs.items() if name.startswith("user.")
        }
        node |= {"uid": entry.uid, "gid": entry.gid, "mtime": entry.mtime}
        node["mode"] = 0o777 if node["type"] == "symlink" else entry.mode
    return tree


@THOROUGH
@given(entries, st.sampled_from(["estargz", "shared", "zstd", "storage", "external"]), st.integers(1, 30))
def test_random_layers_equal_what_unpacking_makes_of_them(given: list[Entry], form: str, chunk_size: int) -> None:
    flavor = {"zstd": Flavor.ZSTD_CHUNKED, "storage": Flavor.ZSTD_CHUNKED, "external": Flavor.EXTERNAL}.get(
        form, Flavor.ESTARGZ
    )
    built = layer(
        *given, flavor=flavor, chunk_size=chunk_size, share=700 if form == "shared" else 0, storage=form == "storage"
    )
    try:
        model = unpack(given)
    except Impossible:
        with suppress(FormatError):
            check_soundness(built.index())  # links to later entries are more than unpacking can do
        return
    index = built.index()
    check_soundness(index)
    assert index.entry_count == len(model)
    assert index.node_count == len({id(node) for node in model.values()}) + 1
    kinds = {"dir": Kind.DIR, "reg": Kind.REG, "symlink": Kind.SYMLINK, "fifo": Kind.FIFO}
    for path, expected in model.items():
        node = built.node(path, index)
        seen = index.attributes(node)
        assert seen.kind is kinds[expected["type"]]
        assert seen.mode & 0o7777 == expected["mode"]
        assert (seen.uid, seen.gid) == (expected.get("uid", 0), expected.get("gid", 0))
        assert seen.mtime_ns == expected.get("mtime", 0) * 10**9
        assert index.xattrs(node) == expected.get("xattrs", {})
        if seen.kind is Kind.REG:
            assert content(built, index, node) == expected["data"]
            assert seen.nlink == sum(other is expected for other in model.values())
        elif seen.kind is Kind.SYMLINK:
            assert index.readlink(node) == expected["target"].encode()
