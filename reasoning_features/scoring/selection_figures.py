"""Figure 6 and the figures of what the selection depends on; each function only draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from numpy.typing import NDArray

from reasoning_features.reporting.plots import (
    COLOURS,
    LINES,
    TEXT_WIDTH,
    distribution,
    legend_below,
    look,
    new_figure,
    panels,
)

Array = NDArray[np.float64]
BINS = 30
NULLS = {"random": "random vocabularies", "slot": "mixtures of R and twins"}


def ranked(scores: Mapping[str, Array], kinds: Sequence[str] = ("random", "slot")) -> pd.DataFrame:
    """Scores of R by rank beside the middle 95% of each kind of null at the same rank.

    Args:
        scores: vocabulary → scores ``[f]``; the name's first word is its kind.

    Returns:
        ``rank``, ``R``, and ``<kind> low``, ``<kind> high`` for each kind there is.
    """
    data = {"rank": np.arange(1, len(scores["R"]) + 1), "R": np.sort(scores["R"])[::-1]}
    for kind in kinds:
        curves = [np.sort(values)[::-1] for name, values in scores.items() if name.split()[0] == kind]
        if curves:
            data[f"{kind} low"], data[f"{kind} high"] = np.quantile(curves, [0.025, 0.975], axis=0)
    return pd.DataFrame(data)


def draw_scores(curves: Mapping[str, pd.DataFrame], k: int, quantile: float) -> tuple[Figure, pd.DataFrame]:
    """ReasonScore against log rank, an arm a panel, with the nulls' middle 95%, k and a quantile marked.

    Args:
        curves: arm → :func:`ranked`.
        k: features selected.
        quantile: the paper's (0.997).
    """
    fig, axes = panels(len(curves), height=2.6, sharey=True, ylabel="ReasonScore")
    for ax, (arm, data) in zip(axes, curves.items(), strict=True):
        for (kind, label), colour in zip(NULLS.items(), (COLOURS[5], COLOURS[4]), strict=True):
            if f"{kind} low" in data:
                band = data[f"{kind} low"], data[f"{kind} high"]
                ax.fill_between(data["rank"], *band, color=colour, alpha=0.5, linewidth=0, label=label)
        ax.plot(data["rank"], data["R"], color=COLOURS[0], marker="", label="R")
        threshold = np.quantile(data["R"], quantile)
        ax.axvline(k, color=COLOURS[7], linestyle=LINES[1], marker="", label=f"k = {k}")
        ax.axhline(threshold, color=COLOURS[7], linestyle=LINES[3], marker="", label=f"quantile {quantile}")
        ax.set(xscale="log", xlabel="rank", title=arm)
    legend_below(fig)
    return fig, pd.concat([data.assign(arm=arm) for arm, data in curves.items()], ignore_index=True)


def draw_grid(tables: Mapping[str, pd.DataFrame], k: int) -> tuple[Figure, pd.DataFrame]:
    """Overlap with the default's selection over α × window at one k, and over k for every dial.

    Args:
        tables: arm → :func:`reasoning_features.scoring.selection.grid_table`.
        k: the number of features shown in the left panels.
    """
    alphas = max(table["alpha"].nunique() for table in tables.values())
    fig, axes = new_figure(len(tables), 2, height=max(2.5, 0.9 + 0.2 * alphas), squeeze=False)
    for (left, right), (arm, table) in zip(axes, tables.items(), strict=True):
        at_k = table[(table["k"] == k) & (table["variant"] == "paper")]
        square = at_k.pivot(index="alpha", columns="window", values="overlap")
        square = square[list(dict.fromkeys(at_k["window"]))]
        style = {"annot_kws": {"size": 6}, "cbar_kws": {"label": "Jaccard overlap"}, "cmap": "Blues"}
        sns.heatmap(square, vmin=0, vmax=1, annot=True, fmt=".2f", ax=left, **style)
        left.set(xlabel="window (before-after)", ylabel="α", title=f"{arm}, k = {k}")
        kinds = list(
            dict.fromkeys(table["window"] + table["variant"].map({"paper": "", "released": " released"}))
        )
        for place, kind in enumerate(kinds):
            window, _, released = kind.partition(" ")
            rows = table[(table["window"] == window) & ((table["variant"] == "released") == bool(released))]
            line = rows.groupby("k")["overlap"].mean()
            right.plot(line.index, line, label=kind, **look(place))
        chance = table.groupby("k")["chance"].first()
        right.plot(chance.index, chance, color="0.6", marker="", label="chance")
        right.set(xscale="log", ylim=(0, 1.05), xlabel="k", ylabel="overlap, mean over α", title=arm)
        right.set_xticks(chance.index, [str(count) for count in chance.index])
        right.minorticks_off()
    legend_below(fig, title="window")
    return fig, pd.concat([table.assign(arm=arm) for arm, table in tables.items()], ignore_index=True)


def draw_nulls(tables: Mapping[str, pd.DataFrame], statistic: str, label: str) -> tuple[Figure, pd.DataFrame]:
    """The distribution of a statistic over null vocabularies, with R's and the twins' own, an arm a panel.

    Args:
        tables: arm → :func:`reasoning_features.scoring.selection.null_table`.
        statistic: its column.
        label: the axis' label.
    """
    fig, axes = panels(len(tables), sharex=True)
    for ax, (arm, table) in zip(axes, tables.items(), strict=True):
        edges = np.histogram_bin_edges(table[statistic], bins=BINS)
        for place, (kind, name) in enumerate(NULLS.items()):
            values = table.loc[table["kind"] == kind, statistic]
            style = look(place, "color", "linestyle") | {"marker": "", "label": name}
            if len(values):
                sns.histplot(
                    x=values, bins=edges, stat="proportion", element="step", fill=False, ax=ax, **style
                )
        for kind, colour, line in (("R", COLOURS[7], LINES[0]), ("twins", COLOURS[7], LINES[3])):
            for value in table.loc[table["kind"] == kind, statistic]:
                ax.axvline(value, color=colour, linestyle=line, marker="", label=kind)
        ax.set(xlabel=label, ylabel="share of vocabularies", title=arm)
        ax.locator_params(axis="x", nbins=4)
    legend_below(fig)
    columns = ["vocabulary", "kind", "words_of_R", statistic]
    return fig, pd.concat(
        [table[columns].assign(arm=arm) for arm, table in tables.items()], ignore_index=True
    )


def draw_identity(frames: Mapping[str, pd.DataFrame], k: int) -> tuple[Figure, pd.DataFrame]:
    """ReasonScore against what identity alone gives, and how well a token tells each feature, an arm a row.

    Args:
        frames: arm → one row a live feature with ``score``, scores of identity-only features ``token`` and
            ``token and the one before``, ``f1`` (best single token) and ``chosen``.
        k: features selected.
    """
    fig, axes = new_figure(len(frames), 3, height=2.1, squeeze=False, width=TEXT_WIDTH)
    for row, (arm, frame) in zip(axes, frames.items(), strict=True):
        for ax, column in zip(row[:2], ("token", "token and the one before"), strict=True):
            for picked, colour, marker in ((False, COLOURS[5], "o"), (True, COLOURS[1], "^")):
                points = frame[frame["chosen"] == picked]
                label = f"top {k}" if picked else "other features"
                ax.scatter(points[column], points["score"], s=8, color=colour, marker=marker, label=label)
            ax.axline((0, 0), slope=1, color="0.5", linewidth=0.7, marker="")
            ax.set(xlabel=f"score by identity:\n{column}", ylabel="ReasonScore", title=arm)
        row[0].legend()
        groups = frame.assign(features=np.where(frame["chosen"], f"top {k}", "other features"))
        distribution(row[2], groups.sort_values("chosen"), "f1", "features", bins=20)
        row[2].set(xlabel="F1 of the best single token", title=arm)
        row[2].legend(title="features")
        row[2].set_ylim(top=1.5 * row[2].get_ylim()[1])  # the legend stands above the outlines
    columns = ["feature", "score", "rank", "density", "chosen", "best token", "precision", "recall", "f1"]
    columns += ["token", "token and the one before"]
    drawn = [
        frame[frame.columns.intersection(columns, sort=False)].assign(arm=arm)
        for arm, frame in frames.items()
    ]
    return fig, pd.concat(drawn, ignore_index=True)
