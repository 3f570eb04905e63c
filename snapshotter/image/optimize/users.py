"""Who a container's program runs as: the image's words for it, looked up in the image's own etc/passwd and etc/group. Pure.

Source: containerd's oci.WithUser and oci.WithAdditionalGIDs; passwd(5), group(5).
"""

from collections.abc import Iterator
from dataclasses import dataclass

from snapshotter.errors import ConfigError

PASSWD = "etc/passwd"  # noqa: S105 (a path)
GROUP = "etc/group"
ID_MAX = (1 << 32) - 2
"""The largest id; the next one means "nobody said"."""


@dataclass(frozen=True, slots=True)
class User:
    """Numbers as the kernel knows them; `groups` has the own group first."""

    uid: int
    gid: int
    groups: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Account:
    name: str
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class _Group:
    name: str
    gid: int
    members: frozenset[str]


def find_user(text: str, passwd: bytes | None, group: bytes | None) -> User:
    """The user that `text` names: nothing (root), USER, or USER:GROUP, each a name or a number.

    A user without a group gets those that the files give it; a number need not be in them.

    Raises:
        ConfigError: a name that the image's files do not have.
    """
    user_text, colon, group_text = text.partition(":")
    account = _account(user_text or "root", passwd, needed=bool(user_text))
    if colon:
        gid = _gid(group_text, group)
        return User(account.uid, gid, (gid,))
    also = sorted({one.gid for one in _groups(group) if account.name and account.name in one.members} - {account.gid})
    return User(account.uid, account.gid, (account.gid, *also))


def _account(text: str, passwd: bytes | None, *, needed: bool) -> _Account:
    number = _number(text)
    for account in _accounts(passwd):
        if account.uid == number or (number is None and account.name == text):
            return account
    if number is not None:
        return _Account("", number, 0)
    if not needed:
        return _Account(text, 0, 0)
    raise ConfigError(
        f"the image's {PASSWD} has no user {text!r}: name one with --user, by its number if need be"
        if passwd is not None
        else f"the image has no {PASSWD} to look up the user {text!r}: give its number with --user"
    )


def _gid(text: str, group: bytes | None) -> int:
    number = _number(text)
    if number is not None:
        return number
    for one in _groups(group):
        if one.name == text:
            return one.gid
    raise ConfigError(f"the image's {GROUP} has no group {text!r}: name one with --user, by its number if need be")


def _accounts(passwd: bytes | None) -> Iterator[_Account]:
    for fields in _lines(passwd):
        uid, gid = (_number(field) for field in [*fields, "", "", ""][2:4])
        if uid is not None and gid is not None:
            yield _Account(fields[0], uid, gid)


def _groups(group: bytes | None) -> Iterator[_Group]:
    for fields in _lines(group):
        gid = _number([*fields, "", ""][2])
        if gid is not None:
            yield _Group(fields[0], gid, frozenset(filter(None, fields[3].split(",")) if len(fields) > 3 else ()))


def _lines(data: bytes | None) -> Iterator[list[str]]:
    for line in (data or b"").decode("utf-8", "surrogateescape").splitlines():
        if line.strip() and not line.startswith("#"):
            yield line.strip().split(":")


def _number(text: str) -> int | None:
    if not (text.isascii() and text.isdigit()) or len(text) > 10 or int(text) > ID_MAX:
        return None
    return int(text)
