"""What steering a feature changes in the answers, and the function group that follows (the paper's appendix).

The paper lets a language model describe each feature from pairs of generations and clusters the descriptions
into ten groups. Here the description is what was measured: the change of each measure from the lowest to the
highest strength, paired over problems. The group follows by a rule fixed before any feature was looked at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from reasoning_features.models.conditions import UNSTEERED
from reasoning_features.statistics import bootstrap_weights

LEVEL = 0.99
"""A change counts when its bootstrap interval of this level leaves out 0: several measures are looked at."""

GROUPS: Mapping[str, tuple[str, str]] = {
    "parseable": ("keeps the form of the text", "breaks the form of the text"),
    "gave_up": ("gives up", "goes on"),
    "explore": ("goes on", "gives up"),
    "verify": ("checks", "checks less"),
    "checked": ("checks", "checks less"),
    "backtrack": ("steps back", "steps back less"),
    "uncertain": ("doubts", "doubts less"),
    "words of R": ("says words of R", "avoids words of R"),
    "thinking_tokens": ("thinks longer", "thinks shorter"),
    "correct": ("answers better", "answers worse"),
}
"""Measure → the group of a feature that raises it most, and of one that lowers it most."""
BROKEN = "breaks the form of the text"
NO_CHANGE = "no change measured"
_UNFIT = 0.1
"""A strength that spoils more than this share of the answers' form is left out of the dose."""


def words_of_reasoning(texts: Sequence[str], words: Sequence[str]) -> np.ndarray:
    """How often the words occur in each text, in any casing, as whole words ``[n]``."""
    counts = pd.Series(texts).str.lower()
    return sum(counts.str.count(rf"\b{word.lower()}\b").to_numpy(dtype=float) for word in words) + np.zeros(
        len(texts)
    )


def dose(answers: pd.DataFrame) -> pd.DataFrame:
    """The strengths of each feature that leave the answers' form whole: ``feature``, ``low``, ``high``.

    ``low`` is the smallest strength kept (0, unsteered, where every negative one spoils the form), ``high``
    the largest. Without a measure ``parseable`` every strength is kept.
    """
    spoilt = pd.Series(0.0, index=answers.index)
    if "parseable" in answers:
        usual = answers.loc[answers["condition"] == UNSTEERED, "parseable"].mean()
        spoilt = usual - answers.groupby("condition")["parseable"].transform("mean")
    kept = answers[(spoilt <= _UNFIT) & (answers["condition"] != UNSTEERED)]
    bounds = kept.groupby("feature")["gamma"].agg(low="min", high="max")
    bounds = bounds.reindex(sorted(answers.loc[answers["feature"] >= 0, "feature"].unique())).fillna(0.0)
    return bounds.assign(low=bounds["low"].clip(upper=0), high=bounds["high"].clip(lower=0)).reset_index()


def changes(
    answers: pd.DataFrame, measures: Sequence[str], n_resamples: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """Change of each measure between a feature's lowest and highest kept strength, paired over problems.

    Args:
        answers: :func:`reasoning_features.steering.answering.answers`, with the ``measures`` as columns.
        measures: what to compare.
        n_resamples: resamples of problems.
        seed: of the resamples.

    Returns:
        One row a feature and measure: ``feature``, ``low``, ``high`` (strengths), ``measure``,
        ``unsteered`` (mean), ``change``, ``change low``, ``change high`` (the interval of ``LEVEL``),
        ``standardised`` (change in standard deviations of the unsteered answers) and ``n`` problems.
    """
    table = answers.pivot(index="problem", columns=["feature", "gamma"], values=list(measures)).astype(float)
    n = len(table)
    weights = bootstrap_weights(n, n_resamples, seed) / n
    bounds = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    rows = []
    for feature, low, high in dose(answers).itertuples(index=False):
        for measure in measures:
            plain = table[measure][-1, 0.0]
            ends = [plain if end == 0 else table[measure][feature, end] for end in (low, high)]
            difference = (ends[1] - ends[0]).to_numpy()
            interval = np.quantile(weights @ difference, bounds)
            spread = plain.std(ddof=1)
            rows.append(
                {
                    "feature": feature,
                    "low": low,
                    "high": high,
                    "measure": measure,
                    "unsteered": plain.mean(),
                    "change": difference.mean(),
                    "change low": interval[0],
                    "change high": interval[1],
                    "standardised": difference.mean() / spread if spread > 0 else 0.0,
                    "n": n,
                }
            )
    return pd.DataFrame(rows)


def function_groups(changed: pd.DataFrame) -> pd.DataFrame:
    """The function group of each feature, and its description in words.

    The rule: of the changes whose interval leaves out 0, the largest in standard deviations of the unsteered
    answers names the group (``GROUPS``); none, and the feature is of "no change measured". A feature none of
    whose strengths leaves the form of the answers whole breaks it.

    Args:
        changed: :func:`changes`.

    Returns:
        One row a feature: ``feature``, ``group``, ``description``.
    """
    rows = []
    for feature, part in changed.groupby("feature", sort=False):
        sure = part[(part["change low"] > 0) | (part["change high"] < 0)]
        sure = sure.reindex(sure["standardised"].abs().sort_values(ascending=False, kind="stable").index)
        if (part["low"] == part["high"]).all():
            group = BROKEN
        elif sure.empty:
            group = NO_CHANGE
        else:
            first = sure.iloc[0]
            group = GROUPS[first["measure"]][int(first["change"] < 0)]
        told = ", ".join(f"{row.measure} {row.change:+.2g}" for row in sure.itertuples())
        span = f"γ from {part['low'].iloc[0]:g} to {part['high'].iloc[0]:g}"
        rows.append({"feature": feature, "group": group, "description": f"{span}: {told or 'nothing'}"})
    return pd.DataFrame(rows)
