import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapshotter.errors import ConfigError, StoreError
from snapshotter.store.domains import check_domain, sharing_domain

NAMES = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=300)


def test_node_is_one_domain() -> None:
    assert sharing_domain("node", "a.example", "x") == sharing_domain("node", "b.example:5000", "y") == "node"


@given(NAMES, NAMES, st.sampled_from(["registry", "image"]))
def test_every_name_gives_a_valid_domain(host: str, repository: str, share: str) -> None:
    check_domain(sharing_domain(share, host, repository))


@given(st.sampled_from(["registry", "image"]), st.tuples(NAMES, NAMES), st.tuples(NAMES, NAMES))
def test_domains_are_equal_only_for_equal_names(share: str, one: tuple[str, str], two: tuple[str, str]) -> None:
    same = one[0] == two[0] if share == "registry" else "/".join(one) == "/".join(two)
    assert (sharing_domain(share, *one) == sharing_domain(share, *two)) == same


def test_names_that_read_alike_differ() -> None:
    domains = {sharing_domain("registry", host, "x") for host in ("a.b", "a-b", "A.b", "a.b:5000", "a.b-5000", "node")}
    assert len(domains) == 6
    assert sharing_domain("registry", "a/b", "c") != sharing_domain("image", "a", "b")


def test_unknown_share_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match=r"cache\.share"):
        sharing_domain("cluster", "a", "b")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "A", "ä", "a\n", "x" * 65])
def test_bad_domain_is_a_store_error(name: str) -> None:
    with pytest.raises(StoreError):
        check_domain(name)
