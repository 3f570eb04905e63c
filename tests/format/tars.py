"""Tar layers for the writer's tests: made by tarfile or by hand, and read back as what they say."""

import io
import tarfile
from collections.abc import Callable, Iterable
from typing import Any

from hypothesis import strategies as st

Made = tuple[tarfile.TarInfo, bytes]


def entry(name: str, data: bytes = b"", **fields: Any) -> Made:
    """A regular file, or whatever `type` says, with the fields of TarInfo."""
    info = tarfile.TarInfo(name)
    info.mode, info.mtime = 0o644, 1_700_000_000
    for key, value in fields.items():
        setattr(info, key, value)
    info.size = len(data)
    return info, data


def folder(name: str, **fields: Any) -> Made:
    return entry(name, type=tarfile.DIRTYPE, **{"mode": 0o755, **fields})


def hard_link(name: str, target: str, **fields: Any) -> Made:
    return entry(name, type=tarfile.LNKTYPE, linkname=target, **fields)


def symlink(name: str, target: str) -> Made:
    return entry(name, type=tarfile.SYMTYPE, linkname=target, mode=0o777)


def tar(*entries: Made, form: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar of these entries, in this order."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form, encoding="utf-8", errors="surrogateescape") as archive:
        for info, data in entries:
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def listing(data: bytes, leave_out: Iterable[str] = ()) -> list[tuple[object, ...]]:
    """Everything that the tar says of each entry, content included, by tarfile."""
    found: list[tuple[object, ...]] = []
    with tarfile.open(fileobj=io.BytesIO(data), encoding="utf-8", errors="surrogateescape") as archive:
        for info in archive:
            if info.name in leave_out:
                continue
            content = archive.extractfile(info) if info.isreg() else None
            found.append(
                (
                    info.name,
                    info.type if not info.isreg() else tarfile.REGTYPE,
                    info.mode,
                    (info.uid, info.gid, info.uname, info.gname),
                    info.mtime,
                    info.linkname,
                    (info.devmajor, info.devminor),
                    {k: v for k, v in info.pax_headers.items() if k.startswith("SCHILY")},
                    content.read() if content else b"",
                )
            )
    return found


_part = st.text(
    st.characters(blacklist_characters="/\0", blacklist_categories=["Cs"]) | st.sampled_from("\udc80\udcff"),
    min_size=1,
    max_size=40,
).filter(lambda part: part not in {".", ".."} and len(part.encode("utf-8", "surrogateescape")) <= 255)
_ids = st.integers(0, 70_000) | st.just((1 << 32) - 2)
_times = st.integers(0, 1 << 33)
_xattrs = st.dictionaries(
    st.from_regex(r"(user|security)\.[a-z]{1,8}", fullmatch=True).map("SCHILY.xattr.{}".format),
    st.binary(min_size=1, max_size=40).map(lambda value: value.decode("utf-8", "surrogateescape")),
    max_size=2,
)


@st.composite
def trees(draw: Callable[..., Any]) -> list[Made]:
    """Entries of a random tree, parents first, sizes around a chunk of 4 KiB."""
    made: list[Made] = []
    folders, names = [""], set[str]()
    files: dict[str, dict[str, Any]] = {}
    for _ in range(draw(st.integers(0, 12))):
        parent = draw(st.sampled_from(folders))
        name = f"{parent}{draw(_part)}"
        if name in names:
            continue
        names.add(name)
        kind = draw(st.sampled_from(["dir", "file", "file", "link", "symlink", "device", "fifo"]))
        fields: dict[str, Any] = {
            "mode": draw(st.integers(0, 0o7777)),
            "uid": draw(_ids),
            "gid": draw(_ids),
            "uname": draw(st.sampled_from(["", "root", "Ünïcode"])),
            "mtime": draw(_times),
            "pax_headers": draw(_xattrs),
        }
        if kind == "dir":
            made.append(entry(name, type=tarfile.DIRTYPE, **fields))
            folders.append(name + "/")
        elif kind == "file":
            size = draw(st.sampled_from([0, 1, 511, 512, 4095, 4096, 4097, 9000]))
            made.append(entry(name, draw(st.binary(min_size=3, max_size=9)) * size if size else b"", **fields))
            files[name] = fields
        elif kind == "link" and files:
            # One inode has one set of attributes, and each of its names says the same.
            target = draw(st.sampled_from(sorted(files)))
            made.append(hard_link(name, target, **files[target]))
        elif kind == "symlink":
            made.append(entry(name, type=tarfile.SYMTYPE, linkname=draw(_part), **fields))
        elif kind == "device":
            made.append(entry(name, type=tarfile.CHRTYPE, devmajor=1, devminor=3, **fields))
        else:
            made.append(entry(name, type=tarfile.FIFOTYPE, **fields))
    return made
