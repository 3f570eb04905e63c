"""Which lines of the lock the program needs when it runs; the lock holds the development tools too."""

import tomllib
from collections.abc import Iterator, Mapping
from importlib.metadata import distribution
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def runtime_pins(lock: Path, project: Path, python: str) -> str:
    """Return the part of `lock` that `project`'s dependencies and theirs need under Python `python`, with its hashes.

    Who needs whom is read from the packages installed here, which are those of the lock.

    Raises:
        SystemExit: a package is needed that the lock does not have; it must be resolved anew.
    """
    blocks = _blocks(lock.read_text())
    environment: dict[str, str] = {
        **{name: str(value) for name, value in default_environment().items()},
        "python_full_version": python,
        "python_version": ".".join(python.split(".")[:2]),
    }
    direct = tomllib.loads(project.read_text())["project"]["dependencies"]
    needed: set[str] = set()
    waiting = [Requirement(line) for line in direct]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name in needed or not _applies(requirement, environment, {""}):
            continue
        if name not in blocks:
            raise SystemExit(f"{name} is needed and not in {lock}: run `make lock`")
        needed.add(name)
        extras = {"", *requirement.extras}
        waiting += (
            each for each in map(Requirement, distribution(name).requires or ()) if _applies(each, environment, extras)
        )
    return "".join(blocks[name] for name in sorted(needed))


def _applies(requirement: Requirement, environment: Mapping[str, str], extras: set[str]) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({**environment, "extra": extra}) for extra in extras)


def _blocks(text: str) -> dict[str, str]:
    """The lock's lines by package: its pin and the hashes below it."""

    def blocks() -> Iterator[list[str]]:
        block: list[str] = []
        for line in text.splitlines(keepends=True):
            if block and not line.startswith((" ", "\t")):
                yield block
                block = []
            block.append(line)
        yield block

    return {canonicalize_name(block[0].split("==")[0].strip()): "".join(block) for block in blocks()}
