"""The cache with a bound in bytes: order of use, sizes, pickles."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from maskgym.errors import UserError
from maskgym.segmenters.byte_cache import ByteCache


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


def test_a_bound_below_nothing_is_refused():
    with pytest.raises(UserError, match="max_bytes=-1: expected at least 0"):
        ByteCache(-1)
