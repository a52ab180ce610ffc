"""The cache with a bound in bytes: order of use, sizes, pickles."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from maskgym.errors import UserError
from maskgym.segmenters.byte_cache import ByteCache, ScanCache


def test_the_least_used_go_first_and_nothing_too_large_is_kept():
    store = ByteCache(10)
    for key, size in (("a", 4), ("b", 4), ("a", 4), ("c", 4)):
        store.keep(key, np.zeros(size, np.uint8))
    assert [store.get(key) is None for key in "abc"] == [False, True, False]
    store.keep("d", np.zeros(11, np.uint8))
    assert store.get("d") is None and store.get("a") is not None and store.bytes == 8


def test_values_stay_out_of_pickles():
    store = ByteCache(10)
    store.keep("a", np.zeros(4, np.uint8))
    again = pickle.loads(pickle.dumps(store))
    assert (again.get("a"), again.bytes, again.max_bytes) == (None, 0, 10)
    assert store.get("a") is not None


def share_of_hits(cache, keys, measured):
    """Look up keys as users of a cache do, values of one byte each; the share of hits among the last lookups."""
    hits = []
    for key in keys:
        value = cache.get(key)
        hits.append(value is not None)
        cache.keep(key, np.zeros(1, np.uint8) if value is None else value)
    return float(np.mean(hits[-measured:]))


def epochs(count, size, shuffled=False, name="photo"):
    """List the keys of a number of epochs over a set."""
    generator = np.random.default_rng(0)
    orders = (generator.permutation(size) if shuffled else range(size) for _ in range(count))
    return [(name, int(key)) for order in orders for key in order]


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize(("size", "room"), [(400, 300), (400, 100), (1000, 10)])
def test_a_set_larger_than_the_cache_hits_nine_tenths_of_what_fits(size, room, shuffled):
    keys = epochs(12, size, shuffled)
    found = share_of_hits(ScanCache(room), keys, 10 * size)
    assert 0.9 * room / size <= found <= room / size + 0.03
    if not shuffled:
        assert share_of_hits(ByteCache(room), keys, 10 * size) == 0  # why order of use is not enough
    # Lookups in a row, such as of an answer at a time, change nothing and hit themselves.
    thrice = [key for key in keys for _ in range(3)]
    assert share_of_hits(ScanCache(room), thrice, 30 * size) >= (2 + 0.9 * room / size) / 3


def test_a_set_that_fits_hits_always_and_photos_that_return_often_hit_as_with_order_of_use():
    assert share_of_hits(ScanCache(100), epochs(3, 100, shuffled=True), 200) == 1
    popular = (np.random.default_rng(0).zipf(1.2, 8000) % 2000).tolist()
    assert share_of_hits(ScanCache(200), popular, 6000) > share_of_hits(ByteCache(200), popular, 6000) > 0.5


def test_another_set_takes_over_in_its_third_epoch():
    seen = epochs(9, 400) + epochs(4, 400, name="other")
    assert share_of_hits(ScanCache(100), seen, 400) == pytest.approx(0.225)
    assert share_of_hits(ScanCache(100), seen[:-800], 400) == 0


def test_a_scan_cache_is_bound_by_bytes_and_empty_in_pickles():
    store = ScanCache(20)
    for key in range(30):
        store.get(key)
        store.keep(key, np.zeros(3, np.uint8))
        assert store.bytes <= 20
    store.keep("large", np.zeros(21, np.uint8))
    assert store.bytes == 18 and store.get("large") is None
    again = pickle.loads(pickle.dumps(store))
    assert (again.bytes, again.get(0)) == (0, None)
    with pytest.raises(UserError, match="max_bytes=-1"):
        ScanCache(-1)


def test_a_bound_below_nothing_is_refused():
    with pytest.raises(UserError, match="max_bytes=-1: expected at least 0"):
        ByteCache(-1)
