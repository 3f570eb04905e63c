"""What conversions need around them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from snapshotter.registry import knock
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
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackRegistry]:
    """A registry that is not asked a second time where a busy machine holds it up: requests can be counted."""
    monkeypatch.setattr(knock, "WELL_S", 3600.0)
    with LoopbackRegistry() as made:
        yield made
