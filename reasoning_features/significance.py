"""Intervals and nulls: bootstrap over documents, the rank of a value within a null, overlap of selections."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import hypergeom

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """An estimate with its bootstrap interval; ``n`` is the number of units that were resampled."""

    estimate: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.estimate:.3g} [{self.low:.3g}, {self.high:.3g}]"


@dataclass(frozen=True)
class NullRank:
    """Where a value stands in a null distribution.

    Attributes:
        value: the value.
        p_value: (1 + number of null values at least as large) / (1 + n): valid at any n.
        percentile: share of null values below, ties counted half.
        z: distance from the null's mean in its standard deviations; nan where the null does not vary.
        n: size of the null.
    """

    value: float
    p_value: float
    percentile: float
    z: float
    n: int


@lru_cache(maxsize=4)
def bootstrap_weights(n_units: int, n_resamples: int, seed: int) -> Array:
    """How often each unit is drawn in each resample ``[n_resamples, n_units]``; rows sum to ``n_units``.

    The same weights on two quantities make their bootstrap paired. Drawing them costs more than using them,
    so the last ones are kept; the array cannot be written to.
    """
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(n_units, np.full(n_units, 1 / n_units), size=n_resamples).astype(np.float64)
    drawn.setflags(write=False)
    return drawn


def percentile_interval(estimate: float, resampled: ArrayLike, n_units: int, level: float = 0.95) -> Interval:
    """The percentile bootstrap interval of an estimate from its resampled values."""
    low, high = np.quantile(np.asarray(resampled, dtype=float), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(estimate), float(low), float(high), n_units)


def bootstrap_mean(
    values: ArrayLike, n_resamples: int = 2000, seed: int = 0, level: float = 0.95
) -> Interval:
    """Mean of independent values ``[n]`` with its percentile bootstrap interval.

    For paired data give the differences unit by unit (:func:`paired_difference`).
    """
    x = np.asarray(values, dtype=float)
    means = bootstrap_weights(len(x), n_resamples, seed) @ x / len(x)
    return percentile_interval(float(x.mean()), means, len(x), level)


def paired_difference(
    a: ArrayLike, b: ArrayLike, n_resamples: int = 2000, seed: int = 0, level: float = 0.95
) -> Interval:
    """Mean of a − b over units measured both ways (problems, documents), resampled as pairs.

    Raises:
        ValueError: the two have different lengths.
    """
    first, second = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if first.shape != second.shape:
        raise ValueError(f"paired values need equal lengths, got {first.shape} and {second.shape}")
    return bootstrap_mean(first - second, n_resamples, seed, level)


def bootstrap_difference(
    a: ArrayLike, b: ArrayLike, n_resamples: int = 2000, seed: int = 0, level: float = 0.95
) -> Interval:
    """Mean of ``a`` less mean of ``b``, two independent samples, each resampled on its own.

    ``n`` counts both.
    """
    first, second = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    means = [
        bootstrap_weights(len(x), n_resamples, seed + i) @ x / len(x) for i, x in enumerate((first, second))
    ]
    n = len(first) + len(second)
    return percentile_interval(float(first.mean() - second.mean()), means[0] - means[1], n, level)


def independent_difference(one: Interval, other: Interval) -> Interval:
    """Difference of two independent estimates from their intervals of one level, which may be lopsided.

    The square-and-add method (Zou and Donner 2008): the distance to either end is the root of the summed
    squares of the distances of the estimates to the ends that pull that way. ``n`` is the smaller one.
    """
    below = float(np.hypot(one.estimate - one.low, other.high - other.estimate))
    above = float(np.hypot(one.high - one.estimate, other.estimate - other.low))
    difference = one.estimate - other.estimate
    return Interval(difference, difference - below, difference + above, min(one.n, other.n))


def bootstrap_ratio(
    numerator: ArrayLike, denominator: ArrayLike, n_resamples: int = 2000, seed: int = 0, level: float = 0.95
) -> Interval:
    """Σ numerator / Σ denominator over units, both resampled together; resamples of nothing are left out."""
    top, bottom = np.asarray(numerator, dtype=float), np.asarray(denominator, dtype=float)
    weights = bootstrap_weights(len(top), n_resamples, seed)
    totals = weights @ bottom
    ratios = (weights @ top)[totals != 0] / totals[totals != 0]
    return percentile_interval(float(top.sum() / bottom.sum()), ratios, len(top), level)


def bootstrap_statistic(
    statistic: Callable[[Array], float], n_units: int, n_resamples: int, seed: int, level: float = 0.95
) -> Interval:
    """A statistic of unit weights ``[n_units]`` (all ones: the data as they are) with its interval."""
    weights = bootstrap_weights(n_units, n_resamples, seed)
    return percentile_interval(
        statistic(np.ones(n_units)), [statistic(row) for row in weights], n_units, level
    )


def null_rank(value: float, null: ArrayLike) -> NullRank:
    """Rank of ``value`` within values ``null`` ``[n]``; large values count against the null.

    Raises:
        ValueError: the null is empty.
    """
    draws = np.asarray(null, dtype=float)
    if draws.size == 0:
        raise ValueError("a null needs at least one draw")
    spread = float(draws.std(ddof=1)) if draws.size > 1 else 0.0
    return NullRank(
        value=float(value),
        p_value=float((1 + (draws >= value).sum()) / (1 + draws.size)),
        percentile=float((draws < value).mean() + (draws == value).mean() / 2),
        z=float((value - draws.mean()) / spread) if spread > 0 else float("nan"),
        n=int(draws.size),
    )


def jaccard(a: Collection[int] | NDArray[np.int64], b: Collection[int] | NDArray[np.int64]) -> float:
    """Size of the intersection over size of the union; 1 for two empty sets."""
    first, second = {int(i) for i in a}, {int(i) for i in b}
    return len(first & second) / len(first | second) if first | second else 1.0


def chance_jaccard(n: int, k_a: int, k_b: int) -> float:
    """Expected Jaccard overlap of two independent random subsets of ``k_a`` and ``k_b`` out of ``n``."""
    shared = np.arange(min(k_a, k_b) + 1)
    return float((hypergeom.pmf(shared, n, k_a, k_b) * shared / (k_a + k_b - shared)).sum())
