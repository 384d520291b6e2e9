"""Figure 2: words by p_think − p_solution beside their frequency in general English."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from reasoning_features.reporting.plots import COLOURS, HATCHES, legend_below, name_rows, new_figure

FLOOR = 1e-7
"""General frequencies are drawn no lower than this (words that general English lacks)."""


def draw_ranking(
    ranking: pd.DataFrame, words: Sequence[str], threshold: float = 1e-3, top: int = 40
) -> tuple[Figure, pd.DataFrame]:
    """Bars of the ``top`` words of a ranking, a row a word; words of R hatched; right, general frequency.

    Args:
        ranking: from :func:`reasoning_features.text.vocabulary.rank_words`.
        words: the words of R.
        threshold: general frequency from which a word drops out.
        top: words to draw.

    Returns:
        The figure, and its data: the drawn rows with columns ``in_R`` and ``kept`` added.
    """
    data = ranking.head(top).copy()
    data["in_R"] = data["word"].isin(set(words))
    data["kept"] = data["general_frequency"] < threshold
    places = np.arange(len(data))
    # 0.14 inches a word
    fig, (left, right) = new_figure(1, 2, height=0.8 + 0.14 * len(data), sharey=True)
    for chosen, colour, hatch, label in (
        (True, COLOURS[1], HATCHES[1], "in R"),
        (False, COLOURS[0], HATCHES[0], "not in R"),
    ):
        where = (data["in_R"] == chosen).to_numpy()
        left.barh(places[where], data["difference"][where], color=colour, hatch=hatch, label=label)
        frequency = data["general_frequency"][where].clip(lower=FLOOR)
        right.barh(places[where], frequency, left=0, color=colour, hatch=hatch)
    left.set(xlabel="p_think − p_solution")
    name_rows(left, data["word"].tolist())
    right.axvline(threshold, color=COLOURS[7], linestyle="--", marker="", label=f"threshold {threshold:g}")
    right.set(xscale="log", xlabel="general frequency", xlim=(FLOOR, 0.2))
    right.grid(axis="y", visible=False)
    legend_below(fig)
    return fig, data
