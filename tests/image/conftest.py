"""What conversions need around them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.doubles.registry import LoopbackRegistry


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A scratch directory, which every conversion must leave empty; no credentials of the machine."""
    path = tmp_path / "scratch"
    path.mkdir()
    monkeypatch.setenv("TMPDIR", str(path))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    yield path
    assert list(path.iterdir()) == []


@pytest.fixture
def registry() -> Iterator[LoopbackRegistry]:
    with LoopbackRegistry() as made:
        yield made
