"""A machine made of files for each test."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.doctor.world import World


@pytest.fixture
def world() -> Iterator[World]:
    """A healthy machine without a daemon; its paths are short enough for a run directory and a socket."""
    with tempfile.TemporaryDirectory(prefix="d", dir="/tmp") as top:
        yield World(Path(top))
