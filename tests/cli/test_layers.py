"""The table of layers where many layers have one story."""

from pathlib import Path

import pytest

from snapshotter.cli.main import main
from snapshotter.service.control_views import LayerState, LayerView
from tests.cli.fake_node import DIGESTS, IMAGE, FakeNode, serving


def test_a_reason_that_all_layers_share_is_told_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    node = FakeNode()
    node.rows = tuple(
        LayerView(image, digest, state, reason=reason, detail=reason and "a long story, told in a whole sentence")
        for image, digest, state, reason in (
            (IMAGE, DIGESTS[0], LayerState.ORDINARY, "no-toc-digest"),
            (IMAGE, DIGESTS[1], LayerState.ORDINARY, "no-toc-digest"),
            (IMAGE, DIGESTS[2], LayerState.LAZY, ""),
            (IMAGE, DIGESTS[3], LayerState.LAZY, ""),
            ("other", DIGESTS[0], LayerState.ORDINARY, "no-toc-digest"),
        )
    )
    with serving(node, tmp_path / "s"), pytest.raises(SystemExit):
        main(["layers", "--address", str(tmp_path / "s")])
    out = capsys.readouterr().out
    assert out.count("no-toc-digest") == 2
    assert out.count("as above") == 1
