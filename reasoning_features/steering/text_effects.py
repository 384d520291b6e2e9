"""What steering does to text, whatever the model: its length, its words of R, and how it repeats itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.figure import Figure

from reasoning_features.models.conditions import UNSTEERED
from reasoning_features.reporting.figures import legend_below, new_figure
from reasoning_features.significance import bootstrap_mean
from reasoning_features.text.vocabulary import split_words

LENGTH, REASONING, REPEATED = "tokens", "words of R in a hundred", "repeated pairs of words (%)"
MEASURES = (LENGTH, REASONING, REPEATED)


def text_measures(answers: pd.DataFrame, prompts: Sequence[str], words: Sequence[str]) -> pd.DataFrame:
    """The measures of every answer's text, without its prompt.

    Args:
        answers: :func:`reasoning_features.steering.answering.answers`; ``text`` begins with the prompt.
        prompts: the text of each problem's prompt.
        words: R.

    Returns:
        ``condition``, ``feature``, ``gamma``, ``problem``, and: ``tokens``; ``words of R in a hundred``
        words; ``repeated pairs of words (%)``, the share of pairs that stood in the text before (100 where a
        text goes in circles). A text without words has 0.
    """
    rows = []
    phrases = [tuple(split_words(word)) for word in words]
    for row in answers.itertuples():
        written = split_words(row.text[len(prompts[row.problem]) :])
        pairs = list(pairwise(written))
        hits = sum(
            written[i : i + len(phrase)] == list(phrase) for phrase in phrases for i in range(len(written))
        )
        repeated = 100 * (len(pairs) - len(set(pairs))) / max(len(pairs), 1)
        rows.append((row.thinking_tokens, 100 * hits / max(len(written), 1), repeated))
    measured = pd.DataFrame(rows, columns=list(MEASURES), dtype=float)
    told = answers[["condition", "feature", "gamma", "problem"]].reset_index(drop=True)
    return pd.concat([told, measured], axis=1)


def text_effects(measured: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Change of each measure from the unsteered text of the same problem and the same draws.

    Returns:
        One row a condition and measure: ``feature``, ``gamma``, ``measure``, ``unsteered`` (mean),
        ``change``, ``low``, ``high`` (95%, problems resampled), ``problems``.
    """
    plain = measured[measured["condition"] == UNSTEERED].set_index("problem")[list(MEASURES)]
    rows = []
    for (feature, gamma), part in measured[measured["condition"] != UNSTEERED].groupby(
        ["feature", "gamma"], sort=False
    ):
        change = part.set_index("problem")[list(MEASURES)] - plain
        for measure in MEASURES:
            mean = bootstrap_mean(change[measure].to_numpy(), seed=seed)
            row = {"feature": feature, "gamma": gamma, "measure": measure, "unsteered": plain[measure].mean()}
            rows.append(
                row | {"change": mean.estimate, "low": mean.low, "high": mean.high, "problems": mean.n}
            )
    return pd.DataFrame(rows)


def draw_text_effects(effects: pd.DataFrame, kinds: Mapping[str, Sequence[int]]) -> Figure:
    """Change of each measure for each feature and strength, one panel a measure, features in their order.

    Args:
        effects: :func:`text_effects`.
        kinds: heading → its features ("chosen by ReasonScore", "random").
    """
    gammas = sorted(effects["gamma"].unique())
    rows = [(kind, feature) for kind, features in kinds.items() for feature in features]
    fig, axes = new_figure(1, len(MEASURES), height=0.5 + 0.2 * len(rows), sharey=True)
    for ax, measure in zip(axes, MEASURES, strict=True):
        for place, gamma in enumerate(gammas):
            part = effects[(effects["measure"] == measure) & (effects["gamma"] == gamma)]
            part = part.set_index("feature").loc[[feature for _, feature in rows]]
            at = np.arange(len(rows)) + 0.5 * ((place + 0.5) / len(gammas) - 0.5)
            colour = colormaps["viridis"](0.8 * place / max(len(gammas) - 1, 1))
            ax.hlines(at, part["low"], part["high"], color=colour, linewidth=1.2)
            ax.scatter(part["change"], at, s=12, color=colour, label=f"γ = {gamma:g}", zorder=3)
        ax.axvline(0, color="black", linewidth=0.8)
        ax.set(xlabel=f"change: {measure}")
    axes[0].set_yticks(range(len(rows)), [f"{kind} {feature}" for kind, feature in rows])
    axes[0].invert_yaxis()
    legend_below(fig, axes[0])
    return fig
