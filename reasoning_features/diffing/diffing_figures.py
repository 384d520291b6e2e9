"""Figures of model diffing and of features over depth; each function only draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reasoning_features.diffing.cross_layer import VERDICTS
from reasoning_features.reporting.plots import ACROSS, COLOURS, LINES, legend_below, look, name_rows, panels

ARROW = "→"
OFFSET = 0.16
"""Largest distance of two groups' marks at one stage; all of a stage's lie within 0.8."""


def stage_name(path: str) -> str:
    """A path of stages as figures write it."""
    return path.replace("-", ARROW)


def draw_presence(
    tables: Mapping[str, Mapping[str, pd.DataFrame]], paper: Mapping[str, float]
) -> tuple[Figure, pd.DataFrame]:
    """Figure 4: share of each group that is present at every stage, an arm a column, a threshold a row.

    Args:
        tables: threshold's name → arm → :func:`reasoning_features.diffing.presence.presence`; the stages in
            the order in which they are drawn.
        paper: the paper's share by stage, where it measured the same.
    """
    arms = list(dict.fromkeys(arm for held in tables.values() for arm in held))
    shown = [(threshold, arm) for threshold in tables for arm in arms]
    across = min(len(arms), ACROSS)
    ylabel = "share of tested\nfeatures present"
    fig, axes = panels(len(shown), across, height=2.7, sharex="col", sharey=True, ylabel=ylabel)
    for ax, (threshold, arm) in zip(axes, shown, strict=True):
        _presence(ax, tables[threshold][arm], paper)
        ax.set_title(f"{arm}\n{threshold}")
    legend_below(fig)
    parts = [t.assign(arm=arm, at=name) for name, held in tables.items() for arm, t in held.items()]
    return fig, pd.concat(parts, ignore_index=True)


def _presence(ax: Axes, table: pd.DataFrame, paper: Mapping[str, float]) -> None:
    stages, groups = list(dict.fromkeys(table["stage"])), list(dict.fromkeys(table["group"]))
    for place, group in enumerate(groups):
        rows = table[table["group"] == group]
        x = np.arange(len(stages)) + (place - (len(groups) - 1) / 2) * min(OFFSET, 0.8 / len(groups))
        spread = np.abs(rows[["low", "high"]].to_numpy().T - rows["share"].to_numpy())
        ax.errorbar(x, rows["share"], spread, label=group, capsize=2, **look(place) | {"linestyle": ""})
    theirs = {stages.index(stage): share for stage, share in paper.items() if stage in stages}
    if theirs:
        label = "the paper's, on its models"
        ax.scatter([*theirs], [*theirs.values()], marker="x", s=22, color=COLOURS[7], label=label)
    ax.set_xticks(range(len(stages)), [stage_name(s) for s in stages], rotation=45, ha="right")
    ax.set_ylim(-0.05, 1.05)


def draw_sweep(
    sweeps: Mapping[str, pd.DataFrame], stages: Sequence[str], marks: Mapping[str, Mapping[str, float]]
) -> tuple[Figure, pd.DataFrame]:
    """Share present against the threshold, a panel an arm and stage, with ceiling and floor.

    Ceiling and floor are those of the last group's features.

    Args:
        sweeps: arm → :func:`reasoning_features.diffing.presence.threshold_sweep`.
        stages: which stages to draw.
        marks: arm → threshold's name → its value.
    """
    shown = [(arm, stage) for arm in sweeps for stage in stages]
    across = min(len(stages), ACROSS)
    ylabel = "share of tested\nfeatures present"
    fig, axes = panels(len(shown), across, height=2.1, sharex=True, sharey=True, ylabel=ylabel)
    for ax, (arm, stage) in zip(axes, shown, strict=True):
        sweep = sweeps[arm]
        groups = list(dict.fromkeys(sweep["group"]))
        for place, group in enumerate(groups):
            held = sweep[(sweep["stage"] == stage) & (sweep["group"] == group)]
            style = look(place, "color", "linestyle") | {"marker": "", "label": group}
            ax.plot(held["threshold"], held["share"], **style)
        for bound, colour in (("second seed", "0.45"), ("rotated", "0.7")):
            held = sweep[(sweep["stage"] == bound) & (sweep["group"] == groups[-1])]
            style = {"color": colour, "linestyle": LINES[3], "marker": "", "label": bound}
            ax.plot(held["threshold"], held["share"], **style)
        for value in marks[arm].values():
            ax.axvline(value, color="0.6", linewidth=0.7, marker="")
        ax.set(title=f"{arm}\n{stage_name(stage)}", xlabel="threshold of cosine")
    legend_below(fig)
    return fig, pd.concat([sweep.assign(arm=arm) for arm, sweep in sweeps.items()], ignore_index=True)


def draw_bounds(
    tables: Mapping[str, pd.DataFrame], thresholds: Mapping[str, float]
) -> tuple[Figure, pd.DataFrame]:
    """Ceiling and floor of the cosine by a feature's frequency, an arm a panel; bars: 5% to 95% of features.

    Args:
        tables: arm → :func:`reasoning_features.diffing.presence.by_frequency`.
        thresholds: arm → the calibrated threshold.
    """
    fig, axes = panels(len(tables), sharey=True, ylabel="largest cosine")
    for ax, (arm, table) in zip(axes, tables.items(), strict=True):
        x = np.sqrt(table["from"] * table["to"])
        for place, (bound, label) in enumerate((("ceiling", "second seed"), ("floor", "rotated decoder"))):
            spread = np.abs(table[[f"{bound} low", f"{bound} high"]].to_numpy().T - table[bound].to_numpy())
            ax.errorbar(x, table[bound], spread, label=label, capsize=2, **look(place))
        ax.axhline(
            thresholds[arm], color=COLOURS[2], linestyle=LINES[3], marker="", label="calibrated threshold"
        )
        ax.axhline(0.7, color="0.5", linestyle=LINES[1], linewidth=0.8, marker="", label="the paper's 0.7")
        ax.set(xscale="log", xlabel="share of tokens active", title=arm)
    legend_below(fig)
    return fig, pd.concat([table.assign(arm=arm) for arm, table in tables.items()], ignore_index=True)


def draw_matching(tables: Mapping[str, pd.DataFrame]) -> tuple[Figure, pd.DataFrame]:
    """Largest correlation of activations against largest decoder cosine, a feature a point, a stage a panel.

    Args:
        tables: stage's name → rows of ``feature``, ``cosine``, ``correlation``, ``group``.
    """
    fig, axes = panels(len(tables), sharex=True, sharey=True, ylabel="correlation of\nactivations")
    for ax, (name, table) in zip(axes, tables.items(), strict=True):
        _points(ax, table, "cosine", "correlation")
        ax.axvline(0.7, color="0.6", linewidth=0.7, marker="")
        ax.axhline(0.7, color="0.6", linewidth=0.7, marker="")
        ax.set(title=name, xlabel="decoder cosine")
    legend_below(fig)
    return fig, pd.concat([table.assign(stage=name) for name, table in tables.items()], ignore_index=True)


def draw_on_base(tables: Mapping[str, pd.DataFrame]) -> tuple[Figure, pd.DataFrame]:
    """How alike each feature fires when the same dictionary reads the base model, against its frequency.

    Args:
        tables: arm → rows of ``feature``, ``density``, ``correlation``, ``group``.
    """
    ylabel = "correlation of activations,\nreasoning and base model"
    fig, axes = panels(len(tables), sharey=True, ylabel=ylabel)
    for ax, (arm, table) in zip(axes, tables.items(), strict=True):
        _points(ax, table, "density", "correlation")
        ax.set(xscale="log", title=arm, xlabel="share of tokens active")
    legend_below(fig)
    return fig, pd.concat([table.assign(arm=arm) for arm, table in tables.items()], ignore_index=True)


def _points(ax: Axes, table: pd.DataFrame, x: str, y: str) -> None:
    """A point a feature, the first group's small and grey; the others' over them, in marks of their own."""
    for place, (group, rows) in enumerate(table.groupby("group", sort=False)):
        style = look(place, "color", "marker") if place else {"color": "0.7", "marker": "."}
        ax.scatter(rows[x], rows[y], s=16 if place else 8, label=group, **style)


def draw_probes(table: pd.DataFrame) -> Figure:
    """Area under the ROC of each model's probe for the decision, with shuffled labels beside it.

    Args:
        table: rows of ``arm`` (whose traces), ``read`` (which model), ``labels``, ``auc``, ``low``, ``high``.
    """
    arms, models = list(dict.fromkeys(table["arm"])), list(dict.fromkeys(table["read"]))
    fig, axes = panels(len(arms), height=0.8 + 0.3 * len(models), sharex=True, sharey=True)
    for ax, arm in zip(axes, arms, strict=True):
        held = table[table["arm"] == arm]
        for place, (labels, rows) in enumerate(held.groupby("labels", sort=False)):
            y = rows["read"].map(models.index) + (place - 0.5) * OFFSET
            spread = np.abs(rows[["low", "high"]].to_numpy().T - rows["auc"].to_numpy())
            style = look(place) | {"linestyle": "", "label": f"{labels} labels"}
            ax.errorbar(rows["auc"], y, xerr=spread, capsize=2, **style)
        ax.axvline(0.5, color="0.5", linestyle=LINES[1], linewidth=0.8, marker="", label="chance")
        ax.set(title=f"traces of {arm}", xlabel="AUC, held-out traces")
        name_rows(ax, models)
    legend_below(fig)
    return fig


def draw_layers(table: pd.DataFrame, paper: pd.DataFrame, layer: int) -> tuple[Figure, pd.DataFrame]:
    """Shares of features that are different, maybe the same and the same at other layers, beside the paper's.

    Args:
        table: from :func:`reasoning_features.diffing.cross_layer.layer_table`.
        paper: :data:`reasoning_features.diffing.cross_layer.PAPER`.
        layer: the layer whose features are sought.
    """
    shown = {
        f"{group}\n({rows['features'].iloc[0]} of layer {layer})": rows
        for group, rows in table.groupby("group", sort=False)
    }
    named = paper.assign(
        layer=[f"{n} {group[0]}" for n, group in zip(paper["layer"], paper["group"], strict=True)]
    )
    shown["the paper's, of its layer 19\n(c: chosen, r: random)"] = named
    fig, axes = panels(len(shown), height=0.9 + 0.16 * max(map(len, shown.values())), sharex=True)
    for ax, (title, rows) in zip(axes, shown.items(), strict=True):
        left = np.zeros(len(rows))
        for place, verdict in enumerate(VERDICTS):
            style = look(place, "color", "hatch") | {"edgecolor": "white", "linewidth": 0.3}
            ax.barh(range(len(rows)), rows[verdict], left=left, label=verdict, **style)
            left = left + rows[verdict].to_numpy()
        ax.set(title=title, xlabel="share of features")
        name_rows(ax, rows["layer"].astype(str).tolist())
    axes[0].set_ylabel("sought at layer")
    legend_below(fig)
    return fig, table
