"""What containerd is told to mount on the erofs plane, and what it makes of it."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from integration.conftest import QUIET
from integration.fidelity import Difference, differences, report
from integration.harness.node import CRI_NAMESPACE, Node, node
from integration.harness.registry import Registry
from integration.harness.roots import Roots
from integration.images.dialects import push_built
from integration.images.trial import programs
from tests.doubles.layers import BuiltLayer, dir, file, layer, opaque

READ_ALL = ("/bin/busybox", "sh", "-c", "cat /data/*")


@pytest.fixture(scope="module")
def this(registry: Registry, trial_image: str, whole_node: Node, erofs: str) -> Iterator[Node]:
    """A node for all tests. The oracle is there before, or it would end with it."""
    with node(registry, settings=QUIET, plane=erofs) as made:
        made.sandbox()
        made.pull(trial_image)
        yield made


def push(this: Node, name: str, *layers: BuiltLayer, ordinary: Sequence[int] = ()) -> None:
    """Put an image into the registry; the layers at the positions `ordinary` are not lazy."""
    for position in ordinary:
        layers[position].annotations.clear()
    with this.registry.client() as client:
        push_built(client, name, layers)


def compare(this: Node, whole: Node, name: str, layers: int | None = None) -> list[Difference]:
    """In what the tree of a pulled image differs from the unpacked one."""
    whole.pull_whole(name)
    with this.view(name, layers=layers) as left, whole.view(name, namespace="default", layers=layers) as right:
        return differences(left, right)


def lower_of(options: Sequence[str]) -> list[str]:
    """The parts of the lowerdir among mount options."""
    (lower,) = (option.partition("=")[2] for option in options if option.startswith("lowerdir="))
    return lower.split(":")


def test_container_is_given_metadata_above_the_four_places_of_contents(this: Node) -> None:
    roots, run_dir = Roots(this), this.daemon.run_dir
    roots.prepare("plain", roots.of_image("trial:lazy"))
    options = roots.options("plain")
    assert {"metacopy=on", "redirect_dir=on"} <= set(options)
    *layers, _, objects, _, gate, _, late, _, fail = lower_of(options)
    assert [Path(path).parent for path in layers] == [run_dir / "e"] * 3
    assert [objects, gate, late, fail] == [str(run_dir / "l" / name) for name in ("objects", "gate", "late", "fail")]
    assert ":".join(lower_of(options)).count("::") == 4


def test_view_of_one_layer_is_an_overlay_with_real_bytes(this: Node, whole_node: Node) -> None:
    roots = Roots(this)
    key, parent = "view-of-one", roots.of_image("trial:lazy", layers=1)
    this.ctr(CRI_NAMESPACE).view(this.snapshotter, key, parent)
    options = roots.options(key)
    assert lower_of(options)[1:4:2] == ["", ""]
    assert "metacopy=on" in options
    roots.remove(key)
    assert report(compare(this, whole_node, "trial:lazy", layers=1)) == ""


@pytest.mark.parametrize("key", ["extract-123456789-AbCd sha256:" + 64 * "a", "labelled"])
def test_extraction_is_given_no_data_layers(this: Node, key: str) -> None:
    roots = Roots(this)
    roots.prepare(key, roots.of_image("trial:lazy"))
    if key == "labelled":
        label = f"containerd.io/snapshot.ref=sha256:{64 * 'b'}"
        this.ctr(CRI_NAMESPACE)("snapshots", "--snapshotter", this.snapshotter, "label", key, label)
    options = roots.options(key)
    assert "" not in lower_of(options)
    assert [Path(path).parent for path in lower_of(options)] == [this.daemon.run_dir / "l"] * 3
    assert all((Path(path) / ".").is_dir() for path in lower_of(options))
    assert not {"metacopy=on", "redirect_dir=on"} & set(options)
    roots.remove(key)


def test_image_without_lazy_layers_is_given_no_data_layers(this: Node) -> None:
    push(this, "mounts:ordinary", layer(*programs()), layer(dir("data"), file("data/a", b"a\n")), ordinary=(0, 1))
    image = this.pull("mounts:ordinary")
    roots = Roots(this)
    roots.prepare("ordinary", roots.of_image("mounts:ordinary"))
    options = roots.options("ordinary")
    assert "" not in lower_of(options)
    assert not {"metacopy=on", "redirect_dir=on"} & set(options)
    assert this.run(image, *READ_ALL).stdout == "a\n"


def test_equal_layers_are_mounted_once_and_the_topmost_counts(this: Node, whole_node: Node) -> None:
    twice = layer(dir("data", mode=0o711), file("data/a", b"a\n"), file("data/b", b"b\n"))
    between = layer(dir("data"), opaque("data"), file("data/a", b"changed\n"), file("data/c", b"c\n"))
    push(this, "mounts:twice", layer(*programs(), file("mounts-twice")), twice, between, twice, twice)
    assert this.run(this.pull("mounts:twice"), *READ_ALL).stdout == "a\nb\nc\n"
    roots = Roots(this)
    roots.prepare("twice", roots.of_image("mounts:twice"))
    layers = lower_of(roots.options("twice"))[:-8]
    assert len(layers) == len(set(layers)) == 3
    assert report(compare(this, whole_node, "mounts:twice")) == ""


def host_directory(tmp_path: Path) -> list[str]:
    """A directory of this machine with attributes of its own; the names on the way to it, each with those before it."""
    inner = tmp_path / "of-the-host"
    inner.mkdir(mode=0o700)
    os.chown(inner, 1234, 1234)
    parts = inner.parts[1:]
    return ["/".join(parts[:length]) for length in range(1, len(parts) + 1)]


def test_ordinary_layer_takes_directories_that_it_leaves_out_from_its_lazy_parents(
    this: Node, whole_node: Node, tmp_path: Path
) -> None:
    way = host_directory(tmp_path)
    inner = way[-1]
    dressed = {"uid": 42, "gid": 43, "xattrs": {"user.of": b"the parent"}}
    parent = layer(
        *programs(),
        *(dir(name) for name in way if name not in {"tmp", inner}),
        dir(inner, mode=0o2711, **dressed),
        file(f"{inner}/below", b"below\n"),
        dir("data", mode=0o750, **dressed),
        dir("data/deep", mode=0o1701, uid=44),
        file("data/deep/below", b"below\n"),
        dir("opaque"),
        file("opaque/hidden", b"hidden\n"),
    )
    second = layer(dir("opaque", mode=0o701), opaque("opaque"), file("opaque/shown", b"shown\n"))
    touched = (inner, "data/deep", "opaque", "nowhere")
    added = layer(*(file(f"{place}/new", b"new\n") for place in touched))
    last = layer(dir("data", mode=0o750, **dressed), file("data/last", b"last\n"))
    push(this, "mounts:mixed", parent, second, added, last, ordinary=(2,))
    image = this.pull("mounts:mixed")
    assert [state != "ordinary" for state in this.layer_states("mounts:mixed")] == [True, True, False, True]
    assert this.run(image, "/bin/busybox", "cat", f"/{inner}/new", "/opaque/shown").stdout == "new\nshown\n"
    with this.view("mounts:mixed") as tree:
        status = (tree / inner).stat()
        assert (status.st_mode & 0o7777, status.st_uid, status.st_gid) == (0o2711, 42, 43)
        assert os.getxattr(tree / inner, "user.of") == b"the parent"
        assert {path.name for path in (tree / inner).iterdir()} == {"below", "new"}
    # Unpacking changes the time of a directory into which it puts a file: the moment is each side's own.
    own = {(f"./{place}".encode(), "mtime") for place in (*way, *touched)}
    assert report([one for one in compare(this, whole_node, "mounts:mixed") if (one.path, one.what) not in own]) == ""
