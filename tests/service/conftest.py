"""One service per test."""

from collections.abc import Iterator

import pytest

from tests.service.node import Client, Node, scratch


@pytest.fixture
def node() -> Iterator[Node]:
    """A service with an empty store."""
    with scratch() as top, Node(top) as running:
        yield running


@pytest.fixture
def client(node: Node) -> Client:
    """Its client."""
    return node.client
