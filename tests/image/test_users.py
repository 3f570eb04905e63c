"""Who a container runs as, by the image's own files."""

import pytest

from snapshotter.errors import ConfigError
from snapshotter.image.optimize.users import User, find_user

PASSWD = b"""\
root:x:0:0:root:/root:/bin/sh
# nobody:x:7:7::/:

broken line
daemon:x:one:1::/:/bin/false
worker:x:1000:1001:Worker:/srv/worker:/bin/sh
\xff\xfe:x:5:6::/:
"""
GROUP = b"""\
root:x:0:
adm:x:4:worker,other
staff:x:50:worker
worker:x:1001:worker
broken:x
empty:x:60:
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", User(0, 0, (0,))),
        ("root", User(0, 0, (0,))),
        ("worker", User(1000, 1001, (1001, 4, 50))),
        ("1000", User(1000, 1001, (1001, 4, 50))),
        ("worker:adm", User(1000, 4, (4,))),
        ("worker:4321", User(1000, 4321, (4321,))),
        ("4294967294:0", User(4294967294, 0, (0,))),
        ("77:empty", User(77, 60, (60,))),
        ("77", User(77, 0, (0,))),
    ],
)
def test_words_for_a_user_are_looked_up_in_the_images_files(text: str, expected: User) -> None:
    assert find_user(text, PASSWD, GROUP) == expected


@pytest.mark.parametrize(
    "text", ["nobody", "daemon", "4294967295", "-1", "worker:nogroup", "worker:broken", "one", "٣"]
)
def test_name_that_the_files_do_not_have_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--user"):
        find_user(text, PASSWD, GROUP)


def test_image_without_the_files_has_root_and_numbers() -> None:
    assert find_user("", None, None) == User(0, 0, (0,))
    assert find_user("1:2", None, None) == User(1, 2, (2,))
    assert find_user("1", None, None) == User(1, 0, (0,))
    with pytest.raises(ConfigError, match="no etc/passwd to look up the user 'worker'"):
        find_user("worker", None, GROUP)
