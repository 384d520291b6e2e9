"""Figures of the benchmark of scorers and of the lexical controls; each function only draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from reasoning_features.interpretation.lexical_controls import CLASSES
from reasoning_features.reporting.plots import (
    COLOURS,
    HATCHES,
    legend_below,
    look,
    name_rows,
    new_figure,
    panels,
)

SPREAD = 0.012
"""Distance in κ at which the points of two scorers stand side by side."""


def draw_precision_against_kappa(
    results: pd.DataFrame,
    scorers: Sequence[str],
    bands: pd.DataFrame,
    coupling: pd.DataFrame | None = None,
    metric: str = "average precision",
) -> tuple[Figure, pd.DataFrame]:
    """A metric of some scorers against κ: a point an autoencoder, a line through the means, chance dashed.

    Args:
        results: :func:`reasoning_features.truth.scorer_benchmark.evaluate_all`.
        scorers: which rows to draw.
        bands: :func:`reasoning_features.truth.scorer_benchmark.null_band`; may be empty.
        coupling: :func:`reasoning_features.truth.real_coupling.coupling_of_traces`, where real traces are
            there.
        metric: which metric.
    """
    fig, ax = new_figure(height=3.2)
    rows = results[(results["metric"] == metric) & results["scorer"].isin(list(scorers))]
    band = bands[bands["metric"] == metric] if len(bands) else bands
    if len(band):
        middle = band.groupby("kappa")[["low", "mean", "high"]].mean()
        null = str(band["null"].iloc[0])
        label = "mixtures of R and twins" if null == "slot" else "random vocabularies"
        ax.fill_between(
            middle.index, middle["low"], middle["high"], color="0.85", linewidth=0, label=f"{label}, 95%"
        )
    for place, scorer in enumerate(scorers):
        own = rows[rows["scorer"] == scorer].dropna(subset=["estimate"])
        shift = SPREAD * (place - (len(scorers) - 1) / 2)
        mark = look(place, "color", "marker")
        ax.scatter(own["kappa"] + shift, own["estimate"], s=12, alpha=0.6, linewidths=0, **mark)
        mean = own.groupby("kappa")["estimate"].mean()
        ax.plot(mean.index + shift, mean, label=scorer, **look(place))
    chance = rows.groupby("kappa")["chance"].mean()
    ax.plot(chance.index, chance, color="0.4", linestyle=":", marker="", label="chance (base rate)")
    marked = pd.DataFrame() if coupling is None else coupling
    for row in marked.to_dict("records"):
        ax.axvspan(row["kappa_low"], row["kappa_high"], color=COLOURS[4], alpha=0.2, linewidth=0)
        ax.axvline(row["kappa"], color=COLOURS[4], linestyle="--", marker="")
    if len(marked):
        beyond = " (beyond the scale)" if marked["outside"].all() else ""
        ax.plot([], [], color=COLOURS[4], linestyle="--", marker="", label=f"real labelled traces{beyond}")
    ax.set(xlabel="coupling κ of the words of R to persistence", ylabel=metric)
    legend_below(fig)
    drawn = [rows.assign(series="scorer"), band.assign(series="null"), marked.assign(series="real traces")]
    return fig, pd.concat([part for part in drawn if len(part)], ignore_index=True)


def draw_scorers(
    results: pd.DataFrame, arms: Mapping[str, float], metric: str = "average precision"
) -> tuple[Figure, pd.DataFrame]:
    """Scorers as rows, arms as columns: a dot and interval an autoencoder, the mean as a bar, chance dashed.

    Args:
        results: :func:`reasoning_features.truth.scorer_benchmark.evaluate_all`.
        arms: title → κ of the benchmarks in that column.
        metric: which metric.
    """
    rows = results[results["metric"] == metric]
    scorers = list(dict.fromkeys(rows["scorer"]))
    height = 0.9 + 0.36 * len(scorers)
    fig, axes = panels(len(arms), height=height, sharex=True, sharey=True)
    for ax, (arm, kappa) in zip(axes, arms.items(), strict=True):
        for place, scorer in enumerate(scorers):
            own = rows[(rows["scorer"] == scorer) & (rows["kappa"] == kappa)].dropna(subset=["estimate"])
            labels = bool(rows.loc[rows["scorer"] == scorer, "labels"].any())
            at = place + np.linspace(-0.28, 0.28, len(own)) if len(own) > 1 else np.full(len(own), place)
            colour, marker = (COLOURS[1], "s") if labels else (COLOURS[0], "o")
            ax.hlines(at, own["low"], own["high"], color=colour, linewidth=0.7, alpha=0.6)
            ax.scatter(own["estimate"], at, s=7, color=colour, marker=marker)
            if len(own):
                ax.vlines(own["estimate"].mean(), place - 0.4, place + 0.4, color="black", linewidth=1.4)
        chance = rows.loc[rows["kappa"] == kappa, "chance"].mean()
        ax.axvline(chance, color="0.4", linestyle=":", marker="")
        ax.set(title=arm, xlabel=metric)
        name_rows(ax, scorers)
    for label, colour, marker in (("no labels", COLOURS[0], "o"), ("uses labels", COLOURS[1], "s")):
        ax.plot([], [], color=colour, marker=marker, linestyle="-", linewidth=0.7, label=label)
    ax.plot([], [], color="black", marker="|", linestyle="", label="mean over autoencoders")
    ax.plot([], [], color="0.4", linestyle=":", marker="", label="chance")
    legend_below(fig)
    return fig, rows[rows["kappa"].isin(list(arms.values()))].reset_index(drop=True)


def draw_lexical(shares: Mapping[str, pd.DataFrame]) -> tuple[Figure, pd.DataFrame]:
    """Shares of token-driven, partly and context-driven features, a bar a group, an arm a panel.

    The part of each share whose features are truly causal is hatched.

    Args:
        shares: arm → :func:`reasoning_features.interpretation.lexical_controls.class_shares`.
    """
    most = max(table["group"].nunique() for table in shares.values())
    fig, axes = panels(len(shares), height=0.8 + 0.35 * most)
    for ax, (arm, table) in zip(axes, shares.items(), strict=True):
        groups = list(dict.fromkeys(table["group"]))
        for place, group in enumerate(groups):
            left = 0.0
            own = table[table["group"] == group].set_index("class")
            for kind, colour in zip(CLASSES, (COLOURS[1], COLOURS[4], COLOURS[0]), strict=True):
                share, causal = float(own.loc[kind, "share"]), float(own.loc[kind, "causal"])
                ax.barh(place, share, 0.65, left, color=colour, label=kind)
                if causal > 0:
                    mark: Any = {"color": "none", "edgecolor": "white", "hatch": HATCHES[1], "linewidth": 0}
                    ax.barh(place, causal, 0.65, left, **mark)
                left += share
        counts = table.groupby("group", sort=False)["features"].first()
        if (table["causal"] > 0).any():
            ax.barh(
                [0], [0], color="0.7", edgecolor="white", hatch=HATCHES[1], linewidth=0, label="truly causal"
            )
        ax.set(title=arm, xlim=(0, 1), xlabel="share of features")
        name_rows(ax, [f"{group} (n = {counts[group]})" for group in groups])
    legend_below(fig)
    return fig, pd.concat([table.assign(arm=arm) for arm, table in shares.items()], ignore_index=True)
