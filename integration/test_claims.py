"""Images that claim what is another's: its DiffIDs, or the digests of its files."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from integration.conftest import ALONE, StartNode
from integration.harness.node import Node, node
from integration.harness.registry import Registry
from integration.images.dialects import push_built
from integration.images.trial import PROBE, expected, programs
from integration.test_image_pull import begin, end, pull, states
from tests.doubles.layers import BuiltLayer, dir, file, layer, sha256

TRUTH = b"what the honest image has\n"
LIE = b"what the evil image put there\n"
HONEST = layer(*programs(), dir("d"), file("d/f", TRUTH))
CLAIMS = replace(layer(*programs(), dir("d"), file("d/f", LIE)), diff_id=HONEST.diff_id)
"""Lazy content of its own, under the honest layer's DiffID: nobody compares it as long as nobody unpacks it."""


@pytest.fixture
def this(registry: Registry) -> Iterator[Node]:
    """A node on which nothing was pulled yet, and the two images in its registry."""
    with registry.client() as client:
        push_built(client, "claims-honest:1", [HONEST])
        push_built(client, "claims-evil:1", [CLAIMS])
    with node(registry, settings=ALONE) as made:
        yield made


def test_chain_id_that_an_evil_image_claimed_first_gives_its_content_to_no_other_namespace(this: Node) -> None:
    evil = this.pull("claims-evil:1")
    assert this.layer_states("claims-evil:1") == ["lazy"]
    # Asked again, our daemon sees that the name is taken by another layer; containerd then unpacks, and compares.
    assert states(pull(this, "claims-honest:1")) == [("unpacked", "other-content-under-this-name")]
    with this.view("claims-honest:1", namespace="default") as tree:
        assert (tree / "d" / "f").read_bytes() == TRUTH
    assert this.run(evil, PROBE, "read", "/d/f").stdout == expected(LIE)


def test_evil_image_that_comes_second_is_refused_and_the_honest_one_goes_on(this: Node) -> None:
    honest = this.pull("claims-honest:1")
    code, _, words = end(begin(this, "claims-evil:1"))
    assert code != 0
    assert "unpacks to" in words
    assert this.run(honest, PROBE, "read", "/d/f").stdout == expected(TRUTH)
    assert states(pull(this, "claims-honest:1")) == [("lazy", "")]


def lying() -> BuiltLayer:
    """Names the honest file's digest, and has other bytes."""

    def lie(toc: dict[str, Any]) -> None:
        for row in toc["entries"]:
            if row["name"] == "d/lie":
                row["digest"] = row["chunkDigest"] = sha256(TRUTH)

    return layer(*programs(), dir("d"), file("d/lie", b"x" * len(TRUTH)), edit=lie)


@pytest.mark.parametrize(("share", "shown"), [("node", True), ("registry", False)])
def test_digest_named_by_an_image_of_another_registry_gives_content_only_where_the_node_shares(
    start_node: StartNode, share: str, shown: bool
) -> None:
    this = start_node({**ALONE, "cache": {**ALONE["cache"], "share": share}})
    with this.registry.client() as client:
        push_built(client, "claims-truth:1", [HONEST])
        push_built(client, "claims-lie:1", [lying()])
    honest = this.pull("claims-truth:1")
    assert this.run(honest, PROBE, "read", "/d/f").stdout == expected(TRUTH)
    # The same machine under another name is another registry.
    evil = this.cri.pull(this.reference("claims-lie:1").replace("127.0.0.1", "localhost"))
    found = this.run(evil, PROBE, "read", "/d/lie").stdout
    assert found == expected(TRUTH) if shown else found in {"open EIO\n", "read EIO\n"}
