"""Intervals, nulls and paired tests: closed forms, worked examples, other implementations, simulated data."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from reasoning_features import statistics


def test_intervals_of_the_mean():
    # 400 values of variance 1: the standard error is 1/20, the 95% interval ± 0.098
    values = np.random.default_rng(0).normal(size=400)
    interval = statistics.bootstrap_mean((values - values.mean()) / values.std())
    assert interval.estimate == pytest.approx(0, abs=1e-12) and interval.n == 400
    assert interval.high - interval.low == pytest.approx(2 * 1.96 / 20, rel=0.06)
    # of few values it is Student's, of two degrees of freedom: t = 4.3027 at 95%, 2.92 at 90%
    found = statistics.t_interval([1, 2, 3])
    assert (found.estimate, found.high) == pytest.approx((2, 2 + 4.3027 / 3**0.5), abs=1e-4) and found.n == 3
    assert statistics.t_interval([1, 2, 3], 0.9).low == pytest.approx(2 - 2.92 / 3**0.5, abs=1e-4)
    assert math.isnan(statistics.t_interval([1]).low)


def test_pairs_and_ratios_are_resampled_together():
    # b = a + 1 exactly: the difference is 1 with no spread, however much a varies
    a = np.random.default_rng(2).normal(scale=100, size=50)
    interval = statistics.paired_difference(a + 1, a)
    assert (interval.estimate, interval.low, interval.high) == pytest.approx((1, 1, 1))
    with pytest.raises(ValueError, match="equal lengths"):
        statistics.paired_difference([1, 2], [1])
    # every unit has the ratio 2, whatever its size
    interval = statistics.bootstrap_ratio([2, 4, 20], [1, 2, 10])
    assert (interval.estimate, interval.low, interval.high) == pytest.approx((2, 2, 2))


def test_null_rank():
    # of 0 … 9, one value (9) is at least 9 and one equals it: p = 2/11, percentile .9 + .1/2
    rank = statistics.null_rank(9, np.arange(10))
    assert rank.p_value == pytest.approx(2 / 11) and rank.percentile == pytest.approx(0.95)
    # mean 4.5, standard deviation √(82.5/9) = 3.02765
    assert rank.z == pytest.approx(4.5 / 3.02765, rel=1e-5) and rank.n == 10
    assert statistics.null_rank(100, np.arange(99)).p_value == pytest.approx(0.01)
    assert math.isnan(statistics.null_rank(1, [2.0, 2.0]).z)
    # by chance two pairs out of three share one or two: P(2) = 1/3, J = 1; P(1) = 2/3, J = 1/3: 5/9
    assert statistics.chance_jaccard(3, 2, 2) == pytest.approx(5 / 9)
    assert statistics.chance_jaccard(10, 10, 10) == pytest.approx(1)


def test_holms_worked_example():
    # Wikipedia's, at 5%: 0.005 ≤ 0.05/4 and 0.01 ≤ 0.05/3 are rejected, 0.03 > 0.05/2 stops
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.5, 0.02, 0.02]) == pytest.approx([0.5, 0.06, 0.06])
    with pytest.raises(ValueError, match="within 0 to 1"):
        statistics.holm([0.1, np.nan])


@pytest.mark.parametrize("gained, lost", [(9, 1), (0, 7), (0, 0)])
def test_mcnemar_is_the_binomial_test_of_what_differs(gained, lost):
    a = np.array([1] * gained + [0] * lost + [1, 0] * 5)
    b = np.array([0] * gained + [1] * lost + [1, 0] * 5)
    expected = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert statistics.mcnemar(a, b) == pytest.approx(expected) == statistics.mcnemar(b, a)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [  # what is sure may be too small to matter; the margin itself is not within it
        (-0.01, 0.012, "no effect"), (0.002, 0.012, "no effect"), (-0.01, 0.06, "undecided"),
        (-0.015, 0.01, "undecided"), (0.01, 0.03, "effect"), (-0.4, -0.1, "effect"),
    ],
)  # fmt: skip
def test_nothing_is_said_to_be_nothing_without_evidence(low, high, expected):
    assert statistics.finding(statistics.Interval((low + high) / 2, low, high, 100)) == expected


def test_means_by_group_keep_the_groups_order():
    frame = pd.DataFrame({"a": ["y", "y", "x"], "b": [1, 1, 2], "right": [True, False, True]})
    table = statistics.means_by(frame, ["a", "b"], "right")
    assert table[["a", "b", "right", "n"]].values.tolist() == [["y", 1, 0.5, 2], ["x", 2, 1.0, 1]]
    assert table["low"].tolist() == [0, 1] and table["high"].tolist() == [1, 1]


def test_equivalence_is_said_at_its_nominal_rate():
    # paired differences whose mean lies at the margin: "no effect" is wrong, and may come in 5% of studies
    rng, said = np.random.default_rng(0), 0
    for seed in range(400):
        differences = rng.choice([-1.0, 0.0, 1.0], size=4000, p=[0.0425, 0.9, 0.0575])
        interval = statistics.paired_difference(differences, np.zeros(4000), seed=seed % 4, level=0.9)
        said += statistics.finding(interval, margin=0.015) == "no effect"
    assert 0.03 < said / 400 < 0.08


def test_two_way_intervals_cover_the_mean_over_vectors_and_prompts():
    """Effects of rows and of columns and noise: 95% intervals hold the truth as often, or more often."""
    rng, held, narrow = np.random.default_rng(0), 0, 0
    for trial in range(150):
        rows, columns = rng.normal(size=(40, 1)), rng.normal(size=(1, 15))
        table = 0.3 + 0.2 * rows + 0.3 * columns + rng.normal(size=(40, 15))
        found = statistics.two_way_means([table], seed=trial, n_resamples=400)
        low, high = np.quantile(found[1:], [0.025, 0.975])
        held += low <= 0.3 <= high
        one_way = statistics.bootstrap_mean(table.ravel(), seed=trial)
        narrow += one_way.low <= 0.3 <= one_way.high
    assert 0.9 <= held / 150 <= 1 and narrow / 150 < 0.85, "answers are not independent"


def test_two_way_differences_are_paired_by_columns():
    rng = np.random.default_rng(1)
    prompts = rng.normal(size=(1, 12))
    first, second = prompts + 0.01 * rng.normal(size=(30, 12)), prompts + 0.01 * rng.normal(size=(20, 12))
    both = statistics.two_way_means([first]) - statistics.two_way_means([second])
    assert both[1:].std() < 0.1 * statistics.two_way_means([first])[1:].std()
    means = statistics.two_way_means([first, second])
    assert means[0] == pytest.approx((first.mean() + second.mean()) / 2)
