import math
import string
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapshotter.config import (
    CacheConfig,
    Config,
    FetchConfig,
    LazyConfig,
    LogConfig,
    MetricsConfig,
    RegistryConfig,
    dump,
    load,
    override,
    parse,
)
from snapshotter.config_values import parse_size, show_size
from snapshotter.errors import ConfigError, SnapshotterError

SIZES = st.integers(0, (1 << 63) - 1)
SECONDS = st.floats(0.1, 86400)
NAMES = st.text(string.ascii_letters + string.digits + "-_. é\x7f'", min_size=1, max_size=12).filter(
    lambda name: name not in (".", "..")
)
# What a reference may hold and what TOML must escape; a pattern without its star could match nothing, nor with a scheme.
PATTERNS = st.lists(
    st.text(st.characters(codec="utf-8"), max_size=20).filter(lambda text: "://" not in text).map("{}*".format),
    max_size=4,
).map(tuple)
HOSTS = st.lists(st.from_regex(r"[a-z0-9.-]{1,20}(:[0-9]{1,5})?", fullmatch=True), max_size=4).map(tuple)


@st.composite
def configs(draw: st.DrawFn) -> Config:
    low, high = sorted(draw(st.tuples(st.floats(0.01, 0.5), st.floats(0.51, 1))))
    return Config(
        root=Path("/") / draw(NAMES) / "r",
        run_dir=Path("/x") / draw(st.text(string.ascii_lowercase, min_size=1, max_size=17)),
        address=draw(st.none() | NAMES.map(lambda name: Path("/s") / name)),
        plane=draw(st.sampled_from(["auto", "fuse", "erofs"])),
        lazy=LazyConfig(draw(PATTERNS), draw(PATTERNS), draw(st.booleans()), draw(SECONDS), draw(st.integers(1, 256))),
        fetch=FetchConfig(
            on_outage=draw(st.sampled_from(["error", "wait", "wait:1s", "wait:15m"])),
            prefetch=draw(st.booleans()),
            prefetch_size=draw(SIZES),
            background_bandwidth=draw(SIZES),
            background_delay_s=draw(st.floats(0, 86400)),
            connections_per_host=draw(st.integers(1, 256)),
        ),
        cache=CacheConfig(draw(st.sampled_from(["node", "registry", "image"])), draw(SIZES), high, low, draw(SIZES)),
        registry=RegistryConfig(
            docker_config=draw(st.none() | NAMES.map(lambda n: Path("/c") / n)),
            config_path=tuple(draw(st.lists(NAMES.map(lambda n: Path("/d") / n), max_size=3))),
            credential_helper_timeout_s=draw(SECONDS),
            plain_http=draw(HOSTS),
        ),
        metrics=MetricsConfig(draw(st.sampled_from(["", "127.0.0.1:9717", "[::1]:1", ":65535", "node.example:80"]))),
        log=LogConfig(draw(st.sampled_from(["debug", "error"])), draw(st.sampled_from(["text", "json"]))),
    )


@given(configs())
def test_what_dump_writes_parse_reads_back(config: Config) -> None:
    assert parse(dump(config), "dumped") == config


def test_dumped_defaults_are_the_defaults_and_explain_every_key() -> None:
    text = dump(Config())
    assert parse(text, "default") == Config()
    tables = [Config(), *(getattr(Config(), key.name) for key in fields(Config) if is_dataclass(key.default))]
    for table in tables:
        for key in fields(table):
            if not is_dataclass(getattr(table, key.name)):
                assert f"# {key.metadata['doc']}\n" in text
                assert key.metadata["doc"].endswith(".")
    assert max(map(len, text.splitlines())) <= 120


@given(st.text(max_size=200))
def test_any_text_is_a_config_or_a_config_error(text: str) -> None:
    try:
        parse(text, "fuzz")
    except ConfigError as error:
        assert str(error).startswith("fuzz: ")  # noqa: PT017 (either outcome is right)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[cache]\nqouta = 1", ["f.toml: [cache]", '"qouta"', "did you mean quota?"]),
        ("quota = 1", ["f.toml:", "belongs below [cache]"]),
        ("[cahce]\nquota = 1", ["did you mean cache?"]),
        ("[zzz]", ["no such key or table", "fetch", "run_dir"]),
        ("cache = 1", ["cache is a table", "[cache]"]),
        ("[cache]\nquota = -1", ["[cache] quota must be a size", "it is -1"]),
        ('[cache]\nquota = "5 parsecs"', ["must be a size", '"5 parsecs"']),
        ('[cache]\nquota = "1.5"', ["must be a size"]),
        ("[cache]\nquota = true", ["must be a size"]),
        ("[cache]\nhigh_water = nan", ["high_water must be a number"]),
        ("[cache]\nhigh_water = 2", ["between 0.01 and 1"]),
        ("[cache]\nlow_water = 0.99", ["must be below high_water"]),
        ('[cache]\nshare = "everyone"', ['one of "node", "registry", "image"']),
        ("[fetch]\nprefetch = 1", ["true or false"]),
        ("[fetch]\nconnections_per_host = 0", ["between 1 and 256"]),
        ("[fetch]\nconnections_per_host = 2.0", ["a whole number"]),
        ('[fetch]\non_outage = "wait:0s"', ['"wait:60s"']),
        ('[fetch]\non_outage = "wait:5h"', ['"wait:60s"']),
        ('[lazy]\nallow = "docker.io/*"', ["a list of non-empty texts"]),
        ("[lazy]\nallow = [1]", ["a list of non-empty texts"]),
        ('[lazy]\ndeny = ["evil.org"]', ["deny must be", "with the tag or a *", 'which "evil.org" is not']),
        ('[lazy]\ndeny = ["evil.org:5000/team/app"]', ["with the tag or a *"]),
        ('[lazy]\nallow = ["https://good.org/*"]', ["without https://"]),
        ('[registry]\nplain_http = ["http://near.org:5000"]', ["plain_http must be", "without scheme"]),
        ('root = "var/lib"', ["an absolute path"]),
        ('root = "/a,b"', ["root", "must not contain"]),
        ('run_dir = "/a:b"', ["run_dir", "must not contain"]),
        ('run_dir = "/a/../b"', ["run_dir", "must not contain"]),
        ('root = "/"', ["root of the file system"]),
        ('root = "/run/estargz"', ["two directories"]),
        ('run_dir = "/run/estargz/instance-two"', ["25 bytes", "at most 20"]),
        (f'address = "/{"a" * 120}"', ["121 bytes", "at most 107"]),
        ("root = ", ["not valid TOML"]),
        ("x = " + "9" * 5000, ["not valid TOML"]),
        ("x = " + "[" * 100000, ["not valid TOML"]),
    ],
)
def test_a_mistake_names_the_file_the_table_the_key_and_the_remedy(text: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, "f.toml")
    for word in ["f.toml: ", *words]:
        assert word in str(caught.value)
    assert isinstance(caught.value, SnapshotterError)


def test_run_directory_of_exactly_twenty_bytes_is_taken_and_bytes_count_not_letters() -> None:
    assert parse(f'run_dir = "/{"a" * 19}"', "f").run_dir == Path("/" + "a" * 19)
    with pytest.raises(ConfigError, match="21 bytes"):
        parse(f'run_dir = "/{"é" * 10}"', "f")


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("4096", 4096), ("512MiB", 512 << 20), ("1.5 GB", 1_500_000_000), ("2tib", 2 << 40), ("7B", 7)],
)
def test_sizes_are_read_as_people_write_them(text: str, size: int) -> None:
    assert parse_size(text) == size


@given(SIZES)
def test_a_shown_size_is_read_back_exactly(size: int) -> None:
    assert parse_size(show_size(size)) == size


@pytest.mark.parametrize("text", ["", "-1", "MiB", "1.5", "9EiB", "99999999TiB", "١KiB", "1 2 MiB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("on_outage", "seconds"), [("error", 0), ("wait", math.inf), ("wait:60s", 60), ("wait:5m", 300)]
)
def test_outage_rule_is_a_number_of_seconds(on_outage: str, seconds: float) -> None:
    assert FetchConfig(on_outage=on_outage).outage_wait_s == seconds


def test_deny_outranks_allow_and_patterns_cover_the_whole_reference() -> None:
    lazy = LazyConfig(allow=("docker.io/*", "ghcr.io/cms/*:v1"), deny=("docker.io/library/evil*",))
    assert lazy.admits("docker.io/library/python:3.11")
    assert lazy.admits("ghcr.io/cms/deep/name:v1")
    assert not lazy.admits("docker.io/library/evil:1")
    assert not lazy.admits("ghcr.io/cms/x:v2")
    assert not lazy.admits("quay.io/x/y:1")
    assert not LazyConfig(allow=()).admits("docker.io/library/python:3.11")


def test_whole_references_and_hosts_of_every_kind_are_taken() -> None:
    exact = ["evil.org:5000/app:1", "evil.org/a/b@sha256:00", "evil*", "[a-c].org/?:1"]
    hosts = ["near.org", "near.org:5000", "10.0.0.1:80", "[fd00::1]:5000"]
    config = parse(f"[lazy]\ndeny = {exact}\n[registry]\nplain_http = {hosts}", "x")
    assert config.lazy.deny == tuple(exact)
    assert config.registry.plain_http == tuple(hosts)


def test_command_line_is_laid_over_the_file_and_checked_like_it() -> None:
    config = override(parse('plane = "fuse"\nroot = "/a"', "f"), root=Path("/b"), run_dir=None, plane=None)
    assert (config.root, config.plane, config.run_dir) == (Path("/b"), "fuse", Config().run_dir)
    assert override(config, table="log", level="debug", format=None).log == LogConfig(level="debug")
    with pytest.raises(ConfigError, match=r"--log-level: .log. level must be one of"):
        override(config, table="log", level="loud")
    with pytest.raises(ConfigError, match="--run-dir: run_dir must be an absolute path"):
        override(Config(), run_dir=Path("relative"))
    with pytest.raises(ConfigError, match=r"with the options given: run_dir .* at most 20"):
        override(Config(), run_dir=Path("/a-very-long-directory-name"))


def test_socket_lies_in_the_run_directory_unless_named() -> None:
    assert Config().socket == Path("/run/estargz/snapshotter.sock")
    assert replace(Config(), address=Path("/s")).socket == Path("/s")


def test_missing_default_file_means_defaults_and_missing_named_file_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("snapshotter.config.DEFAULT_PATH", tmp_path / "absent.toml")
    assert load() == Config()
    with pytest.raises(ConfigError, match="no such configuration file"):
        load(tmp_path / "absent.toml")


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "latin.toml").write_bytes(b'root = "/\xe9"')
    with pytest.raises(ConfigError, match=r"latin\.toml: not UTF-8 at byte 9"):
        load(tmp_path / "latin.toml")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load(tmp_path)
