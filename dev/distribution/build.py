"""From this checkout to a staged release."""

import fcntl
from pathlib import Path

from dev.distribution.interpreter import look_at
from dev.distribution.pins import runtime_pins
from dev.distribution.release import Release, stage
from dev.distribution.runtime import runtime_tree

TOP = Path(__file__).resolve().parents[2]


def build_release(python: str, build: Path, into: Path) -> Release:
    """Build the release of this checkout with the interpreter `python` and put it together in `into`.

    What takes long is kept in `build`, which one build uses at a time.
    """
    build.mkdir(parents=True, exist_ok=True)
    with (build / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        interpreter = look_at(python)
        version = ".".join(map(str, interpreter.version))
        pins = runtime_pins(TOP / "dev" / "requirements.lock", TOP / "pyproject.toml", version)
        return stage(TOP, runtime_tree(interpreter, pins, build), interpreter, into)
