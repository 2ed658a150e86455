"""Distinct numbers and membership by sorting, against sets."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from memgraft.distinct import are_among, distinct

Ends = [0, 1, 2, 7, (1 << 63) - 1]
Numbers = st.lists(st.sampled_from(Ends) | st.integers(0, 40), max_size=60)


@given(Numbers, Numbers, st.sampled_from([np.int64, np.uint64]))
def test_distinct_and_membership_are_those_of_sets(values, known, dtype):
    found = distinct(np.array(values, dtype))
    assert (found.tolist(), found.dtype) == (sorted(set(values)), dtype)
    among = are_among(np.array(values, dtype), distinct(np.array(known, dtype)))
    assert among.tolist() == [value in set(known) for value in values]


def test_any_shape_becomes_one_row():
    assert distinct(np.array([[3, 1], [1, -1]], np.int32)).tolist() == [-1, 1, 3]
