"""Inode numbers say where they lead, and nothing else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapshotter.errors import PlaneError
from snapshotter.plane.fuse.inodes import LAYER_BITS, NODE_BITS, SLOT_BITS, Fixed, Numbers, Place

sessions = st.integers(1, 1 << 40)
layers = st.integers(1, (1 << LAYER_BITS) - 1)
nodes = st.integers(0, (1 << NODE_BITS) - 1)


@given(sessions, layers, nodes)
def test_number_leads_back_to_layer_and_node(session: int, layer: int, node: int) -> None:
    numbers = Numbers(session)
    assert numbers.place(numbers.of_node(layer, node)) == Place(layer, node)


@given(sessions, layers, nodes)
def test_top_four_bits_are_left_to_overlayfs(session: int, layer: int, node: int) -> None:
    assert Numbers(session).of_node(layer, node) < 1 << 60


@given(sessions, layers, nodes)
def test_number_is_the_same_in_every_process(session: int, layer: int, node: int) -> None:
    expected = (session % (1 << SLOT_BITS)) * 2 ** (NODE_BITS + LAYER_BITS) + layer * 2**NODE_BITS + node
    assert Numbers(session).of_node(layer, node) == expected


@given(sessions, layers, nodes)
def test_another_session_does_not_know_the_number(session: int, layer: int, node: int) -> None:
    assert Numbers(session + 1).place(Numbers(session).of_node(layer, node)) is None


def test_directories_above_the_layers_are_not_in_any_layer() -> None:
    numbers = Numbers(3)
    assert numbers.of_fixed(Fixed.ROOT) == 1
    for fixed in Fixed:
        assert numbers.place(numbers.of_fixed(fixed)) == Place(0, fixed)


@pytest.mark.parametrize("layer", [0, -1, 1 << LAYER_BITS])
def test_layer_number_without_room_is_refused(layer: int) -> None:
    with pytest.raises(PlaneError, match="layer number"):
        Numbers(1).of_node(layer, 0)


@pytest.mark.parametrize("node", [-1, 1 << NODE_BITS])
def test_node_without_room_is_refused(node: int) -> None:
    with pytest.raises(PlaneError, match="node"):
        Numbers(1).of_node(1, node)
