"""Figures of dictionaries side by side, and of the trainings on data with known features.

An architecture has one colour and mark in every figure. Trained autoencoders have filled marks and colours,
frozen baselines hollow marks in greys; floors, ceilings and random directions are black.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from textwrap import fill
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter, PercentFormatter

from reasoning_features.dictionaries.autoencoder import NAMES
from reasoning_features.dictionaries.evaluation import EXPLAINED
from reasoning_features.reporting.plots import (
    LINES,
    MARKERS,
    TEXT_WIDTH,
    legend_below,
    look,
    name_rows,
    new_figure,
    panels,
)
from reasoning_features.sae_checks.synthetic import (
    FIRINGS,
    FROZEN,
    TRAINED,
    by_frequency,
    curves,
    last,
    summary,
)

GREYS = ("0", "0.4", "0.6")
OTHERS = ("x", "+", "1", "2", "3", "4", "|", "_")  # marks of what is no architecture
LETTERS = 30  # of a metric's name in one line under its panel
RECOVERED = "features recovered"
TITLES = {"equal": "equally frequent", "unequal": "unequally frequent"}


def style(architecture: str) -> dict[str, Any]:
    """How an architecture's mark and line look, with its name as ``label``."""
    frozen = architecture in FROZEN
    place = FROZEN.index(architecture) if frozen else TRAINED.index(architecture)
    every = look(place)
    if frozen:
        every["color"] = GREYS[place]
    every["markerfacecolor"] = "white" if frozen else every["color"]
    return every | {"linestyle": LINES[3 if frozen else place % 3], "label": NAMES[architecture]}


def styles(dictionaries: Sequence[str]) -> dict[str, dict[str, Any]]:
    """How dictionaries look by name, as in ``NAMES``, with what tells variants apart after it.

    "OrtSAE, second seed" and "frozen decoder (cov)" look as their architecture does, but that their mark is
    hollow where that one's is full, and full where it is hollow; the next variant has the next mark.
    """
    architectures = {name: architecture for architecture, name in NAMES.items()}
    looks: dict[str, dict[str, Any]] = {}
    others, variants = 0, Counter[str]()
    for name in dictionaries:
        plain = name.partition(",")[0].partition(" (")[0]
        if plain in architectures:
            looks[name] = style(architectures[plain]) | {"label": name}
        else:  # dotted as long as their marks are all different
            mark, line = OTHERS[others % len(OTHERS)], LINES[(3 + others // len(OTHERS)) % len(LINES)]
            looks[name] = {"color": "black", "marker": mark, "linestyle": line, "label": name}
            others += 1
        if plain in architectures and name != plain:
            own, place = looks[name], MARKERS.index(looks[name]["marker"])
            own["marker"] = MARKERS[(place + variants[plain]) % len(MARKERS)]
            own["markerfacecolor"] = own["color"] if own["markerfacecolor"] == "white" else "white"
            own |= {"linestyle": (0, (1, 1)), "markersize": 5, "mew": 0.8}
            variants[plain] += 1
    return looks


def draw_metrics(table: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """A small panel a metric, with one dictionary a row and its interval; and the rows in the order drawn.

    ``table`` has rows of ``metric``, ``dictionary``, ``estimate``, ``low``, ``high`` (NaN where there is no
    interval). Both are drawn in the order in which they come first; a dictionary may lack a metric.
    """
    metrics, dictionaries = list(pd.unique(table["metric"])), list(pd.unique(table["dictionary"]))
    looks = styles(dictionaries)
    rows = -(-len(metrics) // 3)
    across = -(-len(metrics) // rows)
    width = TEXT_WIDTH * (across + 0.5) / 3.5  # half a panel for the names on the left
    height = 0.6 + 0.2 * len(dictionaries)
    fig, axes = panels(len(metrics), across, width=width, height=height, sharey=True)
    for ax, metric in zip(axes, metrics, strict=True):
        values = table[table["metric"] == metric].set_index("dictionary")[["estimate", "low", "high"]]
        for place, name in enumerate(dictionaries):
            if name in values.index:
                estimate, low, high = values.loc[name].astype(float)
                ax.plot([low, high], [place, place], color=looks[name]["color"], marker="", linestyle="-")
                ax.plot([estimate], [place], **looks[name] | {"linestyle": ""})
        ax.set(xlabel=fill(str(metric), LETTERS))
        ax.margins(x=0.1)
        ax.locator_params(axis="x", nbins=4)
        name_rows(ax, dictionaries)
    drawn = [table[table["metric"] == metric] for metric in metrics]
    return fig, pd.concat(drawn, ignore_index=True)


def draw_sweep(swept: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """OrtSAE's settings, a row of panels each, against what they change: means over seeds, bands their range.

    The values of a setting stand side by side at equal distances, so that 0 has a place among powers.
    ``swept`` has a row a training: ``gamma``, ``chunks``, ``every``, ``seed``, and the metrics. The settings
    are "γ" at one chunk and "K" at the paper's γ.
    """
    usual = swept[swept["every"] == 1]
    parts = {
        "γ": usual[usual["chunks"] == 1].groupby("gamma"),
        "K": usual[usual["gamma"] == 0.25].groupby("chunks"),
    }
    metrics = (EXPLAINED, "MeanCosSim", "composition")
    fig, axes = new_figure(len(parts), len(metrics), height=1.7, squeeze=False)
    tables = []
    for row, (setting, part) in zip(axes, parts.items(), strict=True):
        for place, (ax, metric) in enumerate(zip(row, metrics, strict=True)):
            seen, line = part[metric], look(place)
            table = pd.DataFrame({"estimate": seen.mean(), "low": seen.min(), "high": seen.max()})
            steps = np.arange(len(table))
            ax.fill_between(steps, table["low"], table["high"], color=line["color"], alpha=0.15, linewidth=0)
            ax.plot(steps, table["estimate"], **line)
            ax.set_xticks(steps, [f"{value:g}" for value in table.index])
            ax.set(xlabel=setting, ylabel=fill(metric, LETTERS // 2))
            ax.locator_params(axis="y", nbins=5)
            tables.append(table.rename_axis("value").reset_index().assign(setting=setting, metric=metric))
    columns = ["setting", "value", "metric", "estimate", "low", "high"]
    return fig, pd.concat(tables, ignore_index=True)[columns]


def draw_recovery(grid: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Share of features recovered against variance explained at the end of training, a panel a firing; and
    its :func:`~reasoning_features.sae_checks.synthetic.summary`, whose 95% intervals are the bars.

    Worlds larger than the smallest, and longer trainings, have larger marks.
    """
    data = summary(grid)
    smallest, shortest = data["features"].min(), data["steps"].min()
    fig, axes = panels(len(FIRINGS), height=2.9, sharey=True, ylabel=RECOVERED)
    for ax, firing in zip(axes, FIRINGS, strict=True):
        for row in data[data["firing"] == firing].to_dict("records"):
            at, share = row[EXPLAINED], row["recovered"]
            across = [[at - row[f"{EXPLAINED} low"]], [row[f"{EXPLAINED} high"] - at]]
            up = [[share - row["recovered low"]], [row["recovered high"] - share]]
            mark = style(row["architecture"]) | {"linestyle": ""}
            if row["features"] > smallest:
                mark |= {"markersize": 7, "markeredgecolor": "black", "label": "_", "zorder": 1}
            elif row["steps"] > shortest:
                mark |= {"markersize": 7, "label": "_", "zorder": 1}
            # where nothing was found the interval begins above 0: there is no bar below then
            ax.errorbar(at, share, np.maximum(up, 0), across, capsize=2, **mark)
        ax.set(xlabel=EXPLAINED, title=f"{TITLES[firing]} features")
    large = partial(Line2D, [], [], linestyle="", marker="o", ms=7, mfc="0.8")
    durations = sorted(set(data.loc[data["features"] == smallest, "steps"]) - {shortest})
    longer = {f"{steps:,} steps": large(mec="0.8") for steps in durations}
    sizes = sorted(set(data["features"]) - {smallest})
    larger = {f"{features:,} features": large(mec="black") for features in sizes}
    _finish(fig, longer | larger)
    return fig, data


def draw_steps(grid: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Share of features recovered against training steps, a panel a size and firing; and the grid's curves.

    Lines are means over seeds, bands go from the lowest seed to the highest; a longer training, whose
    schedule is longer too, is a line of its own.
    """
    data = curves(grid)
    shown = list(data.groupby(["features", pd.Categorical(data["firing"], FIRINGS)], observed=True))
    fig, axes = panels(len(shown), 2, height=2.2, sharex=True, sharey=True, ylabel=RECOVERED)
    first = int(data.loc[data["step"] > 0, "step"].min())
    for ax, ((features, firing), rows) in zip(axes, shown, strict=True):
        for (architecture, _), runs in rows.groupby(["architecture", "steps"], sort=False):
            line = style(str(architecture))
            seeds = runs.groupby("step")["recovered"].agg(["mean", "min", "max"])
            band = {"color": line["color"], "alpha": 0.15, "linewidth": 0}
            ax.fill_between(seeds.index, seeds["min"], seeds["max"], **band)
            ax.plot(seeds.index, seeds["mean"], **line)
        ax.set(title=f"{features:,} {TITLES[str(firing)]} features", xlabel="training steps")
        ax.set_xscale("symlog", linthresh=first, linscale=0.4)
    axes[0].set_xlim(-first / 5, 1.3 * data["step"].max())  # all panels'; some train for longer
    _finish(fig)
    return fig, data


def draw_frequency(grid: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Share of features recovered by how often they are active, where that differs: trained, and frozen; and
    what is drawn. Bands are Wilson's 95% intervals over the features of all seeds. The axis above says how
    many activations with the feature a training has seen: what it has hardly seen it cannot find.
    """
    unequal = grid[grid["firing"] == "unequal"]
    data = by_frequency(unequal)
    kinds = np.where(data["architecture"].isin(TRAINED), "trained", "frozen")
    shown = list(data.groupby(["features", pd.Categorical(kinds, ["trained", "frozen"])], observed=True))
    fig, axes = panels(len(shown), 3, height=3.1, sharey=True, sharex=True, ylabel=RECOVERED)
    for ax, ((features, kind), rows) in zip(axes, shown, strict=True):
        for (architecture, _), bins in rows.groupby(["architecture", "steps"], sort=False):
            line = style(str(architecture))
            middle = np.sqrt(bins["from"] * bins["to"])
            ax.fill_between(middle, bins["low"], bins["high"], color=line["color"], alpha=0.12, linewidth=0)
            ax.plot(middle, bins["recovered"], **line)
        ax.set(xscale="log", xlabel="probability of being active", title=f"{kind}, {features:,} features")
        ax.xaxis.set_minor_formatter(NullFormatter())  # "6 × 10³" has no room between powers of ten
        samples = int(last(unequal[unequal["features"] == features])["samples"].max())
        times = partial(np.multiply, samples), partial(np.multiply, 1 / samples)
        above = ax.secondary_xaxis("top", functions=times)
        above.xaxis.set_minor_formatter(NullFormatter())
        above.set_xlabel("times active in training")
    _finish(fig)
    return fig, data


def _finish(fig: Figure, more: dict[str, Any] | None = None) -> None:
    """Shares as percentages, and one legend for all panels, in the order of the names, below them."""
    found: dict[str, Any] = {}
    for ax in fig.axes:
        ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        handles, labels = ax.get_legend_handles_labels()
        marks = [mark[0] if isinstance(mark, ErrorbarContainer) else mark for mark in handles]
        found |= dict(zip(labels, marks, strict=True))
    legend_below(fig, {name: found[name] for name in NAMES.values() if name in found} | (more or {}))
