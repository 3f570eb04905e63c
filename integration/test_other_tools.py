"""Images of another tool run lazily here, and that tool takes ours."""

import pytest

from integration.conftest import StartNode
from integration.fidelity import differences, report
from integration.harness.node import LAZY_ALIAS, Node
from integration.images.convert import convert, convert_elsewhere
from integration.images.sample import SMALL_OUTPUT, SMALL_WORKLOAD, WORKLOAD

FORMS = pytest.mark.parametrize("options", [(), ("--zstdchunked",)], ids=["estargz", "zstdchunked"])


def pull_converted_elsewhere(node: Node, whole: Node, source: str, options: tuple[str, ...]) -> str:
    """Convert an image with ctr-remote, pull the result and check that each layer is lazy; return the image's id."""
    repository = source.partition(":")[0]
    name = f"{repository}:other" + "".join(options)
    convert_elsewhere(whole.ctr(program="ctr-remote"), whole.registry.host, source, name, *options)
    image = node.pull(name)
    states = [row["state"] for row in node.daemon.json("layers") if row["image"].endswith(name)]
    assert len(states) == 3
    assert set(states) <= {"lazy", "complete"}
    return image


@FORMS
def test_image_converted_by_another_tool_runs_lazily(
    start_node: StartNode, whole_node: Node, options: tuple[str, ...]
) -> None:
    node = start_node()
    image = pull_converted_elsewhere(node, whole_node, "small:plain", options)
    assert node.run(image, *SMALL_WORKLOAD).stdout == SMALL_OUTPUT


@pytest.mark.long
@FORMS
def test_large_image_converted_by_another_tool_runs_lazily(
    start_node: StartNode, whole_node: Node, options: tuple[str, ...]
) -> None:
    node = start_node()
    image = pull_converted_elsewhere(node, whole_node, "sample:plain", options)
    assert node.run(image, *WORKLOAD).stdout == "ready [1]\n"


@FORMS
def test_our_image_is_pulled_lazily_by_another_tool(
    start_node: StartNode, lazy_images: None, options: tuple[str, ...]
) -> None:
    node = start_node()
    name = "small:lazy"
    if options:
        name = "small:lazy-zstd"
        convert(node.registry.host, "small:plain", name, *options)
    reference = node.reference(name)
    node.ctr(program="ctr-remote")("images", "rpull", "--plain-http", "--snapshotter", LAZY_ALIAS, reference)
    with node.registry.client() as client:
        layers = {layer["digest"] for layer in client.manifest(*name.split(":"))["layers"]}
    assert set(node.ctr().content()) & layers == set()
    output = node.ctr().run(reference, "workload", SMALL_WORKLOAD, snapshotter=LAZY_ALIAS, cgroup=node.place.name)
    assert output == SMALL_OUTPUT


@pytest.mark.parametrize("image", ["small", pytest.param("torture-readable", marks=pytest.mark.long)])
@FORMS
def test_each_tool_takes_what_the_other_made_and_changes_nothing_in_it(
    whole_node: Node, image: str, options: tuple[str, ...]
) -> None:
    host, form = whole_node.registry.host, "".join(options)
    ctr_remote = whole_node.ctr(program="ctr-remote")
    plain, ours, theirs, again, back, kept = (
        f"{image}:{word}"
        for word in ("plain", *(f"{word}{form}" for word in ("ours", "theirs", "again", "back", "kept")))
    )
    convert(host, plain, ours, *options)
    convert_elsewhere(ctr_remote, host, plain, theirs, *options)
    convert(host, theirs, again, *options)
    with whole_node.registry.client() as client:
        # Of the two manifests of our zstd:chunked index ctr-remote would convert both at once, and stumble over their layers.
        ours = f"{image}@{client.image_digest(*ours.split(':'))}"
    convert_elsewhere(ctr_remote, host, ours, back, *options)
    convert(host, theirs, kept, "--reuse", *options)
    for name in (plain, again, back):
        whole_node.pull_whole(name)
    with whole_node.view(plain, namespace="default") as before:
        for name in (again, back):
            with whole_node.view(name, namespace="default") as after:
                assert report(differences(before, after)) == ""
    with whole_node.registry.client() as client:
        digests = [[one["digest"] for one in client.manifest(*name.split(":"))["layers"]] for name in (theirs, kept)]
    assert digests[0] == digests[1]


def test_another_tool_finds_the_toc_digest_that_we_annotated(whole_node: Node, lazy_images: None) -> None:
    whole_node.pull_whole("small:lazy")
    with whole_node.registry.client() as client:
        layers = client.manifest("small", "lazy")["layers"]
    for layer in layers:
        found = whole_node.ctr(program="ctr-remote")("images", "get-toc-digest", layer["digest"]).strip()
        assert found == layer["annotations"]["containerd.io/snapshot/stargz/toc.digest"]
