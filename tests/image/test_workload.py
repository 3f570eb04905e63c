"""What a sample container runs: the image's words, and what the command line has to say about them."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapshotter.errors import ConfigError, FormatError
from snapshotter.image.optimize.workload import (
    DEFAULT_PATH,
    Mount,
    Overrides,
    merge_env,
    parse_env_file,
    parse_mount,
    parse_words,
    workload_of,
)


def config(**run: Any) -> dict[str, Any]:
    """An image's configuration."""
    return {"os": "linux", "config": run}


def test_image_says_all_where_nobody_else_does() -> None:
    image = config(
        Entrypoint=["/entry", "-x"],
        Cmd=["serve"],
        Env=["A=1", "B="],
        WorkingDir="/srv",
        User="u:g",
        StopSignal="SIGINT",
    )
    workload = workload_of(image, Overrides())
    assert workload.args == ("/entry", "-x", "serve")
    assert workload.env == ("A=1", "B=")
    assert (workload.cwd, workload.user, workload.stop_signal) == ("/srv", "u:g", "SIGINT")


def test_command_line_outranks_the_image_piece_by_piece() -> None:
    image = config(Entrypoint=["/entry"], Cmd=["serve"], Env=["A=1", "B=2", "C=3"], WorkingDir="/srv", User="u")
    assert workload_of(image, Overrides(entrypoint=("/other",))).args == ("/other", "serve")
    assert workload_of(image, Overrides(args=("one", "two"))).args == ("/entry", "one", "two")
    assert workload_of(image, Overrides(args=())).args == ("/entry",)
    workload = workload_of(image, Overrides(env=("B=x=y", "A", "D=4"), cwd="/tmp", user="7"))
    assert workload.env == ("B=x=y", "C=3", "D=4")
    assert (workload.cwd, workload.user) == ("/tmp", "7")


def test_image_without_variables_gets_a_path_and_a_terminal_its_kind() -> None:
    assert workload_of(config(Cmd=["x"]), Overrides()).env == (DEFAULT_PATH,)
    assert workload_of(config(Cmd=["x"], Env=["TERM=dumb"]), Overrides(terminal=True)).env == ("TERM=dumb",)
    assert workload_of(config(Cmd=["x"], Env=["A=1"]), Overrides(terminal=True)).env == ("TERM=xterm", "A=1")


@pytest.mark.parametrize("image", [{}, {"config": None}, config(), config(Cmd=[]), config(Entrypoint=None, Cmd=[""])])
def test_image_without_a_program_is_told_what_to_do(image: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="--args"):
        workload_of(image, Overrides())
    assert workload_of(image, Overrides(args=("/bin/app",))).args[0] == "/bin/app"


@pytest.mark.parametrize(
    "image", [{"config": []}, config(Cmd="sh"), config(Cmd=[1]), config(Cmd=["x"], Env={}), config(Cmd=["x"], User=0)]
)
def test_configuration_of_another_form_is_a_format_error(image: dict[str, Any]) -> None:
    with pytest.raises(FormatError):
        workload_of(image, Overrides())


def test_working_directory_must_be_absolute() -> None:
    with pytest.raises(ConfigError, match="must begin with /"):
        workload_of(config(Cmd=["x"], WorkingDir="srv"), Overrides())


def test_variable_is_set_once_where_it_stood_first() -> None:
    assert merge_env(["A=1", "B=2", "A=3"], ["B=4", "C=5", "B=6"]) == ["A=3", "B=6", "C=5"]


@pytest.mark.parametrize("text", ["", "sh", '"sh"', '{"a": 1}', "[1]", '["a\\u0000b"]', "[" * 100_000])
def test_words_must_be_a_json_array_of_texts(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--args .* JSON array"):
        parse_words("--args", text)


def test_words_are_taken_as_they_are() -> None:
    assert parse_words("--args", '["-c", "echo $A; echo \\u00e4"]') == ("-c", "echo $A; echo ä")


def test_file_of_variables_has_one_on_a_line() -> None:
    text = "\ufeffA=1\n\n# B=2\n  C = with blanks \nD=\r\nE\nF\nG=a=b"
    with pytest.raises(ConfigError, match=r"f line 4 is not NAME=VALUE; a name"):
        parse_env_file("f", text, {})
    text = text.replace("C =", "C=")
    assert parse_env_file("f", text, {"E": "ours"}) == ["A=1", "C= with blanks ", "D=", "E=ours", "G=a=b"]


def test_mount_is_read_as_ctr_reads_it() -> None:
    full = "type=bind,source=/data,destination=/srv,options=rbind:ro"
    assert parse_mount(full) == Mount("/srv", "bind", "/data", ("rbind", "ro"))
    assert parse_mount("type=tmpfs,dst=/t,options=size=1m:mode=700") == Mount(
        "/t", "tmpfs", "", ("size=1m", "mode=700")
    )
    assert parse_mount('"src=/a,b",dst=/c,type=bind') == Mount("/c", "bind", "/a,b", ("rbind",))


@pytest.mark.parametrize(
    "text", ["", "nonsense", "type=bind,source=/a", "type=bind,destination=/a", "dst=a,src=/b", "dst=/a,size=3"]
)
def test_mount_that_cannot_be_understood_is_told(text: str) -> None:
    with pytest.raises(ConfigError, match="--mount"):
        parse_mount(text)


@given(st.text())
def test_any_text_is_a_mount_or_a_complaint(text: str) -> None:
    try:
        mount = parse_mount(text)
    except ConfigError:
        return
    assert mount.destination.startswith("/")
