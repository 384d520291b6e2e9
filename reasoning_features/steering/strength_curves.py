"""Accuracy and length against strength: vectors added (equation 7), features clamped (the released hook)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from reasoning_features.models.conditions import Condition, clamped_conditions, feature_conditions
from reasoning_features.statistics import bootstrap_mean
from reasoning_features.steering.benchmarks import COMMON

ADDED, CLAMPED = "added", "clamped"
MEASURES: Mapping[str, str] = dict(zip(COMMON, ("accuracy", "thinking tokens"), strict=True))
"""Measure of an answer → how it is called."""


def curve_trials(
    sae: Any,
    evidence: pd.DataFrame,
    features: Mapping[str, int],
    strengths: Sequence[float],
    norm: float,
    others: Mapping[str, Sequence[Condition]],
) -> tuple[list[Condition], pd.DataFrame]:
    """Every feature added and clamped at every strength, and other vectors added.

    Args:
        sae: gives the decoder directions.
        evidence: ``maximum`` and ``decoder norm`` of every feature.
        features: what each is called → the feature.
        strengths: γ, for the features.
        norm: mean norm of the residual stream.
        others: what a vector is called → its conditions.

    Returns:
        The conditions, and one row each: ``vector``, ``how``, ``gamma``, ``share of norm`` (for a clamped
        feature that of adding γ f_max W_dec) and ``condition``.
    """
    made: list[Condition] = []
    rows: list[dict[str, Any]] = []
    maxima = evidence["maximum"].to_numpy(dtype=float)
    size = maxima * evidence["decoder norm"].to_numpy(dtype=float)
    for name, feature in features.items():
        for how, held in (
            (ADDED, feature_conditions(sae, [feature], strengths, maxima)),
            (CLAMPED, clamped_conditions(sae, [feature], strengths, maxima)),
        ):
            made.extend(held)
            rows += [_row(name, how, c, c.gamma * size[feature] / norm) for c in held]
    for name, conditions in others.items():
        made.extend(conditions)
        for condition in conditions:
            length = 0.0 if condition.vector is None else float(condition.vector.norm())
            rows.append(_row(name, ADDED, condition, (1 if condition.gamma > 0 else -1) * length / norm))
    return made, pd.DataFrame(rows)


def _row(name: str, how: str, condition: Condition, share: float) -> dict[str, Any]:
    told = {"vector": name, "how": how, "gamma": condition.gamma, "share of norm": share}
    return told | {"condition": condition.name}


def curves(answered: pd.DataFrame, trials: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Mean accuracy and thinking tokens of every trial with their 95% intervals over problems.

    Args:
        answered: :func:`reasoning_features.steering.answering.answers`.
        trials: from :func:`curve_trials`.
        seed: of the resamples.

    Returns:
        One row a trial and measure: the trial's columns, ``measure``, ``mean``, ``low``, ``high``, ``n``.
    """
    by_condition = dict(list(answered.groupby("condition")))
    rows = []
    for trial in trials.to_dict("records"):
        for column, measure in MEASURES.items():
            mean = bootstrap_mean(by_condition[trial["condition"]][column].astype(float), seed=seed)
            told = {"measure": measure, "mean": mean.estimate, "low": mean.low, "high": mean.high}
            rows.append(trial | told | {"n": mean.n})
    return pd.DataFrame(rows)
