"""Intervals, nulls and paired tests: bootstrap over units, ranks within nulls, many comparisons corrected.

Units are what was drawn independently (problems, documents, features). Conditions that answer the same
problems are compared problem by problem, and a problem is resampled with all its results.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest, hypergeom
from scipy.stats import t as student

Array = NDArray[np.float64]
Ids = NDArray[np.int64]  # of tokens, documents or features, or other whole numbers
Flags = NDArray[np.bool_]
MARGIN = 0.015  # the largest change of accuracy, 1.5 points, that may count as none
RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """An estimate with its bootstrap interval; ``n`` is the number of units that were resampled."""

    estimate: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.estimate:.3g} [{self.low:.3g}, {self.high:.3g}]"

    def __truediv__(self, by: float) -> "Interval":
        return Interval(self.estimate / by, self.low / by, self.high / by, self.n)

    def row(self, name: str, prefix: str = "") -> dict[str, float]:
        """Cells of a table: the estimate under a name, and the ends as ``low`` and ``high`` with a prefix."""
        return {name: self.estimate, f"{prefix}low": self.low, f"{prefix}high": self.high}


class NullRank(NamedTuple):
    """Where a value stands in a null distribution of ``n`` values."""

    value: float
    p_value: float  # (1 + number of null values at least as large) / (1 + n): valid at any n
    percentile: float  # fraction of null values below, ties counted half
    z: float  # distance from the null's mean in its standard deviations; nan where the null does not vary
    n: int


@lru_cache(maxsize=4)
def bootstrap_weights(n_units: int, n_resamples: int, seed: int) -> Array:
    """How often each unit is drawn in each resample ``[n_resamples, n_units]``; not to be written to. The
    same weights on two quantities make their bootstrap paired.
    """
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(n_units, np.full(n_units, 1 / n_units), size=n_resamples).astype(np.float64)
    drawn.setflags(write=False)
    return drawn


def percentile_interval(estimate: float, resampled: ArrayLike, n_units: int, level: float = 0.95) -> Interval:
    """The percentile bootstrap interval of an estimate from its resampled values."""
    low, high = np.quantile(np.asarray(resampled, dtype=float), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(estimate), float(low), float(high), n_units)


def bootstrap_mean(values: ArrayLike, seed: int = 0, level: float = 0.95) -> Interval:
    """Mean of independent values ``[n]``; for paired data see :func:`paired_difference`."""
    x = np.asarray(values, dtype=float)
    means = bootstrap_weights(len(x), RESAMPLES, seed) @ x / len(x)
    return percentile_interval(float(x.mean()), means, len(x), level)


def t_interval(values: ArrayLike, level: float = 0.95) -> Interval:
    """Mean of few independent values ``[n]``, Student's interval of n − 1 degrees of freedom; NaN of one."""
    x = np.asarray(values, dtype=float)
    error = x.std(ddof=1) / np.sqrt(len(x)) if len(x) > 1 else np.nan
    half = float(student.ppf((1 + level) / 2, max(len(x) - 1, 1)) * error)
    return Interval(float(x.mean()), float(x.mean()) - half, float(x.mean()) + half, len(x))


def wilson(found: int, n: int) -> Interval:
    """Share of ``found`` in ``n`` with its 95% interval by Wilson, wide at 0 and 1 too; NaN of none."""
    if not n:
        return Interval(np.nan, np.nan, np.nan, 0)
    ends = binomtest(found, n).proportion_ci(method="wilson")
    return Interval(found / n, float(ends.low), float(ends.high), n)


def share_of(marks: ArrayLike) -> Interval:
    """Share of marks ``[n]`` that are true, with its 95% interval (:func:`wilson`)."""
    return wilson(int(np.sum(marks)), np.size(marks))


def means_by(frame: pd.DataFrame, by: list[str], column: str, seed: int = 0) -> pd.DataFrame:
    """Mean of a column in each group of rows, as they come: ``by``, ``column``, ``low``, ``high``, ``n``."""
    grouped = frame.groupby(by, sort=False)[column]
    rows = [dict(zip(by, key, strict=True)) | vars(bootstrap_mean(x, seed=seed)) for key, x in grouped]
    return pd.DataFrame(rows).rename(columns={"estimate": column})


def paired_difference(a: ArrayLike, b: ArrayLike, seed: int = 0, level: float = 0.95) -> Interval:
    """Mean of a − b over units measured both ways (problems, documents), resampled as pairs."""
    return bootstrap_mean(_paired(a, b), seed=seed, level=level)


def bootstrap_ratio(a: ArrayLike, b: ArrayLike, n_resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Σ a / Σ b over units, both resampled together; resamples of nothing are left out."""
    top, bottom = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    weights = bootstrap_weights(len(top), n_resamples, seed)
    totals = weights @ bottom
    ratios = (weights @ top)[totals != 0] / totals[totals != 0]
    return percentile_interval(float(top.sum() / bottom.sum()), ratios, len(top))


def two_way_means(tables: Sequence[ArrayLike], seed: int = 0, n_resamples: int = RESAMPLES) -> Array:
    """The mean over tables of their means, and its resamples ``[1 + n_resamples]``.

    A table ``[rows, columns]`` is resampled both ways, for neither its rows (vectors) nor its columns
    (prompts) are all there are (Owen 2007, the pigeonhole bootstrap). All tables have the same columns; rows
    are each one's own. Differences of two results of one seed are paired by columns.
    """
    found = np.zeros(1 + n_resamples)
    for i, given in enumerate(tables):
        table = np.asarray(given, dtype=float)
        rows, columns = (
            np.vstack([np.ones(n), bootstrap_weights(n, n_resamples, number)])
            for n, number in zip(table.shape, (seed + 1 + i, seed), strict=True)
        )
        found += ((rows @ table) * columns).sum(1) / table.size
    return found / len(tables)


def null_rank(value: float, null: ArrayLike) -> NullRank:
    """Rank of a value within null values ``[n]``; large values count against the null."""
    draws = np.asarray(null, dtype=float)
    spread = float(draws.std(ddof=1)) if draws.size > 1 else 0.0
    p_value = float((1 + (draws >= value).sum()) / (1 + draws.size))
    percentile = float((draws < value).mean() + (draws == value).mean() / 2)
    z = float((value - draws.mean()) / spread) if spread > 0 else float("nan")
    return NullRank(float(value), p_value, percentile, z, draws.size)


def chance_jaccard(n: int, k_a: int, k_b: int) -> float:
    """Expected Jaccard overlap of two independent random subsets of ``k_a`` and ``k_b`` out of ``n``."""
    shared = np.arange(min(k_a, k_b) + 1)
    return float((hypergeom.pmf(shared, n, k_a, k_b) * shared / (k_a + k_b - shared)).sum())


def holm(p_values: ArrayLike) -> Array:
    """Holm's step-down adjusted p-values ``[m]``, in the order given (Holm 1979).

    The k-th smallest of m is multiplied by m − k + 1, and none is below a smaller one's. ValueError where one
    is missing or is no probability.
    """
    p = np.asarray(p_values, dtype=float)
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError("p-values must lie within 0 to 1, and none may be missing")
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    return np.minimum(stepped, 1)[np.argsort(order)]


def mcnemar(a: ArrayLike, b: ArrayLike) -> float:
    """Two-sided exact p-value of two paired 0/1 outcomes ``[n]`` (McNemar's test, binomial)."""
    difference = _paired(a, b)
    differ = int((difference != 0).sum())
    return float(binomtest(int((difference > 0).sum()), differ).pvalue) if differ else 1.0


def finding(interval: Interval, margin: float = MARGIN) -> Literal["effect", "no effect", "undecided"]:
    """What an interval of a difference allows to be said; give the 90% interval.

    "no effect" where it lies within ± ``margin``, so that two one-sided tests at 5% rule out anything larger,
    though it may be sure that there is something smaller; "effect" where else it leaves out 0; "undecided"
    else. A wide interval about 0 is no evidence that there is nothing.
    """
    if -margin < interval.low and interval.high < margin:
        return "no effect"
    return "effect" if interval.low > 0 or interval.high < 0 else "undecided"


def _paired(a: ArrayLike, b: ArrayLike) -> Array:
    """a − b ``[n]``."""
    first, second = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"paired values need equal lengths, got {first.shape} and {second.shape}")
    return first - second
