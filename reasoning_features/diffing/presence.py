"""Model diffing: at which stages a feature is present, between what a second seed and what chance would give.

The paper calls a feature present at a stage when some decoder direction there has cosine ≥ 0.7 with it.
What such a number means depends on the dictionary: the *ceiling* is what a second seed of the same
autoencoder on the same model reaches, the *floor* what a randomly rotated decoder reaches. Only features
that the second seed finds again can be missed for a reason, so only they are tested.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.stats import binomtest
from torch import Tensor

from reasoning_features.dictionaries.evaluation import best_cosines
from reasoning_features.errors import UserError
from reasoning_features.statistics import Interval, percentile_interval

Array = NDArray[np.float64]
Features = NDArray[np.int64]
PAPER_THRESHOLD = 0.7
RANDOM = "random, as frequent"
PAPER_PRESENT = {"S": 0.0, "S-M": 0.0, "S-D": 0.04, "S-D-F": 0.60, "S-M-F": 0.51}
"""Share of the paper's 46 features that is present at each stage."""
RESAMPLES = 1000
"""Resamples of a difference from random features."""
NEAREST = 10
"""A random feature is drawn among so many of the nearest frequency."""


@dataclass(frozen=True)
class Bounds:
    """What cosines of one dictionary's features mean.

    Attributes:
        ceiling: ``[f]`` each feature's largest cosine with a second seed's directions.
        floor: ``[draws, f]`` the same with that decoder randomly rotated.
        threshold: the calibrated cosine from which a feature counts as present.
    """

    ceiling: Array
    floor: Array
    threshold: float

    def tested(self, threshold: float) -> NDArray[np.bool_]:
        """``[f]`` True for features that the second seed finds again at a threshold."""
        return self.ceiling >= threshold


def rotated(decoder: Tensor, seed: int) -> Tensor:
    """Directions ``[s, d]`` under a random rotation: all angles among them are kept, their places lost."""
    generator = torch.Generator().manual_seed(seed)
    width = decoder.shape[1]
    noise = torch.randn(width, width, generator=generator, dtype=torch.float64)
    orthogonal, triangular = torch.linalg.qr(noise)
    rotation = orthogonal * triangular.diagonal().sign()  # uniform over all rotations
    return (decoder.detach().double() @ rotation).to(decoder.dtype)


def bounds(decoder: Tensor, second: Tensor, draws: int = 5, seed: int = 0) -> Bounds:
    """Ceiling and floor of a dictionary's cosines, and the threshold calibrated between them.

    Args:
        decoder: ``[f, d]`` directions of the features.
        second: ``[r, d]`` those of a second seed, trained on the same model and data.
        draws: rotations.
        seed: of the rotations.
    """
    ceiling = best_cosines(decoder, second)
    floor = np.stack([best_cosines(decoder, rotated(second, seed + i)) for i in range(draws)])
    return Bounds(ceiling, floor, calibrated(ceiling, floor))


def floor_alone(decoder: Tensor, draws: int = 5, seed: int = 0) -> Bounds:
    """What is known without a second seed: the floor. Every feature is tested, at the paper's threshold."""
    floor = np.stack([best_cosines(decoder, rotated(decoder, seed + i)) for i in range(draws)])
    return Bounds(np.ones(len(decoder)), floor, PAPER_THRESHOLD)


def calibrated(ceiling: Array, floor: Array) -> float:
    """The threshold that best tells a feature found again from chance.

    It makes (share of the ceiling's cosines at or above it) − (share of the floor's) largest; of a range of
    thresholds that do so equally well, its middle.
    """
    candidates = np.unique(np.concatenate([ceiling.ravel(), floor.ravel()]))
    above = [1 - np.searchsorted(np.sort(v.ravel()), candidates) / v.size for v in (ceiling, floor)]
    gain = above[0] - above[1]
    best = int(gain.argmax())
    # any threshold above the candidate before, up to this one, divides the cosines in the same way
    lower = candidates[best - 1] if best else candidates[best]
    return float((lower + candidates[best]) / 2)


def by_frequency(
    limits: Bounds, density: Array, thresholds: Mapping[str, float], bins: int = 5
) -> pd.DataFrame:
    """Ceiling and floor of features by how often they are active.

    Args:
        limits: of the dictionary.
        density: ``[f]`` share of tokens on which each feature is active.
        thresholds: name → cosine.
        bins: bins of equally many live features.

    Returns:
        A row a bin: ``from``, ``to`` (density), ``features``, medians and the 5% and 95% quantiles of
        ``ceiling`` and ``floor``, and ``found again, <name>``: the share at or above each threshold.
    """
    live = np.flatnonzero(density > 0)
    rows = []
    for held in np.array_split(live[np.argsort(density[live], kind="stable")], bins):
        row: dict[str, float] = {"from": density[held[0]], "to": density[held[-1]], "features": len(held)}
        for name, values in (("ceiling", limits.ceiling[held]), ("floor", limits.floor[:, held])):
            low, middle, high = np.quantile(values, [0.05, 0.5, 0.95])
            row |= {name: middle, f"{name} low": low, f"{name} high": high}
        for name, threshold in thresholds.items():
            row[f"found again, {name}"] = (limits.ceiling[held] >= threshold).mean()
        rows.append(row)
    return pd.DataFrame(rows)


def stage_cosines(decoder: Tensor, stages: Mapping[str, Tensor]) -> pd.DataFrame:
    """Each feature's largest cosine with the directions of every stage: a row a feature, a column a stage.

    Raises:
        UserError: a stage of another width.
    """
    for name, other in stages.items():
        if other.shape[1] != decoder.shape[1]:
            raise UserError(
                f"Stage {name} is of width {other.shape[1]}, the features are of {decoder.shape[1]}: "
                "give stages of models of one width."
            )
    return pd.DataFrame({name: best_cosines(decoder, other) for name, other in stages.items()})


def frequency_matched(
    features: Features, density: Array, draws: int, seed: int, nearest: int = NEAREST
) -> Features:
    """Random features as frequent as given ones ``[draws, k]``: none of those, none twice in a draw.

    Each is drawn among the ``nearest`` live features of the nearest log density that are left.

    Raises:
        UserError: fewer other live features than given ones.
    """
    others = np.setdiff1d(np.flatnonzero(density > 0), features)
    if len(others) < len(features):
        raise UserError(
            f"{len(features)} features are to be matched, but only {len(others)} others are active: "
            "choose fewer features."
        )
    rng = np.random.default_rng(seed)
    logs = np.log(np.maximum(density, 1e-12))
    found = np.empty((draws, len(features)), dtype=np.int64)
    for draw in range(draws):
        left = others
        for place in rng.permutation(len(features)):
            near = np.argsort(np.abs(logs[left] - logs[features[place]]), kind="stable")[:nearest]
            found[draw, place] = left[rng.choice(near)]
            left = left[left != found[draw, place]]
    return found


def share_of(present: NDArray[np.bool_]) -> Interval:
    """Share of features with its 95% interval by Wilson, which keeps its width where all are alike.

    A bootstrap over features would not: of 20 features that are all present every resample is too.
    """
    if not len(present):
        return Interval(np.nan, np.nan, np.nan, 0)
    found = binomtest(int(present.sum()), len(present))
    ends = found.proportion_ci(method="wilson")
    return Interval(float(present.mean()), float(ends.low), float(ends.high), len(present))


def presence(
    cosines: pd.DataFrame,
    groups: Mapping[str, Features],
    random: Features,
    tested: NDArray[np.bool_],
    threshold: float,
) -> pd.DataFrame:
    """Share of each group's features that is present at every stage, of those that can be tested.

    Args:
        cosines: from :func:`stage_cosines`, or correlations of activations in the same form.
        groups: name → features.
        random: ``[draws, k]`` from :func:`frequency_matched`.
        tested: ``[f]`` features that the second seed finds again.
        threshold: cosine from which a feature is present.

    Returns:
        Rows of ``stage``, ``group``, ``share``, ``low``, ``high``, ``n``. Intervals (95%) are
        :func:`share_of`'s; those of the random features are over the draws. NaN where no feature of a
        group can be tested.
    """
    rows = []
    for stage in cosines:
        present = cosines[stage].to_numpy() >= threshold
        found = {name: share_of(present[held[tested[held]]]) for name, held in groups.items()}
        drawn = [present[draw[tested[draw]]].mean() for draw in random if tested[draw].any()]
        found[RANDOM] = share_of(np.empty(0, dtype=bool))
        if drawn:
            found[RANDOM] = percentile_interval(float(np.mean(drawn)), drawn, len(np.unique(random)))
        rows += [(stage, name, s.estimate, s.low, s.high, s.n) for name, s in found.items()]
    return pd.DataFrame(rows, columns=["stage", "group", "share", "low", "high", "n"])


def beyond_random(
    values: Array, features: Features, random: Features, tested: NDArray[np.bool_], seed: int = 0
) -> Interval:
    """Mean of a quantity over features less its mean over frequency-matched ones, of those that can be
    tested.

    Args:
        values: ``[f]`` the quantity: presence at a stage, or at one stage less at another.
        features: ``[k]`` the features.
        random: ``[draws, k]`` from :func:`frequency_matched`.
        tested: ``[f]`` features that the second seed finds again.
        seed: of the resamples.

    Returns:
        The difference with its 95% interval: features are resampled, each resample beside another random
        draw, whose features are resampled too. ``n`` counts the features.

    Raises:
        UserError: no feature can be tested.
    """
    held = features[tested[features]]
    draws = [draw[tested[draw]] for draw in random if tested[draw].any()]
    if not len(held) or not draws:
        raise UserError("No feature is found again by the second seed: train the autoencoders longer.")
    rng = np.random.default_rng(seed)
    resampled = []
    for i in range(RESAMPLES):
        other = draws[i % len(draws)]
        one, two = (values[rng.choice(group, len(group))].mean() for group in (held, other))
        resampled.append(one - two)
    usual = np.mean([values[draw].mean() for draw in draws])
    return percentile_interval(values[held].mean() - usual, resampled, len(held))


def changes(
    cosines: pd.DataFrame,
    start: str,
    groups: Mapping[str, Features],
    random: Features,
    tested: NDArray[np.bool_],
    threshold: float,
    seed: int = 0,
) -> pd.DataFrame:
    """Share of each group's tested features that appear or go between a start and every other stage.

    Arguments are those of :func:`presence`; ``start`` is the stage that the others are compared with.

    Returns:
        Rows of ``stage``, ``change`` ("appears": present there and not at the start; "goes": the
        reverse), ``group``, ``share``, ``low``, ``high`` (:func:`share_of`), ``n``, and the difference
        from random features as frequent, ``beyond random`` with ``… low`` and ``… high``
        (:func:`beyond_random`).

    Raises:
        UserError: no feature of a group can be tested.
    """
    there, before = cosines >= threshold, cosines[start] >= threshold
    rows = []
    for stage in there.columns.drop(start):
        kinds = {"appears": there[stage] & ~before, "goes": ~there[stage] & before}
        for change, happened in kinds.items():
            values = happened.to_numpy()
            for name, features in groups.items():
                share = share_of(values[features[tested[features]]])
                more = beyond_random(values.astype(float), features, random, tested, seed)
                row = (stage, change, name, share.estimate, share.low, share.high, share.n)
                rows.append((*row, more.estimate, more.low, more.high))
    ends = ["beyond random", "beyond random low", "beyond random high"]
    return pd.DataFrame(rows, columns=["stage", "change", "group", "share", "low", "high", "n", *ends])


def threshold_sweep(
    cosines: pd.DataFrame, groups: Mapping[str, Features], limits: Bounds, thresholds: Array
) -> pd.DataFrame:
    """Share of each group present at every stage, by threshold: each feature tested where it is found again.

    Returns:
        Rows of ``threshold``, ``stage``, ``group``, ``share``, ``n``; the stages hold ``second seed`` and
        ``rotated`` too, over the group's features whether tested or not.
    """
    rows: list[tuple[object, ...]] = []
    for threshold in thresholds:
        tested = limits.tested(threshold)
        for name, features in groups.items():
            held = features[tested[features]]
            rows.append((threshold, "second seed", name, tested[features].mean(), len(features)))
            by_chance = (limits.floor[:, features] >= threshold).mean()
            rows.append((threshold, "rotated", name, by_chance, len(features)))
            for stage in cosines:
                share = (cosines[stage].to_numpy()[held] >= threshold).mean() if len(held) else np.nan
                rows.append((threshold, stage, name, share, len(held)))
    return pd.DataFrame(rows, columns=["threshold", "stage", "group", "share", "n"])
