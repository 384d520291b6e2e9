"""What steering does to text, whatever the model: its length, its words of R, and how it repeats itself."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from textwrap import fill
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.figure import Figure

from reasoning_features.models.conditions import UNSTEERED, Condition, feature_conditions
from reasoning_features.organism.traces import END_THINK
from reasoning_features.reporting.plots import legend_below, name_rows, new_figure
from reasoning_features.scoring.reason_score import select
from reasoning_features.statistics import bootstrap_mean
from reasoning_features.steering.search import matched_features
from reasoning_features.text.vocabulary import split_words

LENGTH, REASONING, REPEATED = "tokens", "words of R in a hundred", "repeated pairs of tokens (%)"
MEASURES = (LENGTH, REASONING, REPEATED)
CHOSEN, RANDOM = "ReasonScore", "random"
_MARK = re.compile(r"<[^<>\s]*>")
"""A mark of the template, such as the end of a text: its letters are no words."""


def text_conditions(
    sae: Any, evidence: pd.DataFrame, n: int, selected: int, gammas: Sequence[float], seed: int
) -> tuple[list[Condition], dict[str, list[int]]]:
    """The best features by ReasonScore, and a random one matched to each, at every strength.

    Args:
        sae: gives the decoder directions.
        evidence: :func:`reasoning_features.truth.evidence.gather`.
        n: how many features of each kind; fewer where fewer are ever active.
        selected: features that ReasonScore chooses; none of them counts as random.
        gammas: strengths, in units of each feature's largest activation.
        seed: of the random features.

    Returns:
        The conditions, the best feature's first; and kind → its features, as :func:`draw_text_effects` reads.
    """
    live = np.flatnonzero(evidence["density"] > 0)
    chosen = live[
        select(evidence["score:reason score"].to_numpy(dtype=float)[live], min(selected, len(live) // 2))
    ]
    best, others = chosen[:n], np.setdiff1d(live, chosen[n:])
    kinds = {CHOSEN: best.tolist(), RANDOM: matched_features(evidence, best, others, seed).tolist()}
    every = [feature for features in kinds.values() for feature in features]
    return feature_conditions(sae, every, gammas, evidence["maximum"].to_numpy(dtype=float)), kinds


def text_measures(answers: pd.DataFrame, prompts: Sequence[str], words: Sequence[str]) -> pd.DataFrame:
    """The measures of every answer's text, without its prompt: of its thinking, or of all where none ends.

    Args:
        answers: :func:`reasoning_features.steering.answering.answers`; ``text`` begins with the prompt.
        prompts: the text of each problem's prompt.
        words: R.

    Returns:
        ``condition``, ``feature``, ``gamma``, ``problem``, and: ``tokens``; ``words of R in a hundred``
        words (0 in a text without words); ``repeated pairs of tokens (%)``, the share of pairs of neighbours
        that stood in the text before (near 100 where a text goes in circles, or is blank lines).
    """
    phrases = [split_words(word) for word in words if split_words(word)]
    rows = []
    columns = (answers[name].tolist() for name in ("text", "problem", "tokens"))
    for text, problem, tokens in zip(*columns, strict=True):
        thinking = text[len(prompts[problem]) :].split(END_THINK)[0]
        written = split_words(_MARK.sub(" ", thinking))
        pairs = list(pairwise(tokens))
        hits = sum(written[i : i + len(phrase)] == phrase for phrase in phrases for i in range(len(written)))
        repeated = 100 * (len(pairs) - len(set(pairs))) / max(len(pairs), 1)
        rows.append((100 * hits / max(len(written), 1), repeated))
    told = answers[["condition", "feature", "gamma", "problem"]].reset_index(drop=True)
    told[LENGTH] = answers["thinking_tokens"].to_numpy(dtype=float)
    return told.join(pd.DataFrame(rows, columns=[REASONING, REPEATED], dtype=float))


def text_effects(measured: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Change of each measure from the unsteered text of the same problem and the same draws.

    Returns:
        One row a condition and measure: ``condition``, ``feature``, ``gamma``, ``measure``, ``unsteered``
        (mean), ``change``, ``low``, ``high`` (95%, problems resampled), ``problems``.
    """
    plain = measured[measured["condition"] == UNSTEERED].set_index("problem")[list(MEASURES)]
    named = ["condition", "feature", "gamma"]
    rows = []
    for key, part in measured[measured["condition"] != UNSTEERED].groupby(named, sort=False):
        change = part.set_index("problem")[list(MEASURES)] - plain
        for measure in MEASURES:
            mean = bootstrap_mean(change[measure].to_numpy(), seed=seed)
            told = {"measure": measure, "unsteered": plain[measure].mean(), "change": mean.estimate}
            told |= {"low": mean.low, "high": mean.high, "problems": mean.n}
            rows.append(dict(zip(named, key, strict=True)) | told)
    return pd.DataFrame(rows)


def draw_text_effects(effects: pd.DataFrame, kinds: Mapping[str, Sequence[int]]) -> Figure:
    """Change of each measure for each feature and strength, one panel a measure, features in their order.

    Args:
        effects: :func:`text_effects`.
        kinds: kind → its features (:func:`text_conditions`).
    """
    gammas = sorted(effects["gamma"].unique())
    # each random feature stands under the one that it is matched to
    rows = [
        (kind, feature)
        for matched in zip(*kinds.values(), strict=True)
        for kind, feature in zip(kinds, matched, strict=True)
    ]
    fig, axes = new_figure(1, len(MEASURES), height=1 + 0.2 * len(rows), sharey=True)
    for ax, measure in zip(axes, MEASURES, strict=True):
        for place, gamma in enumerate(gammas):
            part = effects[(effects["measure"] == measure) & (effects["gamma"] == gamma)]
            part = part.set_index("feature").loc[[feature for _, feature in rows]]
            at = np.arange(len(rows)) + 0.5 * ((place + 0.5) / len(gammas) - 0.5)
            colour = colormaps["viridis"](0.8 * place / max(len(gammas) - 1, 1))
            ax.hlines(at, part["low"], part["high"], color=colour, linewidth=1.2)
            ax.scatter(part["change"], at, s=12, color=colour, label=f"γ = {gamma:g}", zorder=3)
        ax.axvline(0, color="black", linewidth=0.8)
        ax.set_xlabel(fill(f"change: {measure}", 22))
    name_rows(axes[0], [f"{kind} {feature}" for kind, feature in rows])
    legend_below(fig)
    return fig
