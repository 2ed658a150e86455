"""Intervals and comparisons, against figures worked out by hand."""

import numpy as np
import pytest

from memgraft.errors import ArgumentError
from memgraft.experiments.stats import bootstrap_interval, compare, paired_interval


def result(arm, seed, loss, *, hit=None, windows=None):
    return {
        "arm": arm,
        "seed": seed,
        "held_out": {"overall": loss, "hit": hit, "miss": loss, "per_window": windows or [loss, loss + 1]},
    }


def test_the_t_interval_is_students():
    found = paired_interval([1.0, 2.0, 3.0], [0.5, 1.0, 1.5])
    # Differences 0.5, 1.0, 1.5: mean 1, deviation 0.5, t(2) = 4.303, half width 4.303 * 0.5 / sqrt(3).
    assert found["mean"] == pytest.approx(1.0)
    assert found["high"] - 1.0 == pytest.approx(1.2422, abs=1e-4)
    assert 1.0 - found["low"] == pytest.approx(1.2422, abs=1e-4)
    assert found["pairs"] == 3


def test_the_bootstrap_interval_agrees_with_the_normal_one_for_many_pairs():
    rng = np.random.default_rng(1)
    first = rng.normal(0.1, 1.0, 500)
    second = np.zeros(500)
    found = bootstrap_interval(list(first), list(second))
    half = 1.96 * first.std() / np.sqrt(500)
    assert found["mean"] == pytest.approx(first.mean())
    assert found["high"] - found["low"] == pytest.approx(2 * half, rel=0.1)


def test_one_pair_has_no_interval():
    for interval in (paired_interval, bootstrap_interval):
        with pytest.raises(ArgumentError, match="two or more pairs"):
            interval([1.0], [2.0])
        with pytest.raises(ArgumentError, match="two or more pairs"):
            interval([1.0, 2.0], [2.0])


def test_one_seed_compares_windows_and_says_so():
    results = [result("graft", 0, 5.0, windows=[4.0, 6.0]), result("shuffled", 0, 5.5, windows=[4.5, 6.5])]
    found = compare(results, "graft", "shuffled")
    assert found["difference"]["overall"] == pytest.approx(-0.5)
    assert found["difference"]["hit"] is None
    assert found["over"] == "held-out windows of one seed"
    assert (found["interval"]["low"], found["interval"]["high"]) == (-0.5, -0.5)


def test_several_seeds_are_paired_by_seed():
    results = [result("graft", seed, 5.0 + seed, hit=4.0) for seed in (0, 1, 2)]
    results += [result("shuffled", seed, 5.25 + seed, hit=4.5) for seed in (2, 1, 0)]
    found = compare(results, "graft", "shuffled")
    assert found["seeds"] == [0, 1, 2]
    assert found["over"] == "seeds"
    assert found["interval"] == pytest.approx({"mean": -0.25, "low": -0.25, "high": -0.25, "pairs": 3})
    assert found["difference"]["hit"] == pytest.approx(-0.5)


def test_arms_without_a_common_seed_are_not_compared():
    assert compare([result("graft", 0, 5.0), result("shuffled", 1, 5.0)], "graft", "shuffled") is None
    assert compare([], "graft", "shuffled") is None
