"""Figures of dictionaries side by side: their measures, what a setting does to them, how they cluster.

Every table holds ``estimate`` with its interval's ends ``low`` and ``high``; a mark without an interval has
them NaN.
"""

from __future__ import annotations

from textwrap import fill
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reasoning_features.errors import UserError
from reasoning_features.foundations.styles import styles
from reasoning_features.reporting.plots import TEXT_WIDTH, legend_below, look, name_rows, new_figure

ACROSS = 3
"""The most panels side by side in the text's width."""
LETTERS = 30
"""Letters of a metric's name in one line under its panel."""
ENDS = ["estimate", "low", "high"]


def draw_metrics(table: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """A small panel a metric, with one dictionary a row and its interval.

    Args:
        table: rows of ``metric``, ``dictionary``, ``estimate``, ``low``, ``high``. Metrics and dictionaries
            are drawn in the order in which they come first; a dictionary may lack a metric.

    Returns:
        The figure, and the rows that are drawn, metric by metric.

    Raises:
        UserError: the table is empty, or has two rows for one metric of one dictionary.
    """
    metrics, dictionaries = _groups(table, "metric"), list(pd.unique(table["dictionary"]))
    if table.duplicated(["metric", "dictionary"]).any():
        raise UserError("The table has two rows for one metric of one dictionary: give one of each.")
    looks = styles(dictionaries)
    fig, axes = _panels(len(metrics), 1, height=0.6 + 0.2 * len(dictionaries), sharey=True)
    for ax, metric in zip(axes.flat, metrics, strict=False):
        held = table[table["metric"] == metric].set_index("dictionary")
        for place, name in enumerate(dictionaries):
            if name in held.index:
                estimate, low, high = held.loc[name, ENDS].astype(float)
                ax.plot([low, high], [place, place], color=looks[name]["color"], marker="", linestyle="-")
                ax.plot([estimate], [place], **looks[name] | {"linestyle": ""})
        ax.set(xlabel=fill(str(metric), LETTERS))
        ax.margins(x=0.1)
        ax.locator_params(axis="x", nbins=4)
        name_rows(ax, dictionaries)
    return fig, _drawn(table, "metric")


def draw_sweep(table: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Metrics against settings: rows of panels a setting, a panel a metric, with bands for the intervals.

    The values of a setting stand side by side at equal distances, so that 0 has a place among powers.

    Args:
        table: rows of ``setting`` ("γ", "K"), ``value``, ``metric``, ``estimate``, ``low``, ``high``.

    Returns:
        The figure, and the rows that are drawn, setting by setting and metric by metric.

    Raises:
        UserError: the table is empty.
    """
    settings, metrics = _groups(table, "setting"), _groups(table, "metric")
    fig, axes = _panels(len(metrics), len(settings), height=1.7)
    for part, setting in zip(np.split(axes, len(settings)), settings, strict=True):
        for place, (ax, metric) in enumerate(zip(part.flat, metrics, strict=False)):
            kept = (table["setting"] == setting) & (table["metric"] == metric)
            held = table[kept].sort_values("value")
            steps = np.arange(len(held))
            _curve(ax, steps, held, look(place))
            turned = 90 if len(held) > 8 else 0  # so many would not fit side by side
            ax.set_xticks(steps, [f"{value:g}" for value in held["value"]], rotation=turned)
            ax.set(xlabel=str(setting), ylabel=fill(str(metric), LETTERS // 2))
            ax.locator_params(axis="y", nbins=5)
    ordered = table.sort_values("value", kind="stable")
    return fig, pd.concat([_drawn(ordered[ordered["setting"] == each], "metric") for each in settings])


def draw_clustering(table: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Clustering coefficient against the cosine from which latents are joined, one line a dictionary.

    Args:
        table: rows of ``dictionary`` and the columns of
            :func:`reasoning_features.foundations.dictionary_geometry.clustering`.

    Returns:
        The figure, and the rows that are drawn, dictionary by dictionary.

    Raises:
        UserError: the table is empty.
    """
    dictionaries = _groups(table, "dictionary")
    fig, ax = new_figure(width=4.5, height=2.8)
    for name, style in styles(dictionaries).items():
        held = table[table["dictionary"] == name].sort_values("threshold")
        _curve(ax, held["threshold"].to_numpy(), held, style)
    ax.set(xlabel="cosine from which two latents are joined", ylabel="clustering coefficient")
    ax.set_ylim(bottom=min(-0.02, float(table["low"].min())))
    legend_below(fig)
    return fig, _drawn(table.sort_values("threshold", kind="stable"), "dictionary")


def _panels(n: int, blocks: int, height: float, **options: Any) -> tuple[Figure, Any]:
    """A figure with room for ``n`` panels in each of some blocks of rows, and its axes ``[rows, across]``."""
    rows = -(-n // ACROSS)
    across = -(-n // rows)
    width = TEXT_WIDTH * (across + 0.5) / (ACROSS + 0.5)  # half a panel for the names on the left
    fig, axes = new_figure(rows * blocks, across, width=width, height=height, squeeze=False, **options)
    for block in np.split(axes, blocks):
        for ax in block.flat[n:]:
            ax.set_axis_off()
    return fig, axes


def _curve(ax: Axes, x: np.ndarray, held: pd.DataFrame, style: dict[str, Any]) -> None:
    """One line with a band between the ends of its intervals."""
    estimate, low, high = (held[column].to_numpy(float) for column in ENDS)
    ax.fill_between(x, low, high, color=style["color"], alpha=0.15, linewidth=0)
    ax.plot(x, estimate, **style)


def _groups(table: pd.DataFrame, column: str) -> list[str]:
    """The values of a column in the order in which they come first; there is one at least."""
    if table.empty:
        raise UserError("The table to draw is empty: measure one dictionary at least.")
    return list(pd.unique(table[column]))


def _drawn(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """The rows group by group, groups in the order in which they come first."""
    parts = [table[table[column] == each] for each in pd.unique(table[column])]
    return pd.concat(parts, ignore_index=True)
