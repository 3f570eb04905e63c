"""The generated pages of `docs/` are those of the code, and what people wrote beside them names nothing that is not there."""

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from snapshotter.cli.main import snapshotter
from snapshotter.errors import Reason
from tests.cli.test_help import every_command

TOP = Path(__file__).parents[2]
DOCS = TOP / "docs"
PAGES = ("configuration.md", "cli.md", "limits.md")
WRITTEN = (TOP / "README.md", DOCS / "operations.md")


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("docs")
    subprocess.run([sys.executable, DOCS / "generate.py", target], cwd=TOP, check=True, timeout=60)
    return target


@pytest.mark.parametrize("page", PAGES)
def test_a_reference_page_is_what_the_code_says(page: str, generated: Path) -> None:
    assert (DOCS / page).read_text() == (generated / page).read_text(), "run `make docs` and commit what it writes"


def test_the_command_line_reference_has_every_command_and_option(generated: Path) -> None:
    text = (generated / "cli.md").read_text()
    for path, command in every_command(snapshotter):
        assert f"# snapshotter {' '.join(path)}\n" in text
        for option in command.params:
            if isinstance(option, click.Option) and not option.hidden:
                assert option.opts[0] in text


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: page.name)
def test_what_people_wrote_names_only_commands_and_options_that_exist(page: Path) -> None:
    known: dict[tuple[str, ...], click.Command] = dict(every_command(snapshotter))
    for line in re.findall(r"(?:^    |`)(snapshotter [^`\n]*)", page.read_text(), re.MULTILINE):
        words = re.split(r"\s{2,}|[|;)]", line)[0].split()[1:]
        path: tuple[str, ...] = ()
        while words and (*path, words[0]) in known:
            path = (*path, words.pop(0))
        if not path:
            assert not words or words[0].startswith(("-", "…")), f"{page.name}: {line}"
            continue
        command = known[path]
        assert not isinstance(command, click.Group) or not words or words[0].startswith(("-", "…")), (
            f"{page.name}: {line}"
        )
        options = {name for option in command.params for name in option.opts} | {"--help", "-h"}
        assert {word.partition("=")[0] for word in words if word.startswith("--")} <= options, f"{page.name}: {line}"


def test_the_operations_explain_every_reason_why_a_layer_is_not_lazy() -> None:
    told = re.findall(r"^\| `([a-z-]+)` \|", (DOCS / "operations.md").read_text(), re.MULTILINE)
    assert sorted(told) == sorted(Reason)


@pytest.mark.parametrize("page", [TOP / "README.md", *sorted(DOCS.glob("*.md"))], ids=lambda page: page.name)
def test_links_to_other_files_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []
