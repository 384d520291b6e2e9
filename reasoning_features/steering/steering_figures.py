"""Figures of steering: screening by class, winners, the arms apart, strength, mediation; each only draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reasoning_features.models.conditions import UNSTEERED
from reasoning_features.reporting.plots import COLOURS, legend_below, look, name_rows, new_figure, panels
from reasoning_features.statistics import MARGIN
from reasoning_features.steering.steering_results import ALL
from reasoning_features.steering.steering_study import Study


def draw_screening(studies: Mapping[str, Study]) -> tuple[Figure, pd.DataFrame]:
    """Gain in accuracy of every screened trial, a row a class, an arm a panel; colour tells the sign of γ.

    Args:
        studies: arm → its study.
    """
    groups = list(dict.fromkeys(g for study in studies.values() for g in study.screening["group"]))
    fig, axes = panels(len(studies), height=0.9 + 0.32 * len(groups), sharey=True, sharex=True)
    rng = np.random.default_rng(0)
    for ax, (arm, study) in zip(axes, studies.items(), strict=True):
        ax.axvspan(-2, 0.5, color="0.9", linewidth=0)
        for place, group in enumerate(groups):
            own = study.screening[study.screening["group"] == group]
            for sign, colour, marker, label in (
                (1, COLOURS[0], "o", "γ > 0"),
                (-1, COLOURS[1], "v", "γ < 0"),
            ):
                part = own[np.sign(own["gamma"]) == sign]
                at = place + rng.uniform(-0.28, 0.28, len(part))
                ax.scatter(100 * part["gain"], at, s=6, color=colour, marker=marker, alpha=0.6, label=label)
            ax.vlines(100 * own["gain"].median(), place - 0.35, place + 0.35, color="black", linewidth=1.4)
        ax.set(title=arm, xlabel="change of accuracy (points)")
        name_rows(ax, groups)
    axes[0].plot([], [], color="black", marker="|", linestyle="", label="median")
    axes[0].fill_between([], [], color="0.9", label="the paper's middle: −2 to 0.5")
    legend_below(fig)
    columns = ["group", "candidate", "feature", "gamma", "share of norm", "correct", "gain", "n"]
    return fig, pd.concat(
        [study.screening[columns].assign(arm=arm) for arm, study in studies.items()], ignore_index=True
    )


def draw_winners(tables: Mapping[str, pd.DataFrame]) -> tuple[Figure, pd.DataFrame]:
    """Gain in accuracy and in thinking tokens of each class's winner over all fresh problems.

    Args:
        tables: arm → :func:`reasoning_features.steering.steering_results.winners_table`.
    """
    every = {arm: table[table["domain"] == ALL].set_index("class") for arm, table in tables.items()}
    groups = [g for g in dict.fromkeys(g for held in every.values() for g in held.index) if g != UNSTEERED]
    height = 0.9 + max(0.32, 0.1 * len(every)) * len(groups)
    fig, axes = new_figure(1, 2, height=height, sharey=True)
    reach = min(0.15 * (len(every) - 1), 0.4)
    shift = np.linspace(-reach, reach, len(every))
    for number, (arm, table) in enumerate(every.items()):
        rows, at = table.reindex(groups), np.arange(len(groups)) + shift[number]
        style = look(number, "color", "marker")
        for ax, (mean, low, high), unit in (
            (axes[0], ("gain", "low", "high"), 100),
            (axes[1], ("longer", "longer low", "longer high"), 1),
        ):
            ax.hlines(at, unit * rows[low], unit * rows[high], color=style["color"], linewidth=1)
            ax.scatter(unit * rows[mean], at, s=14, label=arm, **style)
    for ax, label in zip(axes, ("change of accuracy (points)", "change of thinking tokens"), strict=True):
        ax.axvline(0, color="0.4", linestyle=":", marker="", linewidth=1)
        ax.set(xlabel=label)
        name_rows(ax, groups)
    legend_below(fig)
    return fig, pd.concat([table.assign(arm=arm) for arm, table in tables.items()], ignore_index=True)


def draw_arms_apart(tables: Mapping[str, pd.DataFrame]) -> tuple[Figure, pd.DataFrame]:
    """Each arm's difference between two classes, and the difference of the arms, seed by seed and together.

    Args:
        tables: what ReasonScore is compared with →
            :func:`reasoning_features.steering.steering_results.arms_apart`.
    """
    most = max(map(len, tables.values()))
    fig, axes = panels(len(tables), height=0.8 + 0.3 * most, sharex=True)
    for ax, (against, table) in zip(axes, tables.items(), strict=True):
        at, points = np.arange(len(table)), 100 * table[["estimate", "low", "high"]]
        ax.axvspan(-100 * MARGIN, 100 * MARGIN, color="0.9", linewidth=0, label="counts as none")
        ax.axvline(0, color="0.4", linestyle=":", marker="", linewidth=1)
        ax.hlines(at, points["low"], points["high"], color="black", linewidth=1.2)
        ax.scatter(
            points["estimate"], at, s=18, color="black", marker="D", label="coupled − decoupled", zorder=3
        )
        for number, arm in enumerate(("coupled", "decoupled")):
            mark = look(number, "color", "marker")
            ax.scatter(100 * table[arm], at + 0.22 * (2 * number - 1), s=12, label=arm, **mark)
        ax.set(title=f"ReasonScore −\n{against}", xlabel="accuracy (points)")
        name_rows(ax, [f"seed {seed}" if seed != "all" else "all seeds" for seed in table["seed"]])
    legend_below(fig)
    return fig, pd.concat([t.assign(against=against) for against, t in tables.items()], ignore_index=True)


def draw_strengths(curves: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Accuracy and thinking tokens against strength, a line a vector, with 95% intervals of the mean.

    Args:
        curves: ``vector``, ``how`` (added or clamped), ``gamma``, ``share of norm``, and for ``measure``
            "accuracy" and "thinking tokens" its ``mean``, ``low``, ``high``.
    """
    fig, axes = new_figure(1, 2, height=2.4)
    for ax, measure in zip(axes, ("accuracy", "thinking tokens"), strict=True):
        rows = curves[curves["measure"] == measure]
        for number, ((vector, how), own) in enumerate(rows.groupby(["vector", "how"], sort=False)):
            own = own.sort_values("share of norm")
            style = look(number)
            ax.plot(own["share of norm"], own["mean"], label=f"{vector}, {how}", **style)
            ax.fill_between(
                own["share of norm"], own["low"], own["high"], color=style["color"], alpha=0.15, linewidth=0
            )
        ax.axvline(0, color="0.4", linestyle=":", marker="", linewidth=1)
        ax.set(xlabel="strength (share of the stream's norm)", ylabel=measure)
    legend_below(fig)
    return fig, curves


def draw_spending(curve: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Accuracy against mean thinking tokens, a line a way to spend them; single points are steered answers.

    Args:
        curve: :func:`reasoning_features.steering.equal_tokens.spending_curve`.
    """
    fig, ax = new_figure(height=2.6, width=4.5)
    for number, (method, own) in enumerate(curve.groupby("method", sort=False)):
        own = own.sort_values("tokens")
        style = look(number)
        ax.plot(own["tokens"], own["accuracy"], label=method, **style)
        ax.vlines(own["tokens"], own["low"], own["high"], color=style["color"], linewidth=0.8)
    ax.set(xlabel="mean thinking tokens of a problem", ylabel="accuracy")
    legend_below(fig)
    return fig, curve


def draw_forest(
    table: pd.DataFrame, rows: str, by: str, label: str, unit: float = 1.0
) -> tuple[Figure, pd.DataFrame]:
    """Estimates with intervals, a row a name, a panel a group: ``estimate``, ``low``, ``high``.

    Args:
        table: with the columns named.
        rows: column of the names.
        by: column of the panels.
        label: of the axis.
        unit: what values are multiplied by.
    """
    names, groups = list(table[rows].unique()), list(table[by].unique())
    fig, axes = panels(len(groups), height=0.7 + 0.22 * len(names), sharey=True)
    for ax, group in zip(axes, groups, strict=True):
        own = table[table[by] == group].set_index(rows).reindex(names)
        _forest(ax, own, unit)
        ax.set(title=group, xlabel=label)
        name_rows(ax, names)
    return fig, table


def _forest(ax: Axes, own: pd.DataFrame, unit: float) -> None:
    at: Sequence[int] = range(len(own))
    ax.axvline(0, color="0.4", linestyle=":", marker="", linewidth=1)
    ax.hlines(at, unit * own["low"], unit * own["high"], color=COLOURS[0], linewidth=1.2)
    ax.scatter(unit * own["estimate"], at, s=16, color=COLOURS[0], zorder=3)
