"""The files about names that a container gets."""

import pytest

from snapshotter.errors import ConfigError
from snapshotter.image.optimize.etc_files import HOSTS, parse_list, parse_names, servers_in


def test_files_say_what_the_options_say() -> None:
    names = parse_names(["8.8.8.8", "fe80::1%eth0"], ["a.example", "b.example"], ["ndots:2"], ["db:10.0.0.1", "v6:::1"])
    assert names.resolv_conf() == (
        "nameserver 8.8.8.8\nnameserver fe80::1%eth0\nsearch a.example b.example\noptions ndots:2\n"
    )
    assert names.hosts_file("sample") == HOSTS + "127.0.1.1\tsample\n10.0.0.1\tdb\n::1\tv6\n"


def test_nothing_said_is_an_empty_file() -> None:
    assert parse_names([], [], [], []).resolv_conf() == ""


def test_servers_of_the_machine_are_those_that_a_container_can_ask() -> None:
    text = (
        "# of DHCP\nsearch a\nnameserver 127.0.0.53\nnameserver\nnameserver dns\nnameserver ::1\nnameserver 10.1.2.3\n"
    )
    assert servers_in(text + "  nameserver fe80::1%eth0 # here\noptions nameserver\n") == ("10.1.2.3", "fe80::1%eth0")
    assert servers_in("") == ()


def test_list_has_commas_between_words() -> None:
    assert parse_list(" a, b ,,c,") == ("a", "b", "c")
    assert parse_list("") == ()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ((["dns"], [], [], []), "--dns-nameservers: 'dns' is not an IP address"),
        (([], ["a b"], [], []), "--dns-search-domains: 'a b' has a blank"),
        (([], [], ["x\ny"], []), "--dns-options"),
        (([], [], [], ["db"]), "--add-hosts: 'db' is not NAME:ADDRESS"),
        (([], [], [], ["db:there"]), "--add-hosts: 'there' is not an IP address"),
        (([], [], [], [":1.2.3.4"]), "--add-hosts"),
    ],
)
def test_words_that_would_break_a_file_are_refused(words: tuple[list[str], ...], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        parse_names(*words)
