"""What the kernel remembers of names, and what it must not remember."""

from tests.mount import torture
from tests.mount.conftest import Served, child

EXISTS = "print(json.dumps(os.path.lexists(sys.argv[1])))"
# In one process, one right after the other: whoever has the kernel drop its caches on this machine hardly comes between.
THRICE = "print(json.dumps([os.path.lexists(sys.argv[1]) for _ in range(3)]))"


def test_absent_name_inside_a_layer_is_asked_for_once(served: Served) -> None:
    path = served.layer(torture.TORTURE) / "dir/no-such-file"
    assert child(THRICE, path) == [False] * 3
    assert served.command("count lookup no-such-file") == 1


def test_present_name_inside_a_layer_is_asked_for_once(served: Served) -> None:
    path = served.layer(torture.TORTURE) / "dir/sub/deep"
    assert child(THRICE, path) == [True] * 3
    assert served.command("count lookup deep") == 1


def test_layer_that_was_absent_is_found_once_it_is_attached(own_server: Served) -> None:
    path = own_server.layer(torture.LATE)
    assert child(EXISTS, path) is False
    own_server.command("attach-late")
    assert child("print(json.dumps(os.listdir(sys.argv[1])))", path) == ["late"]


def test_detached_layer_is_stale_and_its_name_is_gone(own_server: Served) -> None:
    own_server.command("attach-late")
    path = own_server.layer(torture.LATE)
    assert child(EXISTS, path / "late") is True
    own_server.command("detach-late")
    code = """
try:
    os.listdir(sys.argv[1])
except OSError as error:
    print(json.dumps(errno.errorcode[error.errno]))
"""
    assert child(code, path) == "ESTALE"
    assert own_server.command("forget-late") is None
    assert child(EXISTS, path) is False


def test_layers_are_reached_by_their_plain_number_only(served: Served) -> None:
    layers = served.layer(1).parent
    for name in ("01", "+1", "1x", "99", "9" * 30, "²"):
        assert child(EXISTS, layers / name) is False
    assert child("print(json.dumps(os.listdir(sys.argv[1])))", layers) == []


def test_no_flush_reaches_the_server_after_the_first(served: Served) -> None:
    assert child("print(json.dumps(len(open(sys.argv[1], 'rb').read())))", served.layer(1) / "dir/file") == 6
    assert served.command("count flush") == 1
