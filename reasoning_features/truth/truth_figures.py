"""Figures of where decisions are taken and which features take part; each function only draws."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from reasoning_features.reporting.plots import COLOURS, LINES, legend_below, look, name_rows, panels
from reasoning_features.truth.causal_truth import Effects
from reasoning_features.truth.patching import GROUPS
from reasoning_features.truth.whole_trace import PASSES

GROUP_NAMES = {
    "decision": "the decision's token",
    "opening": "its sentence so far",
    "before": "before its sentence",
    "all": "everything",
}
PASS_NAMES = {
    "neither": "pass at neither",
    "decision": "at the decision alone",
    "trace": "over the trace alone",
    "both": "at both",
}
THRESHOLDS = (-30, -10, -3, -1, 0, 1, 3, 10, 30)
"""Ticks of effects in units of their thresholds, on an axis that is linear between −1 and 1."""
JITTER = 0.3
"""Largest distance of a point from the middle of its column."""
COLUMNS = 2


def effect_table(effects: Effects) -> pd.DataFrame:
    """Features and random directions of one measurement, one row each.

    Returns:
        ``feature`` (−1: a random direction), ``effect`` with its 95% interval ``low``, ``high``, ``size``,
        ``threshold``, ``true`` and ``rank`` by |effect| from 1; of random directions effect and size alone.
    """
    low, high = effects.interval()
    features = pd.DataFrame(
        {
            "feature": effects.features,
            "effect": effects.effect,
            "low": low,
            "high": high,
            "size": effects.size,
            "threshold": effects.threshold,
            "true": effects.true,
        }
    )
    features["rank"] = features["effect"].abs().rank(ascending=False, method="first").astype(int)
    random = pd.DataFrame({"effect": effects.random_effect, "size": effects.random_size})
    return pd.concat([features, random.assign(feature=-1, true=False)], ignore_index=True)


def draw_patching(tables: Mapping[str, pd.DataFrame]) -> tuple[Figure, pd.DataFrame]:
    """Share of the change of log-odds that each group of positions carries, by block, an arm a panel.

    Args:
        tables: arm → :func:`reasoning_features.truth.patching.patch`.
    """
    ylabel = "share of the change\nof log-odds"
    fig, axes = panels(len(tables), height=2.6, sharey=True, ylabel=ylabel)
    for ax, (arm, table) in zip(axes, tables.items(), strict=True):
        for place, group in enumerate(GROUPS):
            rows = table[table["group"] == group]
            # side by side, so that intervals do not hide one another
            x = rows["layer"] + (place - (len(GROUPS) - 1) / 2) * 0.08
            spread = np.abs(rows[["low", "high"]].to_numpy().T - rows["share"].to_numpy())
            ax.errorbar(x, rows["share"], spread, label=GROUP_NAMES[group], capsize=2, **look(place))
        ax.axhline(0, color="0.6", linewidth=0.7, marker="")
        ax.set(xlabel="after block", title=f"{arm}\n{table['change'].iloc[0]:+.2f} nats")
        ax.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    legend_below(fig)
    return fig, pd.concat([table.assign(arm=arm) for arm, table in tables.items()], ignore_index=True)


def draw_effects(effects: Mapping[str, Effects]) -> tuple[Figure, pd.DataFrame]:
    """Signed effects by rank with what random directions of equal norm reach, one measurement a panel.

    Args:
        effects: what is measured (a kind of decision, a place) → its effects.
    """
    fig, axes = panels(len(effects), COLUMNS, height=2.3)
    tables = {name: effect_table(held) for name, held in effects.items()}
    for ax, (name, table) in zip(axes, tables.items(), strict=True):
        features = table[table["feature"] >= 0].sort_values("rank")
        band = features["threshold"]
        ax.vlines(features["rank"], -band, band, color="0.8", linewidth=1.5, label="random directions, 99%")
        for passed, colour, marker, label in (
            (False, COLOURS[0], "o", "other features"),
            (True, COLOURS[1], "^", "features that pass"),
        ):
            rows = features[features["true"] == passed]
            spread = np.abs(rows[["low", "high"]].to_numpy().T - rows["effect"].to_numpy())
            style: Any = {"color": colour, "marker": marker, "linestyle": "", "markersize": 3}
            ax.errorbar(rows["rank"], rows["effect"], spread, label=label, elinewidth=0.7, **style)
        count = int(features["true"].sum())
        ax.set(xscale="log", xlabel="rank by |effect|", title=f"{name}\n{count} of {len(features)} pass")
        ax.set_ylabel("change of log-odds\nwhen ablated (nats)")
    legend_below(fig)
    return fig, pd.concat([table.assign(measured=name) for name, table in tables.items()], ignore_index=True)


def draw_effect_against_size(effects: Mapping[str, Effects]) -> tuple[Figure, pd.DataFrame]:
    """|Effect| against the edit's mean norm: features, random directions and the threshold, log scales.

    Args:
        effects: what is measured → its effects.
    """
    fig, axes = panels(len(effects), COLUMNS, height=2.3, sharey=True, ylabel="|change of log-odds|\n(nats)")
    tables = {name: effect_table(held) for name, held in effects.items()}
    for ax, (name, table) in zip(axes, tables.items(), strict=True):
        random = table["feature"] < 0
        for rows, colour, marker, label in (
            (table[random], "0.7", ".", "random directions"),
            (table[~random & ~table["true"].astype(bool)], COLOURS[0], "o", "other features"),
            (table[~random & table["true"].astype(bool)], COLOURS[1], "^", "features that pass"),
        ):
            ax.scatter(rows["size"], rows["effect"].abs(), s=8, color=colour, marker=marker, label=label)
        line = table[~random].sort_values("size")
        ax.plot(line["size"], line["threshold"], color=COLOURS[7], marker="", label="threshold")
        slope = effects[name].slope
        ax.set(xscale="log", yscale="log", xlabel="mean norm of the edit", title=f"{name}\nslope {slope:.2f}")
        # "0.2" has room where "2 × 10⁻¹" has none
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_minor_formatter(NullFormatter())
    legend_below(fig)
    return fig, pd.concat([table.assign(measured=name) for name, table in tables.items()], ignore_index=True)


def draw_places(tables: Mapping[str, pd.DataFrame]) -> tuple[Figure, pd.DataFrame]:
    """Change on ablation over the whole trace against that at the decision, one measurement a panel.

    Both are in units of the feature's own threshold there, so that what random directions of its norm do lies
    between the dashed lines in every panel.

    Args:
        tables: what is measured → :func:`reasoning_features.truth.whole_trace.compare_places`.
    """
    ylabel = "ablated over the trace\n/ threshold"
    fig, axes = panels(len(tables), COLUMNS, height=2.3, sharey=True, ylabel=ylabel)
    spans = [_beyond(table, p).abs().max().max() for table in tables.values() for p in ("", "trace ")]
    limit = 1.5 * max(1, *spans)
    for ax, (name, table) in zip(axes, tables.items(), strict=True):
        here, over = _beyond(table, ""), _beyond(table, "trace ")
        for place, passes in enumerate(PASSES):
            rows = table["passes"] == passes
            style = look(place) | {"linestyle": "", "markersize": 2.5}
            if passes == "neither":
                style["color"] = "0.6"
            spread = [
                np.abs(part.loc[rows, ["low", "high"]].to_numpy().T - part.loc[rows, "effect"].to_numpy())
                for part in (over, here)
            ]
            x, y = here.loc[rows, "effect"], over.loc[rows, "effect"]
            ax.errorbar(x, y, *spread, label=PASS_NAMES[passes], elinewidth=0.6, **style)
        chosen = table["chosen"]
        ring: Any = {
            "facecolors": "none",
            "edgecolors": COLOURS[7],
            "marker": "o",
            "linewidths": 0.7,
            "zorder": 4,
        }
        ax.scatter(here.loc[chosen, "effect"], over.loc[chosen, "effect"], s=26, label="chosen", **ring)
        for line in (-1, 1):
            ax.axhline(line, color="0.4", linestyle=LINES[1], linewidth=0.7, marker="")
            ax.axvline(line, color="0.4", linestyle=LINES[1], linewidth=0.7, marker="")
        ticks = [tick for tick in THRESHOLDS if abs(tick) < limit]
        for axis in ("x", "y"):
            getattr(ax, f"set_{axis}scale")("symlog", linthresh=1)
            getattr(ax, f"set_{axis}ticks")(ticks, [f"{tick:g}" for tick in ticks])
        counts = table["passes"].value_counts()
        both, here_alone, over_alone = (int(counts.get(p, 0)) for p in ("both", "decision", "trace"))
        told = f"pass: {here_alone + both} at the decision, {over_alone + both} over, {both} both"
        ax.set(xlabel="ablated at the decision / threshold", title=f"{name}\n{told}")
        ax.set(xlim=(-limit, limit), ylim=(-limit, limit))
    legend_below(fig)
    return fig, pd.concat([table.assign(measured=name) for name, table in tables.items()], ignore_index=True)


def _beyond(table: pd.DataFrame, prefix: str) -> pd.DataFrame:
    """Changes at one place with their intervals, in units of the feature's threshold there."""
    effect = table["over the trace" if prefix else "at the decision"]
    found = pd.DataFrame({"effect": effect, "low": table[f"{prefix}low"], "high": table[f"{prefix}high"]})
    return found.div(table[f"{prefix}threshold"], axis=0)


def draw_decodability(
    tables: Mapping[str, pd.DataFrame], causal: Mapping[str, Collection[int]]
) -> tuple[Figure, pd.DataFrame]:
    """Held-out AUC of every feature for each label, a row a label, an arm a panel; causal features marked.

    Args:
        tables: arm → :func:`reasoning_features.truth.decodability.decodability`.
        causal: arm → features that pass causal truth.
    """
    marked = [
        table.assign(arm=arm, causal=table["feature"].isin(list(causal[arm])))
        for arm, table in tables.items()
    ]
    data = pd.concat(marked, ignore_index=True)
    labels = list(pd.unique(data["label"]))
    fig, axes = panels(len(tables), height=0.8 + 0.45 * len(labels), sharex=True, sharey=True)
    for ax, table in zip(axes, marked, strict=True):
        y = table["label"].map(labels.index) + np.random.default_rng(0).uniform(-JITTER, JITTER, len(table))
        for passed, colour, marker, size, label in (
            (False, COLOURS[5], "o", 3, "other features"),
            (True, COLOURS[1], "^", 14, "causal features"),
        ):
            rows = table["causal"] == passed
            ax.scatter(table.loc[rows, "auc"], y[rows], s=size, color=colour, marker=marker, label=label)
        ax.axvline(0.5, color="0.4", linestyle=LINES[1], linewidth=0.8, marker="", label="chance")
        ax.set(title=table["arm"].iloc[0], xlabel="AUC, held-out traces")
        name_rows(ax, labels)
    legend_below(fig)
    return fig, data
