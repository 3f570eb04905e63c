import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapshotter.config import CacheConfig
from snapshotter.store.eviction import bytes_to_free, has_room, room_for

SIZES = st.integers(min_value=0, max_value=1 << 40)


@given(SIZES, SIZES)
def test_without_limits_nothing_leaves(used: int, free: int) -> None:
    limits = CacheConfig(quota=0, min_free=0)
    assert bytes_to_free(used, free, limits) == 0
    assert room_for(free, used, free, limits) is None


@given(SIZES, SIZES, SIZES, SIZES)
def test_eviction_reaches_the_low_water_mark_and_never_asks_for_more_than_there_is(
    used: int, free: int, quota: int, floor: int
) -> None:
    limits = CacheConfig(quota=quota, min_free=floor)
    surplus = bytes_to_free(used, free, limits)
    assert 0 <= surplus <= used
    if surplus < used:
        assert bytes_to_free(used - surplus, free + surplus, limits) == 0
        if surplus and quota:
            assert used - surplus <= quota * limits.high_water


def test_high_water_starts_and_low_water_ends_a_round() -> None:
    limits = CacheConfig(quota=1000, high_water=0.95, low_water=0.85, min_free=0)
    assert bytes_to_free(950, 10**9, limits) == 0
    assert bytes_to_free(951, 10**9, limits) == 101


def test_floor_is_restored_with_a_margin() -> None:
    limits = CacheConfig(quota=0, high_water=0.95, low_water=0.85, min_free=1000)
    assert bytes_to_free(10**6, 1000, limits) == 0
    assert 190 <= bytes_to_free(10**6, 900, limits) <= 200


def test_room_names_the_limit_that_is_in_the_way() -> None:
    limits = CacheConfig(quota=1000, min_free=500)
    assert room_for(100, 900, 600, limits) is None
    assert "cache.quota" in (room_for(101, 900, 10**6, limits) or "")
    assert "cache.min_free" in (room_for(101, 0, 600, limits) or "")


@pytest.mark.parametrize(
    ("size", "used", "free", "room"),
    [(10, 60, 1000, True), (30, 60, 1000, False), (10, 0, 105, False), (10, 0, 130, True)],
)
def test_filling_stops_at_the_mark_to_which_an_eviction_would_go(size: int, used: int, free: int, room: bool) -> None:
    limits = CacheConfig(quota=100, high_water=0.9, low_water=0.8, min_free=100)
    assert has_room(size, used, free, limits) is room
