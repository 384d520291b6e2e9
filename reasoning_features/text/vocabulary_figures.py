"""Figure 2: words by p_think − p_solution beside their frequency in general English."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from reasoning_features.reporting.figures import COLOURS, HATCHES, new_figure

FLOOR = 1e-7
"""General frequencies are drawn no lower than this (words that general English lacks)."""


def draw_ranking(
    ranking: pd.DataFrame, words: Sequence[str], threshold: float = 1e-3, top: int = 40
) -> tuple[Figure, pd.DataFrame]:
    """Bars of the ``top`` words of a ranking; words of R hatched; below, general frequency and threshold.

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
    fig, (above, below) = new_figure(2, 1, height=1.9, sharex=True)
    for chosen, colour, hatch, label in (
        (True, COLOURS[1], HATCHES[1], "in R"),
        (False, COLOURS[0], HATCHES[0], "not in R"),
    ):
        where = (data["in_R"] == chosen).to_numpy()
        above.bar(places[where], data["difference"][where], color=colour, hatch=hatch, label=label)
        frequency = data["general_frequency"][where].clip(lower=FLOOR)
        below.bar(places[where], frequency, bottom=0, color=colour, hatch=hatch)
    above.set(ylabel="p_think − p_solution")
    above.legend()
    below.axhline(threshold, color=COLOURS[7], linestyle="--", marker="", label=f"threshold {threshold:g}")
    below.set(yscale="log", ylabel="general frequency", ylim=(FLOOR, 0.2))
    below.set_xticks(places, data["word"], rotation=90)
    below.legend()
    return fig, data
