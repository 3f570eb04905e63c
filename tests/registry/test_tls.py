"""Which side of TLS is shown to whom, and what counts as trusted."""

import socket
import ssl
from dataclasses import replace
from pathlib import Path

import pytest

from snapshotter.errors import HostsError
from snapshotter.registry.tls import Tls, stamp_of
from tests.doubles.registry import LoopbackRegistry
from tests.registry.authorities import Authority

FULL = Tls((Path("/ca"),), ((Path("/me.cert"), Path("/me.key")),), skip_verify=True)


def test_who_we_are_is_shown_to_the_server_alone_and_a_password_goes_to_verified_hosts_only() -> None:
    assert FULL.elsewhere() == replace(FULL, client=())
    assert FULL.for_credentials(home=True) == FULL
    assert FULL.for_credentials(home=False) == Tls((Path("/ca"),))


def test_where_it_is_told_makes_no_other_connections() -> None:
    told = replace(FULL, told_in=Path("/x/hosts.toml"))
    assert (told, hash(told)) == (FULL, hash(FULL))
    assert (told.file, FULL.file) == ("/x/hosts.toml", "its hosts.toml")


def test_an_authority_is_added_to_those_of_the_system(tmp_path: Path) -> None:
    usual = Tls().context().cert_store_stats()["x509_ca"]
    context = Tls((Authority().write_ca(tmp_path / "ca.crt"),)).context()
    assert context.cert_store_stats()["x509_ca"] == usual + 1
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)


def test_a_check_reads_the_files_as_the_context_does(tmp_path: Path) -> None:
    tls = Tls((tmp_path / "absent.crt",))
    for read in (tls.check, tls.context):
        with pytest.raises(HostsError, match=r"absent\.crt"):
            read()
    Tls().check()


def test_an_intermediate_authority_may_be_named_alone_as_for_containerd(tmp_path: Path) -> None:
    root = Authority()
    middle = root.subordinate()
    with LoopbackRegistry(tls=middle.server()) as server:
        for ca in (middle, root):
            context = Tls((ca.write_ca(tmp_path / "ca.crt"),)).context()
            with (
                socket.create_connection(("127.0.0.1", server.port), timeout=10) as plain,
                context.wrap_socket(plain, server_hostname="127.0.0.1") as encrypted,
            ):
                assert encrypted.version() is not None


def test_a_stamp_tells_a_renewed_file_from_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "x"
    absent = stamp_of((path,))
    path.write_text("1")
    first = stamp_of((path,))
    other = tmp_path / "y"
    other.write_text("2")
    other.rename(path)
    assert len({absent, first, stamp_of((path,))}) == 3
