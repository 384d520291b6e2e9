"""Figure 3b and what steering each feature changes; each function only draws."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from reasoning_features.reporting.plots import legend_below, look, name_rows, new_figure
from reasoning_features.statistics import bootstrap_mean


def group_shares(groups: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Share of features in each function group, with its 95% interval over features.

    Args:
        groups: class of features →
            :func:`reasoning_features.interpretation.automatic_interpretation.function_groups`.

    Returns:
        ``class``, ``group``, ``share``, ``low``, ``high``, ``n`` features; groups by their mean share.
    """
    names = pd.concat(groups.values())["group"].unique()
    rows = []
    for kind, frame in groups.items():
        for name in names:
            share = bootstrap_mean(frame["group"] == name)
            told = {"share": share.estimate, "low": share.low, "high": share.high, "n": share.n}
            rows.append({"class": kind, "group": name} | told)
    table = pd.DataFrame(rows)
    order = table.groupby("group")["share"].mean().sort_values(ascending=False, kind="stable").index
    return table.set_index("group").loc[order].reset_index()[["class", "group", "share", "low", "high", "n"]]


def draw_groups(shares: pd.DataFrame) -> Figure:
    """Figure 3b: share of features in each function group, a bar a class of features, with intervals.

    Args:
        shares: :func:`group_shares`.
    """
    classes, groups = list(shares["class"].unique()), list(shares["group"].unique())
    fig, ax = new_figure(height=0.8 + max(0.3, 0.08 * len(classes)) * len(groups))
    thickness = 0.8 / len(classes)
    for number, kind in enumerate(classes):
        rows = shares[shares["class"] == kind].set_index("group").loc[groups]
        places = np.arange(len(groups)) + (number - (len(classes) - 1) / 2) * thickness
        spread = np.abs(rows[["low", "high"]].to_numpy().T - rows["share"].to_numpy())
        style = look(number, "color", "hatch") | {"edgecolor": "white", "linewidth": 0}
        ax.barh(places, rows["share"], thickness, label=f"{kind} (n = {rows['n'].iloc[0]})", **style)
        ax.errorbar(rows["share"], places, xerr=spread, fmt="none", ecolor="0.3", elinewidth=0.8, capsize=1.5)
    name_rows(ax, groups)
    ax.set(xlabel="share of features (95% interval over features)", xlim=(0, None))
    legend_below(fig)
    return fig
