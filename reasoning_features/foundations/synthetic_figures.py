"""Figures of the sanity checks on data with known features: how much is explained, and how much is found.

Trained autoencoders have filled marks and colours, the frozen baselines hollow marks in greys.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter, PercentFormatter

from reasoning_features.foundations.names import NAMES
from reasoning_features.foundations.styles import style
from reasoning_features.foundations.synthetic_cells import FIRINGS, FROZEN, TRAINED
from reasoning_features.foundations.synthetic_grid import EXPLAINED, by_frequency, curves, last, summary
from reasoning_features.reporting.plots import legend_below, new_figure, panels

FOUND = "features recovered"
TITLES = {"equal": "equally frequent", "unequal": "unequally frequent"}


def draw_recovery(grid: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Share of features recovered against variance explained at the end of training, a panel a firing.

    Worlds larger than the smallest, and longer trainings, have larger marks. Bars are the 95% intervals of
    :func:`~reasoning_features.foundations.synthetic_grid.summary`.

    Returns:
        The figure, and the summary.
    """
    data = summary(grid)
    smallest, shortest = data["features"].min(), data["steps"].min()
    fig, axes = panels(len(FIRINGS), height=2.9, sharey=True, ylabel=FOUND)
    for ax, firing in zip(axes, FIRINGS, strict=True):
        for row in data[data["firing"] == firing].to_dict("records"):
            at, share = row[EXPLAINED], row["recovered"]
            across = [[at - row[f"{EXPLAINED} low"]], [row[f"{EXPLAINED} high"] - at]]
            up = [[share - row["recovered low"]], [row["recovered high"] - share]]
            look = style(row["architecture"]) | {"linestyle": ""}
            if row["features"] > smallest:
                look |= {"markersize": 7, "markeredgecolor": "black", "label": "_", "zorder": 1}
            elif row["steps"] > shortest:
                look |= {"markersize": 7, "label": "_", "zorder": 1}
            # where nothing was found the interval begins above 0: there is no bar below then
            ax.errorbar(at, share, np.maximum(up, 0), across, capsize=2, **look)
        ax.set(xlabel=EXPLAINED, title=f"{TITLES[firing]} features")
    mark = partial(Line2D, [], [], linestyle="", marker="o", ms=7, mfc="0.8")
    small = data[data["features"] == smallest]
    durations = sorted(set(small["steps"]) - {shortest})
    longer = {f"{steps:,} steps": mark(mec="0.8") for steps in durations}
    sizes = sorted(set(data["features"]) - {smallest})
    larger = {f"{features:,} features": mark(mec="black") for features in sizes}
    _finish(fig, longer | larger)
    return fig, data


def draw_steps(grid: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Share of features recovered against training steps, a panel a size and firing that was trained.

    Lines are means over seeds, bands go from the lowest seed to the highest; a longer training, whose
    schedule is longer too, is a line of its own.

    Returns:
        The figure, and the grid's curves: a row a training and step.
    """
    data = curves(grid)
    sizes = sorted(set(data["features"]))
    fig, axes = new_figure(len(sizes), 2, height=2.2, sharex=True, sharey=True, squeeze=False)
    for ax in axes[:, 0]:
        ax.set_ylabel(FOUND)
    first = int(data.loc[data["step"] > 0, "step"].min())
    for row, features in zip(axes, sizes, strict=True):
        for ax, firing in zip(row, FIRINGS, strict=True):
            held = data[(data["features"] == features) & (data["firing"] == firing)]
            for (architecture, _), rows in held.groupby(["architecture", "steps"], sort=False):
                seeds, look = rows.groupby("step")["recovered"], style(str(architecture))
                steps = list(seeds.groups)
                ax.fill_between(steps, seeds.min(), seeds.max(), color=look["color"], alpha=0.15, linewidth=0)
                ax.plot(steps, seeds.mean(), **look)
            if held.empty:
                ax.set_visible(False)
                continue
            ax.set_title(f"{features:,} {TITLES[firing]} features")
            ax.set_xscale("symlog", linthresh=first, linscale=0.4)
    axes[0, 0].set_xlim(-first / 5, 1.3 * data["step"].max())  # all panels'; some train for longer
    for column in axes.T:
        lowest = [ax for ax in column if ax.get_visible()][-1]
        lowest.set_xlabel("training steps")
        lowest.tick_params(labelbottom=True)
    _finish(fig)
    return fig, data


def draw_frequency(grid: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Share of features recovered by how often they are active, where that differs: trained, and frozen.

    Bands are Wilson's 95% intervals over the features of all seeds. The axis above says how many activations
    with the feature a training has seen: what it has hardly seen it cannot find.

    Returns:
        The figure, and what is drawn: a row an architecture and bin.
    """
    unequal = grid[grid["firing"] == "unequal"]
    data = by_frequency(unequal)
    shown = [
        (features, group)
        for features in sorted(set(data["features"]))
        for group in (TRAINED, FROZEN)
        if data[data["features"] == features]["architecture"].isin(group).any()
    ]
    fig, axes = panels(len(shown), 3, height=3.1, sharey=True, sharex=True, ylabel=FOUND)
    for ax, (features, group) in zip(axes, shown, strict=True):
        held = data[(data["features"] == features) & data["architecture"].isin(group)]
        for (architecture, _), rows in held.groupby(["architecture", "steps"], sort=False):
            look = style(str(architecture))
            middle = np.sqrt(rows["from"] * rows["to"])
            ax.fill_between(middle, rows["low"], rows["high"], color=look["color"], alpha=0.12, linewidth=0)
            ax.plot(middle, rows["recovered"], **look)
        ax.set(xscale="log", xlabel="probability of being active")
        ax.xaxis.set_minor_formatter(NullFormatter())  # "6 × 10³" has no room between powers of ten
        ax.set_title(f"{'frozen' if group == FROZEN else 'trained'}, {features:,} features")
        _times_seen(ax, int(last(unequal[unequal["features"] == features])["samples"].max()))
    _finish(fig)
    return fig, data


def _times_seen(ax: Axes, samples: int) -> None:
    """An axis above that has so many activations times the probability."""
    above = ax.secondary_xaxis(
        "top", functions=(partial(np.multiply, samples), partial(np.multiply, 1 / samples))
    )
    above.xaxis.set_minor_formatter(NullFormatter())
    above.set_xlabel("times active in training")


def _finish(fig: Figure, more: dict[str, Any] | None = None) -> None:
    """Shares as percentages, and one legend for all panels, in the order of the names, below them."""
    found: dict[str, Any] = {}
    for ax in fig.axes:
        ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        handles, labels = ax.get_legend_handles_labels()
        marks = [mark[0] if isinstance(mark, ErrorbarContainer) else mark for mark in handles]
        found |= dict(zip(labels, marks, strict=True))
    legend_below(fig, {name: found[name] for name in NAMES.values() if name in found} | (more or {}))
