"""hosts.toml: what containerd takes is taken, what it refuses is refused with file and line."""

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapshotter.errors import HostsError, Reason
from snapshotter.registry.hosts_toml import CAPABILITIES, HostEntry, HostsFile, parse_hosts

PATH = Path("/etc/containerd/certs.d/registry.test/hosts.toml")


def read(text: str) -> HostsFile:
    return parse_hosts(text, PATH)


def only(text: str) -> HostEntry:
    (entry,) = read(f'[host."https://m.test"]\n{text}').hosts
    return entry


def test_servers_stand_in_the_order_of_the_file_and_the_registry_itself_is_last() -> None:
    found = read('server = "https://up.test"\n[host."https://b.test"]\n[host."http://a.test:5000"]\n[host."c.test"]\n')
    assert [entry.base for entry in found.hosts] == ["https://b.test", "http://a.test:5000", "https://c.test"]
    assert found.server == HostEntry("https://up.test", "/v2")
    assert found.warnings == ()


@pytest.mark.parametrize(
    ("url", "override", "base", "prefix"),
    [
        ("m.test", "false", "https://m.test", "/v2"),
        ("https://m.test/", "false", "https://m.test", "/v2"),
        ("https://m.test/v2", "false", "https://m.test", "/v2"),
        ("https://m.test/v2/", "false", "https://m.test", "/v2"),
        ("https://m.test/team//cache", "false", "https://m.test", "/team/cache/v2"),
        ("https://m.test/v2/team", "true", "https://m.test", "/v2/team"),
        ("https://m.test", "true", "https://m.test", ""),
        ("http://[::1]:5000", "false", "http://[::1]:5000", "/v2"),
    ],
)
def test_v2_is_appended_unless_it_is_there_or_overridden(url: str, override: str, base: str, prefix: str) -> None:
    (entry,) = read(f'[host."{url}"]\noverride_path = {override}\n').hosts
    assert (entry.base, entry.prefix) == (base, prefix)


def test_every_key_counts_at_the_top_for_the_registry_itself_too() -> None:
    keys = """
        capabilities = ["pull", "resolve"]
        ca = "own.crt"
        client = [["me.cert", "me.key"], ["/abs/both.pem", ""]]
        skip_verify = true
        dial_timeout = "1m2.5s"
        header = { X-Site = "cern", x-more = ["a", "b"] }
    """
    here = PATH.parent
    expected = HostEntry(
        capabilities=frozenset({"pull", "resolve"}),
        ca=(here / "own.crt",),
        client=((here / "me.cert", here / "me.key"), (Path("/abs/both.pem"), Path("/abs/both.pem"))),
        skip_verify=True,
        headers={"x-site": "cern", "x-more": "a, b"},
        dial_timeout_s=62.5,
    )
    assert read(keys).server == expected
    entry = only(keys)
    assert (entry.headers, entry.client, entry.ca) == (expected.headers, expected.client, expected.ca)
    assert entry.dial_timeout_s == 62.5


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ('client = "a.pem"', [("a.pem", "a.pem")]),
        ('client = ["a.pem", "b.pem"]', [("a.pem", "a.pem"), ("b.pem", "b.pem")]),
        ('client = [["a.cert", "a.key"]]', [("a.cert", "a.key")]),
    ],
)
def test_client_certificates_come_in_three_forms(text: str, pairs: list[tuple[str, str]]) -> None:
    assert [(one.name, two.name) for one, two in only(text).client] == pairs


def test_no_capabilities_are_all_of_them() -> None:
    assert only("").capabilities == only("capabilities = []").capabilities == CAPABILITIES


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("server = ", 1, "not valid TOML"),
        ("server = 5", 1, "server must be the address"),
        ('\n\nserver = "ftp://x"', 3, "not the address of a server"),
        ('server = "https://user:pw@x"', 1, "not the address of a server"),
        ('host = "x"', 1, "host must be tables"),
        ('[host]\n"https://m.test" = 3', 2, "must be a table"),
        ('[host."https://m.test:0"]', 1, "not the address of a server"),
        ('[host."https://m.test:port"]', 1, "not the address of a server"),
        ('[host."https://m.test"]\n# why\ncapabilities = ["pul"]', 3, "did you mean pull"),
        ('[host."https://m.test"]\ncapabilities = 3', 2, "capabilities must be a list"),
        (
            '[host."https://m.test"]\ncapabilities = "pull"',
            2,
            'capabilities must be a list of pull, resolve, push and referrers, such as ["pull"',
        ),
        ('[host."https://m.test"]\ncapabilities = [["pull"]]', 2, "capabilities must be a list"),
        ('[host."https://m.test"]\nclient = [["a"]]', 2, "client must be a file"),
        ('[host."https://m.test"]\nheader = { x = "caf\u00e9" }', 2, "header.x must be a text"),
        ('[host."https://[::1"]', 1, "not the address of a server"),
        ('[host."https://[1.2.3]"]', 1, "not the address of a server"),
        ('[host."https://m t"]', 1, "not the address of a server"),
        ('[host."https://m.test/\\u007f"]', 1, "not the address of a server"),
        ('[host."https://m.test"]\nca = [3]', 2, "ca must be the path"),
        ('[host."https://m.test"]\nca = ""', 2, "ca must be the path"),
        ('[host."https://m.test"]\nclient = [["a", "b", "c"]]', 2, "client must be a file"),
        ('[host."https://m.test"]\nclient = 3', 2, "client must be a file"),
        ('[host."https://m.test"]\nskip_verify = "no"', 2, "skip_verify must be true or false"),
        ('[host."https://m.test"]\noverride_path = 1', 2, "override_path must be true or false"),
        ('[host."https://m.test"]\ndial_timeout = 3', 2, 'dial_timeout must be a time such as "3s"'),
        ('[host."https://m.test"]\ndial_timeout = "3 parsecs"', 2, "dial_timeout must be a time"),
        ('[host."https://m.test"]\ndial_timeout = "0s"', 2, "dial_timeout must be a time"),
        ('[host."https://m.test"]\nheader = "x"', 2, "header must be a table"),
        ('[host."https://m.test"]\n[host."https://m.test".header]\nx-key = 3', 3, "header.x-key must be a text"),
        (
            '[host."https://m.test".header]\n"x y" = "z"',
            2,
            "must be a text, or a list of texts, that a header can carry",
        ),
        ('host."https://m.test".ca = 3', 1, "ca must be the path"),
    ],
)
def test_what_is_wrong_is_named_with_file_and_line(text: str, line: int, words: str) -> None:
    with pytest.raises(HostsError) as caught:
        read(text)
    message = str(caught.value)
    assert words in message
    assert message.startswith(f"{PATH}:{line}: ")
    assert caught.value.reason is Reason.HOSTS


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("3s", 3.0),
        ("1h", 3600.0),
        (".5s", 0.5),
        ("1.5m", 90.0),
        ("2\u00b5s", 2e-6),
        ("2\u03bcs", 2e-6),
        ("9999h", 86400.0),
    ],
)
def test_times_are_written_as_go_writes_them(written: str, seconds: float) -> None:
    assert only(f'dial_timeout = "{written}"').dial_timeout_s == pytest.approx(seconds)


def test_capabilities_may_have_capitals_as_for_containerd() -> None:
    assert only('capabilities = ["Pull"]').capabilities == {"pull"}


def test_headers_that_belong_to_the_request_itself_are_left_out_with_a_warning() -> None:
    found = read('[host."https://m.test".header]\nHost = "other.test"\nx-site = " cern "\n')
    assert found.hosts[0].headers == {"x-site": "cern"}
    assert found.warnings == (f"{PATH}:2: header Host is set for each request, and not by this file",)


def test_a_password_in_an_address_is_not_shown() -> None:
    with pytest.raises(HostsError, match="docker login") as caught:
        read('[host."https://me:s3cr3t@m.test"]')
    assert "s3cr3t" not in str(caught.value)


def test_a_line_of_a_hundred_thousand_equals_signs_is_no_work() -> None:
    with pytest.raises(HostsError, match=":2: ca must be"):
        read('"' + "=" * 100_000 + '" = 1\nca = 3\n')


def test_a_secret_in_a_wrong_header_is_not_shown() -> None:
    with pytest.raises(HostsError) as caught:
        only('header = { authorization = ["s3cr3t\\n"] }')
    assert "s3cr3t" not in str(caught.value)


def test_unknown_keys_stop_no_pull_and_the_nearest_is_named() -> None:
    found = read('servr = "x"\n[host."https://m.test"]\nskip_verfy = true\nzzz = 1\n[host."https://m.test".rewrite]\n')
    keys = "capabilities, ca, client, skip_verify, header, override_path, dial_timeout"
    assert [warning.removeprefix(str(PATH)) for warning in found.warnings] == [
        ":3: skip_verfy is no key of hosts.toml, and counts for nothing; did you mean skip_verify?",
        f":4: zzz is no key of hosts.toml, and counts for nothing; there are {keys}",
        ":5: rewrite is known to k3s's own containerd only, and not followed here",
        ":1: servr is no key of hosts.toml, and counts for nothing; did you mean server?",
    ]


WORDS = st.sampled_from(
    [
        "server",
        "host",
        "ca",
        "client",
        "header",
        "=",
        "[",
        "]",
        '"https://m.test"',
        ".",
        "\n",
        "true",
        "[[",
        "{",
        "}",
        ",",
        '"',
    ]
)


@given(st.text(max_size=200) | st.lists(WORDS, max_size=30).map(" ".join))
def test_any_text_gives_a_value_or_an_error_of_ours(text: str) -> None:
    with suppress(HostsError):
        assert all(entry.base for entry in read(text).hosts)


LITERALS = (
    *('""', '"x"', '"\\u0000"', "3", "-1", "1.5", "inf", "true", "1979-05-27", "[]", '[""]', '["a", 3]', "[[]]"),
    *('[["a"]]', '[["a", "b"]]', '[["a", 3]]', "{}", "{ x = 1 }", '{ x = ["y", 2] }', '{ "" = "x" }', "[{}]", "nan"),
)
KEYS = ("server", "host", "capabilities", "ca", "client", "skip_verify", "header", "override_path", "dial_timeout", "z")


def error_of(text: str) -> str:
    """What is said of it; nothing if it is taken."""
    try:
        read(text)
    except HostsError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("table", ["", '[host."https://m.test"]\n', '[host."https://m.test".header]\n', "[host]\n"])
def test_any_value_of_any_key_is_taken_or_named_with_its_line(table: str, key: str) -> None:
    place = f"{PATH}:{table.count(chr(10)) + 1}: "
    told = [words for literal in LITERALS if (words := error_of(f"{table}{key} = {literal}\n"))]
    assert [words for words in told if not words.startswith(place)] == []
