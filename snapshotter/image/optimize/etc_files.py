"""The files about names that a container gets from outside: etc/resolv.conf and etc/hosts. Pure."""

import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass

from snapshotter.errors import ConfigError

HOSTS = """\
127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
fe00::0\tip6-localnet
ff00::0\tip6-mcastprefix
ff02::1\tip6-allnodes
ff02::2\tip6-allrouters
"""
"""What other runtimes put there, too."""


@dataclass(frozen=True, slots=True)
class Names:
    """What a container is told about names; `hosts` are pairs of a name and an address."""

    servers: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    hosts: tuple[tuple[str, str], ...] = ()

    def resolv_conf(self) -> str:
        """The content of etc/resolv.conf. Source: resolv.conf(5)."""
        lines = [f"nameserver {server}" for server in self.servers]
        lines += [
            f"{key} {' '.join(words)}" for key, words in (("search", self.search), ("options", self.options)) if words
        ]
        return "".join(f"{line}\n" for line in lines)

    def hosts_file(self, own_name: str) -> str:
        """The content of etc/hosts. Source: hosts(5)."""
        return HOSTS + f"127.0.1.1\t{own_name}\n" + "".join(f"{address}\t{name}\n" for name, address in self.hosts)


def servers_in(resolv_conf: str) -> tuple[str, ...]:
    """The name servers of a machine's etc/resolv.conf that a container in a network of its own can ask as well: not those on
    loopback, which is the container's own there. Source: resolv.conf(5).
    """
    found: list[str] = []
    for line in resolv_conf.splitlines():
        words = line.split()
        if len(words) < 2 or words[0] != "nameserver":
            continue
        try:
            loopback = ipaddress.ip_address(words[1].partition("%")[0]).is_loopback
        except ValueError:
            continue
        if not loopback:
            found.append(words[1])
    return tuple(found)


def parse_list(text: str) -> tuple[str, ...]:
    """The words of a list with commas."""
    return tuple(filter(None, (word.strip() for word in text.split(","))))


def parse_names(servers: Sequence[str], search: Sequence[str], options: Sequence[str], hosts: Sequence[str]) -> Names:
    """What options say about names; `hosts` are words of the form NAME:ADDRESS.

    Raises:
        ConfigError: an address is none, or a word has blanks in it.
    """
    for server in servers:
        _checked_address("--dns-nameservers", server.partition("%")[0])
    for option, words in (("--dns-search-domains", search), ("--dns-options", options), ("--add-hosts", hosts)):
        for word in words:
            if any(sign.isspace() for sign in word):
                raise ConfigError(f"{option}: {word!r} has a blank in it")
    pairs = []
    for word in hosts:
        name, colon, address = word.partition(":")
        if not name or not colon:
            raise ConfigError(f"--add-hosts: {word!r} is not NAME:ADDRESS")
        _checked_address("--add-hosts", address)
        pairs.append((name, address))
    return Names(tuple(servers), tuple(search), tuple(options), tuple(pairs))


def own_hostname() -> str:
    """This machine's name, for a container in its network."""
    return os.uname().nodename


def _checked_address(option: str, text: str) -> None:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        raise ConfigError(f"{option}: {text!r} is not an IP address") from None
