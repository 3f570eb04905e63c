"""hosts.toml: the documented examples with changed characters, and files of many odd values; read as a file from disk, too."""

import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from snapshotter.errors import HostsError
from snapshotter.registry.certs_d import CertsDirectories
from snapshotter.registry.hosts_toml import HostsFile, parse_hosts
from tests.fuzz.mutations import Corpus, mutated
from tests.fuzz.rounds import bounded, fuzzed

PATH = Path("/etc/containerd/certs.d/registry.test/hosts.toml")

CORPUS = Corpus(
    [
        b"""server = "https://registry.test"

[host."https://mirror.test:5000/v2/prefix"]
  capabilities = ["pull", "resolve"]
  ca = ["/etc/ca.crt", "other.crt"]
  client = [["client.cert", "client.key"]]
  skip_verify = true
  override_path = true
  dial_timeout = "1m30s"
  [host."https://mirror.test:5000/v2/prefix".header]
    x-token = ["a", "b"]

[host."http://[::1]:5000"]
""",
        b'ca = "one.pem"\nclient = "both.pem"\nheader = { Authorization = "Basic c2VjcmV0" }\n',
        b'server = "registry.test"\n[host."a.test"]\n[host."b.test"]\ncapabilities = []\nrewrite = {}\n[host."b.test".header]\nx = "y"\n',
    ]
)
HOSTS = ("registry.test", "registry.test:5000", "[::1]:5000", "REGISTRY.TEST", "x" * 240)
"""Registries as references can name them."""

ODD = st.sampled_from((
    b'"\\u0000"', b'""', b"[", b"]]", b'"""', b"'''", b"{", b"nan", b"1979-05-27T07:32:00Z", b"0x" + b"f" * 5000, b"9" * 5000,
    b"[" * 900, b"\xff", b"\xed\xa0\x80", b"\r", b"http://u:p@h/", b"https://[fe80::1%25eth0]", b"://", b"h:99999",
    b'"' + b"1" * 90 + b'h"', b"=" * 500, b"a." * 400 + b"a=1",
))  # fmt: skip


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """A changed file, perhaps with something odd put in place of a word."""
    data = draw(mutated(CORPUS))
    if draw(st.booleans()):
        words = data.split(b" ")
        words[draw(st.integers(0, len(words) - 1))] = draw(ODD)
        data = b" ".join(words)
    return data


@fuzzed(50)
@given(files())
def test_changed_text_gives_servers_or_an_error_that_names_the_file(data: bytes) -> None:
    with bounded(32 << 20):
        said = ""
        read: HostsFile | None
        try:
            read = parse_hosts(data.decode("utf-8", "replace"), PATH)
        except HostsError as error:
            read, said = None, str(error)
    if read is None:
        assert str(PATH) in said
        return
    for entry in (*read.hosts, read.server):
        assert entry.base in {"", entry.base.rstrip("/")}
        assert not entry.base or entry.base.partition("://")[0] in {"http", "https"}
        assert "@" not in entry.base
        assert all(value.isascii() and "\n" not in value for value in entry.headers.values())
        assert entry.dial_timeout_s is None or 0 < entry.dial_timeout_s <= 86400


@fuzzed(20)
@given(files(), st.sampled_from(HOSTS))
def test_changed_file_on_disk_gives_endpoints_or_an_error_of_ours(data: bytes, host: str) -> None:
    with tempfile.TemporaryDirectory(prefix="fuzz-") as top:
        for name in ("registry.test", "registry.test_5000_", "_default"):
            Path(top, name).mkdir()
            Path(top, name, "hosts.toml").write_bytes(data)
        directories = CertsDirectories([Path(top)])
        for _ in range(2):
            try:
                endpoints = directories.endpoints(host)
            except HostsError:
                continue
            assert endpoints
