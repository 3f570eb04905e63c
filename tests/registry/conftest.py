"""What tests of credentials share."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapshotter.registry import knock
from tests.registry.programs import Environ, make_environ
from tests.registry.servers import tells_a_secret


@pytest.fixture(scope="module")
def nobody_knocks() -> Iterator[None]:
    """A server that a busy machine holds up is not knocked at, nor asked a second time: requests can be counted."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("WELL_S", "SICK_S"):
            patch.setattr(knock, name, 3600.0)
        yield


@pytest.fixture
def environ(tmp_path: Path) -> Environ:
    """An environment for credential helpers."""
    return make_environ(tmp_path)


@pytest.fixture
def no_secret_told(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Nothing that is logged during the test, however unimportant, has a secret in it."""
    caplog.set_level(logging.DEBUG)
    yield
    told = "\n".join(record.getMessage() for record in caplog.get_records("call"))
    assert tells_a_secret(told) == []
