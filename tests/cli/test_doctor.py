"""`snapshotter doctor` as `main` runs it: what people, programs and scripts get."""

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapshotter.cli.main import main
from snapshotter.doctor import whole
from snapshotter.doctor.findings import MUST_BE_MENDED, Finding, Group, Verdict
from snapshotter.doctor.subject import Subject
from snapshotter.errors import DaemonUnreachable
from snapshotter.service.control_views import LayerState, LayerView
from tests.cli.fake_node import DIGESTS, FakeNode, serving

Captured = pytest.CaptureFixture[str]
LONG = "a sentence that is longer than a terminal is wide, with the path /var/lib/estargz/" + "snapshots/" * 12
FINDINGS = [
    Finding(Group.KERNEL, "", "version", Verdict.OK, "Linux 6.18", ""),
    Finding(Group.KERNEL, "", "plane", Verdict.NOTE, LONG, "do " * 40),
    Finding(Group.REGISTRY, "", "proxies", Verdict.SKIPPED, "no", ""),
    Finding(Group.REGISTRY, "r.test/a:1", "a very long name of a check", Verdict.WARNING, "x\x1b[31m\ny", "mend"),
]
FAULT = Finding(Group.REGISTRY, "r.test/a:1", "ranges", Verdict.FAULT, f"blob {DIGESTS[0]}", "mend")


@pytest.fixture(autouse=True)
def eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> list[Finding]:
    """The findings of the examination, to be changed by the test."""
    findings = [*FINDINGS]
    monkeypatch.setattr(whole, "examination", lambda _subject: iter(findings))
    return findings


@pytest.fixture
def subjects(monkeypatch: pytest.MonkeyPatch) -> list[Subject]:
    """Who would be examined."""
    seen: list[Subject] = []

    def examination(subject: Subject) -> Iterator[Finding]:
        seen.append(subject)
        return iter(())

    monkeypatch.setattr(whole, "examination", examination)
    return seen


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["doctor", *arguments])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_people_get_groups_marks_and_what_to_do_in_eighty_columns(scripted: list[Finding], capsys: Captured) -> None:
    scripted.append(FAULT)
    assert run() == MUST_BE_MENDED
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert max(map(len, lines)) <= 80
    assert [line for line in lines if line and line[0] != " "] == [
        "Kernel",
        "Registry",
        "1 to be mended, 1 warning, 1 in order, 1 to know, 1 not looked at",
    ]
    assert "  ✓ version" in out
    assert "  ✗ ranges" in out
    assert "\n  r.test/a:1\n" in out
    assert out.count("do: mend") == 2
    assert DIGESTS[0].partition(":")[2][:12] in out
    assert DIGESTS[0] not in out
    assert "\x1b" not in out


def test_a_terminal_without_the_marks_gets_plain_ones(scripted: list[Finding], monkeypatch: pytest.MonkeyPatch) -> None:
    scripted.append(FAULT)
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, "ascii"))
    assert run() == MUST_BE_MENDED
    sys.stdout.flush()
    text = raw.getvalue().decode("ascii")
    for mark in ("+ version", ". plane", "! a very long", "x ranges", "- proxies"):
        assert f"  {mark}" in text
    assert "\\u" not in text


def test_programs_get_a_list_and_a_summary(scripted: list[Finding], capsys: Captured) -> None:
    scripted.append(FAULT)
    assert run("--json") == MUST_BE_MENDED
    document = json.loads(capsys.readouterr().out)
    assert document["summary"] == {"ok": 1, "note": 1, "warning": 1, "fault": 1, "skipped": 1}
    assert document["findings"][-1] == {
        "group": "registry",
        "about": "r.test/a:1",
        "name": "ranges",
        "status": "fault",
        "found": f"blob {DIGESTS[0]}",
        "do": "mend",
    }


def test_warnings_end_with_four_for_the_strict_alone(scripted: list[Finding], capsys: Captured) -> None:
    assert run() == 0
    assert "nothing to be mended, 1 warning" in capsys.readouterr().out
    assert run("--strict") == MUST_BE_MENDED


def test_a_wrong_configuration_is_examined_all_the_same(subjects: list[Subject], tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.toml"
    wrong.write_text("rot = 1\n")
    assert run("--config", str(wrong)) == 0
    assert "did you mean root?" in subjects[0].config_fault
    assert subjects[0].config_path == wrong


def test_options_say_who_is_examined(subjects: list[Subject], tmp_path: Path) -> None:
    options = ["--address", str(tmp_path / "s"), "--containerd", str(tmp_path / "c"), "--timeout", "3"]
    run(*options, "--image", "a", "--image", "b")
    (subject,) = subjects
    assert (subject.address, subject.containerd) == (tmp_path / "s", tmp_path / "c")
    assert (subject.images, subject.timeout_s) == (("a", "b"), 3.0)


def test_the_daemon_is_asked_for_its_status_and_its_images(subjects: list[Subject], tmp_path: Path) -> None:
    node = FakeNode(rows=tuple(LayerView(f"r.test/{n // 2}:1", DIGESTS[0], LayerState.LAZY) for n in range(12)))
    with serving(node, tmp_path / "s"):
        run("--address", str(tmp_path / "s"))
        daemon = subjects[0].daemon
        assert daemon.status().pid == 4242
        assert daemon.images(3) == ["r.test/0:1", "r.test/1:1", "r.test/2:1"]
    with pytest.raises(DaemonUnreachable):
        daemon.status()


def test_a_machine_with_nothing_installed_is_examined_to_the_end(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "c.toml"
    config.write_text(f'root = "{tmp_path}/root"\nrun_dir = "/tmp/no-such-dir"\nplane = "fuse"\n')
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    code = run("--json", "--config", str(config), "--containerd", str(tmp_path / "no.sock"))
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert code == MUST_BE_MENDED
    assert {row["name"] for row in findings if row["status"] == "fault"} >= {"daemon", "containerd"}
    assert {row["group"] for row in findings} == {group.value for group in Group}
    assert not (tmp_path / "root").exists()
    for row in findings:
        assert row["do"] or row["status"] in ("ok", "note", "skipped")
