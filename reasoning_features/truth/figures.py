"""Figures of ablation effects and of the benchmark of scorers; each function only draws.

Each takes what it draws by title (a variant, or a variant and a kind of decision), a panel a title, and gives
the figure and the plotted numbers.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from reasoning_features.interpretation.lexical_controls import CLASSES
from reasoning_features.reporting.plots import (
    COLOURS,
    HATCHES,
    LINES,
    legend_below,
    look,
    name_rows,
    new_figure,
    panels,
)
from reasoning_features.truth.benchmark import PASSES
from reasoning_features.truth.effects import GROUPS, Effects

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
SPREAD = 0.012
"""Distance in κ at which the points of two scorers stand side by side."""


def effect_table(effects: Effects) -> pd.DataFrame:
    """Features and random directions of one measurement, one row each.

    Returns:
        ``feature`` (−1: a random direction), ``effect`` with its 95% interval ``low``, ``high``, ``size``,
        ``threshold``, ``true`` and ``rank`` by |effect| from 1; of random directions effect and size alone.
    """
    low, high = np.quantile(-effects.resampled(2000, 0), [0.025, 0.975], axis=0)
    features = pd.DataFrame(
        {
            "feature": effects.features,
            "effect": effects.change,
            "low": low,
            "high": high,
            "size": effects.size,
            "threshold": effects.threshold,
            "true": effects.true,
        }
    )
    features["rank"] = features["effect"].abs().rank(ascending=False, method="first").astype(int)
    random = pd.DataFrame({"effect": effects.random[0], "size": effects.random[2]})
    return pd.concat([features, random.assign(feature=-1, true=False)], ignore_index=True)


def draw_patching(tables: Mapping[str, pd.DataFrame]) -> tuple[Figure, pd.DataFrame]:
    """Share of the change of log-odds that each group of positions carries, by block, an arm a panel.

    Args:
        tables: arm → :func:`reasoning_features.truth.effects.patch`.
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
        tables: what is measured → :func:`reasoning_features.truth.benchmark.compare_places`.
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
        tables: arm → :func:`reasoning_features.truth.probes.decodability`.
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


def draw_precision_against_kappa(
    results: pd.DataFrame,
    scorers: Sequence[str],
    bands: pd.DataFrame,
    coupling: pd.DataFrame | None = None,
    metric: str = "average precision",
) -> tuple[Figure, pd.DataFrame]:
    """A metric of some scorers against κ: a point an autoencoder, a line through the means, chance dashed.

    Args:
        results: :func:`reasoning_features.truth.benchmark.evaluate_all`.
        scorers: which rows to draw.
        bands: :func:`reasoning_features.truth.benchmark.null_band`; may be empty.
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
        results: :func:`reasoning_features.truth.benchmark.evaluate_all`.
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
