"""The licence texts of what the tree carries, gathered in `share/licenses`."""

import re
import shutil
import subprocess
from collections.abc import Iterable
from importlib.metadata import distributions
from pathlib import Path

_COMMON = re.compile(r"/usr/share/common-licenses/([A-Za-z0-9.+-]*[A-Za-z0-9])")
_TEXTS = re.compile(r"(licen[cs]e|copying|notice|authors|copyright)", re.IGNORECASE)


def gather_licences(tree: Path, library: Path, sources: Iterable[Path]) -> list[str]:
    """Write them, with an index; return what has none that this machine knows.

    `sources` are files of this machine that were copied: the interpreter and libraries. A package of Debian has its
    terms in one file, which may only name a common licence; that text is added, as a node may lack it.
    """
    place = tree / "share" / "licenses"
    place.mkdir(parents=True)
    index, without = [], []
    shutil.copyfile(library / "LICENSE.txt", place / "Python.txt")
    index.append("Python and its standard library: Python.txt")
    for package, files in _owners(sources).items():
        text = Path("/usr/share/doc") / package / "copyright"
        if not package or not text.is_file():
            without += [name for name in files if not name.startswith(("python", "libpython"))]
            continue
        shutil.copyfile(text, place / f"{package}.txt")
        index.append(f"{', '.join(files)}: {package}.txt")
        for name in _COMMON.findall(text.read_text(errors="replace")):
            common = Path("/usr/share/common-licenses") / name
            if common.is_file():
                shutil.copyfile(common, place / f"common-{name}.txt")
    for each in sorted(distributions(path=[str(library)]), key=lambda one: one.metadata["Name"].lower()):
        meta = each.metadata
        texts = [str(file) for file in each.files or () if _TEXTS.match(Path(file).name) and _is_text(library, file)]
        said = [meta[key].splitlines()[0] for key in ("License-Expression", "License") if meta[key]]
        terms = said[0] if said else "see its METADATA"
        where = ", ".join(f"{library.relative_to(tree)}/{text}" for text in texts) or "no text of its own"
        index.append(f"{meta['Name']} {each.version}: {terms}: {where}")
    (place / "INDEX").write_text("\n".join(index) + "\n")
    return without


def _is_text(library: Path, file: object) -> bool:
    path = library / str(file)
    return path.is_file() and path.suffix not in {".py", ".pyc", ".so"}


def _owners(sources: Iterable[Path]) -> dict[str, list[str]]:
    """File names by the Debian package they are of; under "" those of none."""
    owners: dict[str, list[str]] = {}
    for source in sources:
        owners.setdefault(_owner(source), []).append(source.name)
    return owners


def _owner(source: Path) -> str:
    if shutil.which("dpkg-query") is None:
        return ""
    # Packages list what lies in /usr/lib under /lib too, by the name it had before both became one directory.
    for path in (str(source), str(source).removeprefix("/usr")):
        done = subprocess.run(["dpkg-query", "-S", path], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return done.stdout.split(":")[0]
    return ""
