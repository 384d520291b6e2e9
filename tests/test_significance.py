"""Intervals and nulls against closed forms and simulated data."""

from __future__ import annotations

import math

import numpy as np
import pytest

from reasoning_features.significance import (
    Interval,
    bootstrap_difference,
    bootstrap_mean,
    bootstrap_ratio,
    bootstrap_statistic,
    bootstrap_weights,
    chance_jaccard,
    independent_difference,
    jaccard,
    null_rank,
    paired_difference,
)


def test_weights_are_resamples():
    weights = bootstrap_weights(7, 50, seed=0)
    assert weights.shape == (50, 7)
    assert (weights.sum(axis=1) == 7).all() and (weights >= 0).all()
    np.testing.assert_array_equal(weights, bootstrap_weights(7, 50, seed=0))


def test_standard_error_of_the_mean():
    # 400 values of variance 1: the standard error is 1/20, the 95% interval ± 0.098
    values = np.random.default_rng(0).normal(size=400)
    interval = bootstrap_mean((values - values.mean()) / values.std(), n_resamples=4000)
    assert interval.estimate == pytest.approx(0, abs=1e-12) and interval.n == 400
    assert interval.high - interval.low == pytest.approx(2 * 1.96 / 20, rel=0.06)


def test_coverage_is_nominal():
    # 400 experiments of 60 skewed values (exponential, mean 1): 95% intervals should hold the mean in
    # 95% of them; 3 standard errors of that share are 3·√(.95·.05/400) = .033, skewness costs a little more
    rng = np.random.default_rng(1)
    held = 0
    for seed in range(400):
        interval = bootstrap_mean(rng.exponential(size=60), n_resamples=400, seed=seed)
        held += interval.low <= 1 <= interval.high
    assert 0.90 <= held / 400 <= 0.985


def test_pairing_removes_shared_variance():
    # b = a + 1 exactly: the difference is 1 with no spread, however much a varies
    a = np.random.default_rng(2).normal(scale=100, size=50)
    interval = paired_difference(a + 1, a)
    assert (interval.estimate, interval.low, interval.high) == pytest.approx((1, 1, 1))
    with pytest.raises(ValueError, match="equal lengths"):
        paired_difference([1, 2], [1])


def test_ratio():
    # every unit has the ratio 2, whatever its size
    interval = bootstrap_ratio([2, 4, 20], [1, 2, 10])
    assert (interval.estimate, interval.low, interval.high) == pytest.approx((2, 2, 2))


def test_statistic_of_weights_is_the_mean():
    values = np.arange(20.0)
    ours = bootstrap_statistic(lambda w: float(w @ values / w.sum()), 20, n_resamples=500, seed=3)
    plain = bootstrap_mean(values, n_resamples=500, seed=3)
    assert (ours.low, ours.high) == pytest.approx((plain.low, plain.high))
    assert str(plain).startswith("9.5 [")


def test_null_rank():
    # of 0 … 9, one value (9) is at least 9 and one equals it: p = 2/11, percentile .9 + .1/2
    rank = null_rank(9, np.arange(10))
    assert rank.p_value == pytest.approx(2 / 11) and rank.percentile == pytest.approx(0.95)
    # mean 4.5, standard deviation √(82.5/9) = 3.02765
    assert rank.z == pytest.approx(4.5 / 3.02765, rel=1e-5) and rank.n == 10
    assert null_rank(100, np.arange(99)).p_value == pytest.approx(0.01)
    assert math.isnan(null_rank(1, [2.0, 2.0]).z)
    with pytest.raises(ValueError, match="at least one"):
        null_rank(1, [])


def test_p_values_are_valid_under_the_null():
    # value and null from one distribution: P(p ≤ .1) ≤ .1 (+ 3 standard errors of 1,000 trials = .028)
    rng = np.random.default_rng(4)
    small = sum(null_rank(x[0], x[1:]).p_value <= 0.1 for x in rng.normal(size=(1000, 40)))
    assert small / 1000 <= 0.1 + 0.028


def test_jaccard():
    assert jaccard([1, 2, 3], [2, 3, 4]) == 0.5
    assert jaccard(np.array([5]), [5]) == 1 and jaccard([1], [2]) == 0 and jaccard([], []) == 1


def test_chance_jaccard():
    # two pairs out of three: they share one or two. P(2) = 1/3, J = 1; P(1) = 2/3, J = 1/3: 5/9
    assert chance_jaccard(3, 2, 2) == pytest.approx(5 / 9)
    assert chance_jaccard(10, 10, 10) == pytest.approx(1)


def test_difference_of_two_samples():
    # Means 2 and 1; each sample is resampled on its own, and what does not vary adds no width.
    gap = bootstrap_difference([1.0, 3.0] * 50, [1.0] * 10)
    assert gap.estimate == pytest.approx(1.0)
    assert gap.n == 110
    assert gap.low == pytest.approx(1 - 1.96 * 0.1, abs=0.03)
    assert gap.high == pytest.approx(1 + 1.96 * 0.1, abs=0.03)


def test_a_difference_of_independent_estimates_adds_their_distances_in_squares() -> None:
    one, other = Interval(0.5, 0.2, 0.6, 100), Interval(0.1, 0.06, 0.5, 40)
    found = independent_difference(one, other)
    assert found.estimate == pytest.approx(0.4) and found.n == 40
    assert found.low == pytest.approx(0.4 - np.hypot(0.3, 0.4))
    assert found.high == pytest.approx(0.4 + np.hypot(0.1, 0.04))
    exact = Interval(0.1, 0.1, 0.1, 40)
    assert independent_difference(one, exact).low == pytest.approx(0.1)
