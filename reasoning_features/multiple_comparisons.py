"""Many comparisons of paired results: tests, their correction, what counts as nothing, two arms apart.

All results are problem by problem: every condition answers the same problems, so only differences on a
problem count, and problems are resampled with all their results.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binom

from reasoning_features.significance import Interval, bootstrap_mean

Array = NDArray[np.float64]
Finding = Literal["effect", "no effect", "undecided"]
MARGIN = 0.05
"""Largest change of accuracy, 5 points, that may count as none."""
EXACT_BELOW = 200
"""Problems under which two 0/1 outcomes are compared by the exact test."""
AT_ONCE = 500
"""Permutations drawn at once."""


def holm(p_values: ArrayLike) -> Array:
    """Holm's step-down adjusted p-values ``[m]``, in the order given (Holm 1979).

    The k-th smallest of m is multiplied by m − k + 1, and none is below a smaller one's. Rejecting where the
    adjusted value is at most α keeps the chance of any false rejection at α, however the tests depend.

    Raises:
        ValueError: a p-value is missing or not within 0 to 1.
    """
    p = np.asarray(p_values, dtype=float)
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError("p-values must lie within 0 to 1, and none may be missing")
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1)
    return adjusted


def mcnemar(a: ArrayLike, b: ArrayLike) -> float:
    """Two-sided exact p-value of two paired 0/1 outcomes ``[n]`` (McNemar's test, binomial).

    Of the problems where the two differ, as many should go either way.

    Raises:
        ValueError: different lengths, or an outcome that is neither 0 nor 1.
    """
    difference = _paired(a, b)
    if not _zero_or_one(a, b):
        raise ValueError("McNemar's test needs outcomes of 0 and 1")
    first, second = int((difference > 0).sum()), int((difference < 0).sum())
    return float(min(1.0, 2 * binom.cdf(min(first, second), first + second, 0.5)))


def sign_flip(a: ArrayLike, b: ArrayLike, permutations: int = 9999, seed: int = 0) -> float:
    """Two-sided p-value of the mean of a − b ``[n]``: each pair's two values may be exchanged.

    It is (1 + exchanges that give a mean at least as large) / (1 + exchanges): valid at any number.

    Raises:
        ValueError: the two have different lengths.
    """
    difference = _paired(a, b)
    difference = difference[difference != 0]  # an exchange does not change them
    seen, reached, rng = abs(difference.sum()), 0, np.random.default_rng(seed)
    for start in range(0, permutations, AT_ONCE):
        size = min(AT_ONCE, permutations - start), len(difference)
        signs = rng.integers(0, 2, size, dtype=np.int8) * 2.0 - 1
        # sums of the same numbers in another order differ by rounding
        reached += int((np.abs(signs @ difference) >= seen - 1e-9 * max(1.0, seen)).sum())
    return (1 + reached) / (1 + permutations)


def paired_p_value(a: ArrayLike, b: ArrayLike, seed: int = 0) -> float:
    """Whether two conditions differ on the same problems ``[n]``: two-sided p-value.

    :func:`mcnemar` for outcomes of 0 and 1 on fewer than ``EXACT_BELOW`` problems, else :func:`sign_flip`.

    Raises:
        ValueError: the two have different lengths.
    """
    if len(_paired(a, b)) < EXACT_BELOW and _zero_or_one(a, b):
        return mcnemar(a, b)
    return sign_flip(a, b, seed=seed)


def finding(interval: Interval, margin: float = MARGIN) -> Finding:
    """What an interval of a difference allows to be said; give the 90% interval.

    "effect" where it leaves out 0; "no effect" where it holds 0 and lies within ± ``margin``, so that two
    one-sided tests at 5% rule out anything larger; "undecided" else. A wide interval about 0 is no evidence
    that there is nothing.
    """
    if interval.low > 0 or interval.high < 0:
        return "effect"
    return "no effect" if -margin < interval.low and interval.high < margin else "undecided"


def difference_in_differences(
    one: ArrayLike,
    its_control: ArrayLike,
    other: ArrayLike,
    others_control: ArrayLike,
    n_resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """(one − its control) − (other − its control), mean over problems with its paired bootstrap interval.

    Args:
        one: results ``[n]`` of one model under a condition, a value a problem; or ``[seeds, n]`` of several
            trainings of it, which are averaged problem by problem.
        its_control: of the same model under the condition it is compared with.
        other: of another model under the first condition, on the same problems.
        others_control: of that model under the second.
        n_resamples: resamples of problems; a problem is drawn for all four together.
        seed: of the resamples.
        level: of the interval. It is about problems: what varies between trainings is not in it.

    Raises:
        ValueError: the four do not have one shape.
    """
    cells = [np.asarray(cell, dtype=float) for cell in (one, its_control, other, others_control)]
    if len({cell.shape for cell in cells}) > 1 or cells[0].ndim not in (1, 2):
        raise ValueError(f"the four cells need one shape, got {[cell.shape for cell in cells]}")
    apart = (cells[0] - cells[1]) - (cells[2] - cells[3])
    return bootstrap_mean(np.atleast_2d(apart).mean(axis=0), n_resamples, seed, level)


def _paired(a: ArrayLike, b: ArrayLike) -> Array:
    """a − b ``[n]``."""
    first, second = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"paired values need equal lengths, got {first.shape} and {second.shape}")
    return first - second


def _zero_or_one(*outcomes: ArrayLike) -> bool:
    return all(bool(np.isin(np.asarray(values, dtype=float), (0, 1)).all()) for values in outcomes)
