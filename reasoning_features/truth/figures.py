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
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

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
    points,
)
from reasoning_features.truth.benchmark import PASSES
from reasoning_features.truth.effects import GROUPS, Effects

GROUP_NAMES = ("the decision's token", "its sentence so far", "before its sentence", "everything")
PASS_NAMES = ("pass at neither", "at the decision alone", "over the trace alone", "at both")
# whether a feature's effect passes → label, colour, marker
PASSED = {False: ("other features", COLOURS[0], "o"), True: ("features that pass", COLOURS[1], "^")}
# ticks of effects in units of their thresholds, on an axis that is linear between −1 and 1
THRESHOLDS = (-30, -10, -3, -1, 0, 1, 3, 10, 30)
GUIDE: dict[str, Any] = {"color": "0.4", "linestyle": LINES[1], "linewidth": 0.7, "marker": ""}
DOTTED: dict[str, Any] = {"color": "0.4", "linestyle": ":", "marker": ""}
JITTER, SPREAD = 0.3, 0.012  # of a point from its row; in κ, of two scorers that stand side by side


def _stacked(tables: Mapping[str, pd.DataFrame], key: str) -> pd.DataFrame:
    """Tables below one another, their titles in the column ``key``."""
    return pd.concat([table.assign(**{key: title}) for title, table in tables.items()], ignore_index=True)


def effect_table(effects: Effects) -> pd.DataFrame:
    """Features and random directions (``feature`` −1, with effect and size alone), one row each.

    ``effect`` on ablation has its 95% interval ``low``, ``high``; ``rank`` is by its size, from 1.
    """
    low, high = np.quantile(-effects.resampled(2000, 0), [0.025, 0.975], axis=0)
    columns = {"feature": effects.features, "effect": effects.change, "low": low, "high": high}
    columns |= {"size": effects.size, "threshold": effects.threshold, "true": effects.true}
    features = pd.DataFrame(columns)
    features["rank"] = features["effect"].abs().rank(ascending=False, method="first").astype(int)
    random = pd.DataFrame({"effect": effects.random[0], "size": effects.random[2]})
    return pd.concat([features, random.assign(feature=-1, true=False)], ignore_index=True)


def draw_patching(tables: Mapping[str, pd.DataFrame]) -> tuple[Figure, pd.DataFrame]:
    """Share of the change of log-odds that each group of positions carries, by block
    (:func:`reasoning_features.truth.effects.patch`).
    """
    fig, axes = panels(len(tables), height=2.6, sharey=True, ylabel="share of the change\nof log-odds")
    for ax, (title, table) in zip(axes, tables.items(), strict=True):
        for place, (group, label) in enumerate(zip(GROUPS, GROUP_NAMES, strict=True)):
            rows = table[table["group"] == group]
            # side by side, so that intervals do not hide one another
            x = rows["layer"] + (place - (len(GROUPS) - 1) / 2) * 0.08
            points(ax, x, rows, "share", ("low", "high"), label, place)
        ax.axhline(0, color="0.6", linewidth=0.7, marker="")
        ax.set(xlabel="after block", title=f"{title}\n{table['change'].iloc[0]:+.2f} nats")
        ax.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    legend_below(fig)
    return fig, _stacked(tables, "arm")


def draw_effects(effects: Mapping[str, Effects]) -> tuple[Figure, pd.DataFrame]:
    """Signed effects by rank with what random directions of equal norm reach."""
    fig, axes = panels(len(effects), 2, height=2.3)
    tables = {title: effect_table(own) for title, own in effects.items()}
    for ax, (title, table) in zip(axes, tables.items(), strict=True):
        features = table[table["feature"] >= 0].sort_values("rank")
        band = features["threshold"]
        ax.vlines(features["rank"], -band, band, color="0.8", linewidth=1.5, label="random directions, 99%")
        for passed, (label, colour, marker) in PASSED.items():
            rows = features[features["true"] == passed]
            ends = np.abs(rows[["low", "high"]].to_numpy().T - rows["effect"].to_numpy())
            style: Any = {"color": colour, "marker": marker, "linestyle": "", "markersize": 3}
            ax.errorbar(rows["rank"], rows["effect"], ends, label=label, elinewidth=0.7, **style)
        count = int(features["true"].sum())
        ax.set(xscale="log", xlabel="rank by |effect|", title=f"{title}\n{count} of {len(features)} pass")
        ax.set_ylabel("change of log-odds\nwhen ablated (nats)")
    legend_below(fig)
    return fig, _stacked(tables, "measured")


def draw_effect_against_size(effects: Mapping[str, Effects]) -> tuple[Figure, pd.DataFrame]:
    """|Effect| against the edit's mean norm: features, random directions and the threshold, log scales."""
    fig, axes = panels(len(effects), 2, height=2.3, sharey=True, ylabel="|change of log-odds|\n(nats)")
    tables = {title: effect_table(own) for title, own in effects.items()}
    for ax, (title, table) in zip(axes, tables.items(), strict=True):
        random, features = table[table["feature"] < 0], table[table["feature"] >= 0]
        ax.scatter(
            random["size"], random["effect"].abs(), s=8, color="0.7", marker=".", label="random directions"
        )
        for passed, (label, colour, marker) in PASSED.items():
            rows = features[features["true"] == passed]
            ax.scatter(rows["size"], rows["effect"].abs(), s=8, color=colour, marker=marker, label=label)
        line = features.sort_values("size")
        ax.plot(line["size"], line["threshold"], color=COLOURS[7], marker="", label="threshold")
        ax.set(xscale="log", yscale="log", xlabel="mean norm of the edit")
        ax.set_title(f"{title}\nslope {effects[title].slope:.2f}")
        ax.xaxis.set_major_locator(LogLocator(numticks=6))
        ax.xaxis.set_minor_locator(NullLocator())
    legend_below(fig)
    return fig, _stacked(tables, "measured")


def draw_places(tables: Mapping[str, pd.DataFrame]) -> tuple[Figure, pd.DataFrame]:
    """Change on ablation over the whole trace against that at the decision
    (:func:`reasoning_features.truth.benchmark.compare_places`).

    Both are in units of the feature's own threshold there, so that what random directions of its norm do lies
    between the dashed lines in every panel.
    """
    ylabel = "ablated over the trace\n/ threshold"
    fig, axes = panels(len(tables), 2, height=2.3, sharey=True, ylabel=ylabel)
    scaled = {title: (_beyond(table, ""), _beyond(table, "trace ")) for title, table in tables.items()}
    limit = 1.5 * max(1, *(part.abs().max().max() for both in scaled.values() for part in both))
    for ax, (title, table) in zip(axes, tables.items(), strict=True):
        here, over = scaled[title]
        for place, (passes, label) in enumerate(zip(PASSES, PASS_NAMES, strict=True)):
            rows = table["passes"] == passes
            style = look(place) | {"linestyle": "", "markersize": 2.5}
            style |= {"color": "0.6"} if passes == "neither" else {}
            x, y = here[rows], over[rows]
            ends = (np.abs(part[["low", "high"]].to_numpy().T - part["effect"].to_numpy()) for part in (y, x))
            ax.errorbar(x["effect"], y["effect"], *ends, label=label, elinewidth=0.6, **style)
        ring: Any = {"facecolors": "none", "edgecolors": COLOURS[7], "linewidths": 0.7, "zorder": 4}
        x, y = here.loc[table["chosen"], "effect"], over.loc[table["chosen"], "effect"]
        ax.scatter(x, y, s=26, label="chosen", marker="o", **ring)
        for line in (-1, 1):
            ax.axhline(line, **GUIDE)
            ax.axvline(line, **GUIDE)
        ticks = [tick for tick in THRESHOLDS if abs(tick) < limit]
        for name in ("x", "y"):
            getattr(ax, f"set_{name}scale")("symlog", linthresh=1)
            getattr(ax, f"set_{name}ticks")(ticks, [f"{tick:g}" for tick in ticks])
        counts = table["passes"].value_counts()
        both, here_alone, over_alone = (int(counts.get(p, 0)) for p in ("both", "decision", "trace"))
        passing = f"pass: {here_alone + both} at the decision, {over_alone + both} over, {both} both"
        ax.set(xlabel="ablated at the decision / threshold", title=f"{title}\n{passing}")
        ax.set(xlim=(-limit, limit), ylim=(-limit, limit))
    legend_below(fig)
    return fig, _stacked(tables, "measured")


def _beyond(table: pd.DataFrame, prefix: str) -> pd.DataFrame:
    """Changes at one place with their intervals, in units of the feature's threshold there."""
    effect = table["over the trace" if prefix else "at the decision"]
    changes = pd.DataFrame({"effect": effect, "low": table[f"{prefix}low"], "high": table[f"{prefix}high"]})
    return changes.div(table[f"{prefix}threshold"], axis=0)


def draw_decodability(
    tables: Mapping[str, pd.DataFrame], causal: Mapping[str, Collection[int]]
) -> tuple[Figure, pd.DataFrame]:
    """Held-out AUC of every feature for each label, a row a label; ``causal`` features of each variant marked
    (:func:`reasoning_features.truth.decisions.decodability`).
    """
    data = _stacked(tables, "arm")
    causes = [table["feature"].isin(list(causal[variant])) for variant, table in tables.items()]
    data["causal"] = np.concatenate(causes)
    labels = list(pd.unique(data["label"]))
    fig, axes = panels(len(tables), height=0.8 + 0.45 * len(labels), sharex=True, sharey=True)
    for ax, (variant, table) in zip(axes, data.groupby("arm", sort=False), strict=True):
        y = table["label"].map(labels.index) + np.random.default_rng(0).uniform(-JITTER, JITTER, len(table))
        for passed, colour, marker, size, label in (
            (False, COLOURS[5], "o", 3, "other features"),
            (True, COLOURS[1], "^", 14, "causal features"),
        ):
            rows = table["causal"] == passed
            ax.scatter(table.loc[rows, "auc"], y[rows], s=size, color=colour, marker=marker, label=label)
        ax.axvline(0.5, label="chance", **GUIDE)
        ax.set(title=variant, xlabel="AUC, held-out traces")
        name_rows(ax, labels)
    legend_below(fig)
    return fig, data


def _of(results: pd.DataFrame, metric: str, decision: str) -> pd.DataFrame:
    """Rows of one metric and kind of decision, without the column that names the kind."""
    rows = results[(results["metric"] == metric) & (results["decision"] == decision)]
    return rows.drop(columns="decision")


def draw_precision_against_kappa(
    results: pd.DataFrame,
    scorers: Sequence[str],
    bands: pd.DataFrame,
    coupling: pd.DataFrame | None = None,
    metric: str = "average precision",
) -> tuple[Figure, pd.DataFrame]:
    """A metric of some scorers against κ: a point an autoencoder, a line through the means, chance dashed.

    The results (:func:`reasoning_features.truth.benchmark.evaluate_kinds`) are those on persistence.

    The band of other vocabularies (:func:`reasoning_features.truth.benchmark.null_band`) may be empty; the
    ``coupling`` of real traces is :func:`reasoning_features.truth.decisions.coupling_of_traces`.
    """
    fig, ax = new_figure(height=3.2)
    rows = _of(results, metric, "persistence")
    rows = rows[rows["scorer"].isin(list(scorers))]
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
    ax.plot(chance.index, chance, label="chance (base rate)", **DOTTED)
    marked = pd.DataFrame() if coupling is None else coupling
    for row in marked.to_dict("records"):
        beyond = " (beyond the scale)" if marked["outside"].all() else ""
        ax.axvspan(row["kappa_low"], row["kappa_high"], color=COLOURS[4], alpha=0.2, linewidth=0)
        style = {"color": COLOURS[4], "linestyle": "--", "marker": ""}
        ax.axvline(row["kappa"], label=f"real labelled traces{beyond}", **style)
    ax.set(xlabel="coupling κ of the words of R to persistence", ylabel=metric)
    legend_below(fig)
    drawn = [rows.assign(series="scorer"), band.assign(series="null"), marked.assign(series="real traces")]
    return fig, pd.concat([part for part in drawn if len(part)], ignore_index=True)


def draw_scorers(results: pd.DataFrame, decision: str) -> tuple[Figure, pd.DataFrame]:
    """Average precision by κ, scorers as rows: a dot and interval an autoencoder, the mean as a bar.

    Of the results (:func:`reasoning_features.truth.benchmark.evaluate_kinds`) one kind of decision is drawn.
    """
    metric = "average precision"
    rows = _of(results, metric, decision)
    scorers = list(dict.fromkeys(rows["scorer"]))
    by_kappa = rows.groupby("kappa")
    fig, axes = panels(len(by_kappa), height=0.9 + 0.36 * len(scorers), sharex=True, sharey=True)
    for ax, (kappa, of_kappa) in zip(axes, by_kappa, strict=True):
        for place, scorer in enumerate(scorers):
            own = of_kappa[of_kappa["scorer"] == scorer].dropna(subset=["estimate"])
            labels = bool(own["labels"].any())
            at = place + np.linspace(-0.28, 0.28, len(own)) if len(own) > 1 else np.full(len(own), place)
            colour, marker = (COLOURS[1], "s") if labels else (COLOURS[0], "o")
            ax.hlines(at, own["low"], own["high"], color=colour, linewidth=0.7, alpha=0.6)
            ax.scatter(own["estimate"], at, s=7, color=colour, marker=marker)
            if len(own):
                ax.vlines(own["estimate"].mean(), place - 0.4, place + 0.4, color="black", linewidth=1.4)
        ax.axvline(of_kappa["chance"].mean(), **DOTTED)
        ax.set(title=f"κ = {kappa:g}", xlabel=metric)
        name_rows(ax, scorers)
    for label, colour, marker in (("no labels", COLOURS[0], "o"), ("uses labels", COLOURS[1], "s")):
        ax.plot([], [], color=colour, marker=marker, linestyle="-", linewidth=0.7, label=label)
    ax.plot([], [], color="black", marker="|", linestyle="", label="mean over autoencoders")
    ax.plot([], [], label="chance", **DOTTED)
    legend_below(fig)
    return fig, rows.reset_index(drop=True)


def draw_lexical(shares: Mapping[str, pd.DataFrame]) -> tuple[Figure, pd.DataFrame]:
    """Shares of token-driven, partly and context-driven features, a bar a group; hatched: truly causal
    (:func:`reasoning_features.interpretation.lexical_controls.class_shares`).
    """
    most = max(table["group"].nunique() for table in shares.values())
    hatched: Any = {"edgecolor": "white", "hatch": HATCHES[1], "linewidth": 0}
    fig, axes = panels(len(shares), height=0.8 + 0.35 * most)
    for ax, (title, table) in zip(axes, shares.items(), strict=True):
        groups = list(dict.fromkeys(table["group"]))
        for place, group in enumerate(groups):
            left = 0.0
            own = table[table["group"] == group].set_index("class")
            for kind, colour in zip(CLASSES, (COLOURS[1], COLOURS[4], COLOURS[0]), strict=True):
                share, causal = float(own.loc[kind, "share"]), float(own.loc[kind, "causal"])
                ax.barh(place, share, 0.65, left, color=colour, label=kind)
                if causal > 0:
                    ax.barh(place, causal, 0.65, left, color="none", **hatched)
                left += share
        counts = table.groupby("group", sort=False)["features"].first()
        if (table["causal"] > 0).any():
            ax.barh([0], [0], color="0.7", label="truly causal", **hatched)
        ax.set(title=title, xlim=(0, 1), xlabel="share of features")
        name_rows(ax, [f"{group} (n = {counts[group]})" for group in groups])
    legend_below(fig)
    return fig, _stacked(shares, "arm")
