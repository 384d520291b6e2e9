"""The main line under dictionaries of random directions: scorers, steering and diffing, and their null.

What was measured of each dictionary comes from ``make sanity``
(:mod:`reasoning_features.foundations.shipped`).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sae_lens import SAE

from reasoning_features.dictionaries.evaluation import best_cosines
from reasoning_features.diffing.presence import PAPER_THRESHOLD, SAME, share_of
from reasoning_features.foundations.comparison import row
from reasoning_features.foundations.names import name_of
from reasoning_features.models.conditions import UNSTEERED
from reasoning_features.statistics import Interval, paired_difference, percentile_interval
from reasoning_features.steering.steering_results import winners_table
from reasoning_features.steering.steering_study import CHOSEN, FEATURES, Study
from reasoning_features.truth.benchmark import (
    CEILING,
    RESAMPLES,
    SEED,
    Benchmark,
    column,
    live_scores,
    metrics,
)

Array = NDArray[np.float64]
PRECISION = "average precision"
SHOWN = ("ReasonScore", "word identity", "density", "mean difference", "gradient attribution", CEILING)
"""Scorers that are drawn; the table has all."""


def over_chance(scored: pd.DataFrame) -> pd.DataFrame:
    """Average precision less the share of features that pass, which a random ranking gets.

    Args:
        scored: :func:`reasoning_features.truth.benchmark.evaluate_all`.

    Returns:
        Rows of ``model``, ``dictionary``, ``scorer``, ``estimate`` with ``low`` and ``high`` (95%, traces
        resampled, the features that pass held), ``chance``, ``positives``, ``live``, ``traces``.
    """
    rows = scored[scored["metric"] == PRECISION].copy()
    rows["dictionary"] = [name_of(label) for label in rows["architecture"]]
    for end in ("estimate", "low", "high"):
        rows[end] = rows[end] - rows["chance"]
    kept = ["model", "dictionary", "scorer", "estimate", "low", "high", "chance", "positives", "live"]
    return rows[[*kept, "traces"]].reset_index(drop=True)


def scorer_panels(table: pd.DataFrame, model: str) -> pd.DataFrame:
    """One model's rows of :func:`over_chance` as ``dictionary_figures.draw_metrics`` draws them."""
    rows = table[(table["model"] == model) & table["scorer"].isin(SHOWN)]
    order = {name: place for place, name in enumerate(SHOWN)}
    rows = rows.sort_values("scorer", key=lambda names: names.map(order), kind="stable")
    return rows.rename(columns={"scorer": "metric"})[["metric", "dictionary", "estimate", "low", "high"]]


def precision_over_chance(benchmark: Benchmark, kind: str = "persistence") -> tuple[float, Array]:
    """ReasonScore's average precision less chance, and the same on resampled traces ``[resamples]``.

    Traces are resampled in one order for all dictionaries of a model, so their differences are paired.
    """
    truth = benchmark.truths[kind]
    score = live_scores(column("score:reason score"), benchmark, truth)
    effects = np.concatenate([truth.effect[None], truth.resampled(RESAMPLES, SEED)])
    found = metrics(score, effects, truth.threshold, signed=False)[PRECISION]
    chance = (np.abs(effects) > truth.threshold).mean(axis=1)
    return float(found[0] - chance[0]), found[1:] - chance[1:]


def scorer_difference(trained: Benchmark, null: Benchmark, level: float = 0.95) -> Interval:
    """:func:`precision_over_chance` of one dictionary less that of another of the same model."""
    (one, ones), (other, others) = (precision_over_chance(each) for each in (trained, null))
    drawn = ones - others
    return percentile_interval(
        one - other, drawn[np.isfinite(drawn)], len(trained.truths["persistence"].counts), level
    )


def winners(studies: Mapping[str, Study], seed: int = 0) -> pd.DataFrame:
    """Every class's winner on fresh problems, by dictionary: ``dictionary`` and the columns of
    :func:`reasoning_features.steering.steering_results.winners_table`.
    """
    tables = [
        winners_table(study, seed, families=False).assign(dictionary=name) for name, study in studies.items()
    ]
    table = pd.concat(tables, ignore_index=True).drop(columns="domain")
    return table[["dictionary", *table.columns.drop("dictionary")]]


def winner_panels(won: pd.DataFrame) -> pd.DataFrame:
    """Gains in points of the classes that differ by dictionary, as ``draw_metrics`` draws them."""
    rows = won[won["class"].isin([CHOSEN, FEATURES])]
    points = {
        end: 100 * rows[column] for end, column in (("estimate", "gain"), ("low", "low"), ("high", "high"))
    }
    return rows[["dictionary"]].assign(metric=rows["class"] + ", gain (points)", **points)


def winner_difference(trained: Study, null: Study, seed: int = 0, level: float = 0.95) -> Interval:
    """Accuracy under ReasonScore's winner of one dictionary less that of another, paired over problems."""
    return paired_difference(trained.outcome(CHOSEN), null.outcome(CHOSEN), seed=seed, level=level)


def presence(
    matched: pd.DataFrame,
    sae: SAE[Any],
    stages: Mapping[str, tuple[str, SAE[Any]]],
    features: NDArray[np.int64],
) -> pd.DataFrame:
    """Share of some features that are present at each stage, by what they do and by where they point.

    Args:
        matched: a row a feature, largest correlation of its activations with a latent of each stage
            (:func:`reasoning_features.diffing.presence.largest_correlations`).
        sae: the dictionary that has the features.
        stages: stage → who is read, and its dictionary; "S" is the first.
        features: ``[k]`` the features, in the rows' order.

    Returns:
        Rows of ``stage``, ``share`` present by activations with ``low`` and ``high`` (Wilson), ``n``,
        ``by cosine`` (share with a direction of the stage at 0.7 or nearer) and ``between stages`` (share of
        S's latents that have one).
    """
    rows = []
    start = stages["S"][1].W_dec
    for stage, (_, other) in stages.items():
        found = share_of(matched[stage].to_numpy(dtype=float) >= SAME)
        cosine = float((best_cosines(sae.W_dec[features], other.W_dec) >= PAPER_THRESHOLD).mean())
        same = float((best_cosines(start, other.W_dec) >= PAPER_THRESHOLD).mean())
        rows.append((stage, found.estimate, found.low, found.high, found.n, cosine, same))
    columns = ["stage", "share", "low", "high", "n", "by cosine", "between stages"]
    return pd.DataFrame(rows, columns=columns)


def differences(
    benchmarks: tuple[Benchmark, Benchmark], studies: tuple[Study, Study], seed: int = 0
) -> pd.DataFrame:
    """The main line under a trained dictionary beside a null's, as rows of the table of claims."""
    precisions = [precision_over_chance(each)[0] for each in benchmarks]
    found = partial(scorer_difference, *benchmarks)
    rows = [row("ReasonScore's precision over chance", precisions, 0.0, found)]
    won = [
        float(paired_difference(study.outcome(CHOSEN), study.outcome(UNSTEERED), seed=seed).estimate)
        for study in studies
    ]
    found = partial(winner_difference, *studies, seed=seed)
    rows.append(row("steering, gain of ReasonScore's winner", won, 0.0, found))
    return pd.DataFrame(rows)
