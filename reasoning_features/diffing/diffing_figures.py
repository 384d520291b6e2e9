"""Figures of model diffing and of features over depth; each function only draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from reasoning_features.diffing.cross_layer import VERDICTS
from reasoning_features.reporting.figures import COLOURS, HATCHES, LINES, MARKERS, legend_below, new_figure

ARROW = "→"
OFFSET = 0.16
"""Distance of two groups' marks at one stage."""


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
    fig, axes = new_figure(len(tables), len(arms), height=2.7, sharex="col", sharey=True, squeeze=False)
    for row, (threshold, held) in zip(axes, tables.items(), strict=True):
        for ax, arm in zip(row, arms, strict=True):
            _presence(ax, held[arm], paper)
            ax.set_title(f"{arm}\n{threshold}")
        row[0].set_ylabel("share of tested\nfeatures present")
    legend_below(fig, axes[0, 0])
    parts = [t.assign(arm=arm, at=name) for name, held in tables.items() for arm, t in held.items()]
    return fig, pd.concat(parts, ignore_index=True)


def _presence(ax: Axes, table: pd.DataFrame, paper: Mapping[str, float]) -> None:
    stages, groups = list(dict.fromkeys(table["stage"])), list(dict.fromkeys(table["group"]))
    for place, group in enumerate(groups):
        rows = table[table["group"] == group]
        x = np.arange(len(stages)) + (place - (len(groups) - 1) / 2) * OFFSET
        spread = np.abs(rows[["low", "high"]].to_numpy().T - rows["share"].to_numpy())
        style: Any = {"color": COLOURS[place], "marker": MARKERS[place], "linestyle": ""}
        ax.errorbar(x, rows["share"], spread, label=group, capsize=2, **style)
    theirs = {stages.index(stage): share for stage, share in paper.items() if stage in stages}
    if theirs:
        label = "the paper's, on its models"
        ax.scatter([*theirs], [*theirs.values()], marker="x", s=22, color=COLOURS[7], label=label)
    ax.set_xticks(range(len(stages)), [stage_name(s) for s in stages], rotation=45, ha="right")
    ax.set_ylim(-0.05, 1.05)


def draw_sweep(
    sweeps: Mapping[str, pd.DataFrame], stages: Sequence[str], marks: Mapping[str, Mapping[str, float]]
) -> tuple[Figure, pd.DataFrame]:
    """Share present against the threshold, an arm a row and a stage a column, with ceiling and floor.

    Ceiling and floor are those of the last group's features.

    Args:
        sweeps: arm → :func:`reasoning_features.diffing.presence.threshold_sweep`.
        stages: which stages to draw.
        marks: arm → threshold's name → its value.
    """
    fig, axes = new_figure(len(sweeps), len(stages), height=2.1, sharex=True, sharey=True, squeeze=False)
    for row, (arm, sweep) in zip(axes, sweeps.items(), strict=True):
        groups = list(dict.fromkeys(sweep["group"]))
        for ax, stage in zip(row, stages, strict=True):
            for group, colour, line in zip(groups, COLOURS, LINES, strict=False):
                held = sweep[(sweep["stage"] == stage) & (sweep["group"] == group)]
                ax.plot(
                    held["threshold"], held["share"], color=colour, linestyle=line, marker="", label=group
                )
            for bound, colour in (("second seed", "0.45"), ("rotated", "0.7")):
                held = sweep[(sweep["stage"] == bound) & (sweep["group"] == groups[-1])]
                style = {"color": colour, "linestyle": LINES[3], "marker": "", "label": bound}
                ax.plot(held["threshold"], held["share"], **style)
            for value in marks[arm].values():
                ax.axvline(value, color="0.6", linewidth=0.7, marker="")
            ax.set_title(stage_name(stage))
        row[0].set_ylabel(f"{arm}\nshare of tested\nfeatures present")
    for ax in axes[-1]:
        ax.set_xlabel("threshold of cosine")
    legend_below(fig, axes[0, 0])
    return fig, pd.concat([sweep.assign(arm=arm) for arm, sweep in sweeps.items()], ignore_index=True)


def draw_bounds(
    tables: Mapping[str, pd.DataFrame], thresholds: Mapping[str, float]
) -> tuple[Figure, pd.DataFrame]:
    """Ceiling and floor of the cosine by a feature's frequency, an arm a panel; bars: 5% to 95% of features.

    Args:
        tables: arm → :func:`reasoning_features.diffing.presence.by_frequency`.
        thresholds: arm → the calibrated threshold.
    """
    fig, axes = new_figure(1, len(tables), height=2.4, sharey=True, squeeze=False)
    for ax, (arm, table) in zip(axes[0], tables.items(), strict=True):
        x = np.sqrt(table["from"] * table["to"])
        for place, (bound, label) in enumerate((("ceiling", "second seed"), ("floor", "rotated decoder"))):
            spread = np.abs(table[[f"{bound} low", f"{bound} high"]].to_numpy().T - table[bound].to_numpy())
            style: Any = {"color": COLOURS[place], "marker": MARKERS[place], "linestyle": LINES[place]}
            ax.errorbar(x, table[bound], spread, label=label, capsize=2, **style)
        ax.axhline(
            thresholds[arm], color=COLOURS[2], linestyle=LINES[3], marker="", label="calibrated threshold"
        )
        ax.axhline(0.7, color="0.5", linestyle=LINES[1], linewidth=0.8, marker="", label="the paper's 0.7")
        ax.set(xscale="log", xlabel="share of tokens active", title=arm)
    axes[0, 0].set_ylabel("largest cosine")
    legend_below(fig, axes[0, 0])
    return fig, pd.concat([table.assign(arm=arm) for arm, table in tables.items()], ignore_index=True)


def draw_matching(tables: Mapping[str, pd.DataFrame]) -> tuple[Figure, pd.DataFrame]:
    """Largest correlation of activations against largest decoder cosine, a feature a point, a stage a panel.

    Args:
        tables: stage's name → rows of ``feature``, ``cosine``, ``correlation``, ``group``.
    """
    fig, axes = new_figure(1, len(tables), height=2.4, sharex=True, sharey=True, squeeze=False)
    for ax, (name, table) in zip(axes[0], tables.items(), strict=True):
        _points(ax, table, "cosine", "correlation")
        ax.axvline(0.7, color="0.6", linewidth=0.7, marker="")
        ax.axhline(0.7, color="0.6", linewidth=0.7, marker="")
        ax.set(title=name, xlabel="decoder cosine")
    axes[0, 0].set_ylabel("correlation of\nactivations")
    legend_below(fig, axes[0, 0])
    return fig, pd.concat([table.assign(stage=name) for name, table in tables.items()], ignore_index=True)


def draw_on_base(tables: Mapping[str, pd.DataFrame]) -> tuple[Figure, pd.DataFrame]:
    """How alike each feature fires when the same dictionary reads the base model, against its frequency.

    Args:
        tables: arm → rows of ``feature``, ``density``, ``correlation``, ``group``.
    """
    fig, axes = new_figure(1, len(tables), height=2.4, sharey=True, squeeze=False)
    for ax, (arm, table) in zip(axes[0], tables.items(), strict=True):
        _points(ax, table, "density", "correlation")
        ax.set(xscale="log", title=arm, xlabel="share of tokens active")
    axes[0, 0].set_ylabel("correlation of activations,\nreasoning and base model")
    legend_below(fig, axes[0, 0])
    return fig, pd.concat([table.assign(arm=arm) for arm, table in tables.items()], ignore_index=True)


def _points(ax: Axes, table: pd.DataFrame, x: str, y: str) -> None:
    """A point a feature; groups after the first over it, in marks of their own."""
    for place, (group, rows) in enumerate(table.groupby("group", sort=False)):
        size = 4 if place == 0 else 16
        colour = "0.7" if place == 0 else COLOURS[place - 1]
        ax.scatter(rows[x], rows[y], s=size, color=colour, marker=MARKERS[place], label=group)


def draw_probes(table: pd.DataFrame) -> Figure:
    """Area under the ROC of each model's probe for the decision, with shuffled labels beside it.

    Args:
        table: rows of ``arm`` (whose traces), ``read`` (which model), ``labels``, ``auc``, ``low``, ``high``.
    """
    arms = list(dict.fromkeys(table["arm"]))
    fig, axes = new_figure(1, len(arms), height=2.3, sharey=True, squeeze=False)
    for ax, arm in zip(axes[0], arms, strict=True):
        held = table[table["arm"] == arm]
        models = list(dict.fromkeys(held["read"]))
        for place, labels in enumerate(dict.fromkeys(held["labels"])):
            rows = held[held["labels"] == labels]
            x = rows["read"].map(models.index) + (place - 0.5) * OFFSET
            spread = np.abs(rows[["low", "high"]].to_numpy().T - rows["auc"].to_numpy())
            style: Any = {"color": COLOURS[place], "marker": MARKERS[place], "linestyle": ""}
            ax.errorbar(x, rows["auc"], spread, label=f"{labels} labels", capsize=2, **style)
        ax.axhline(0.5, color="0.5", linestyle=LINES[1], linewidth=0.8, marker="", label="chance")
        ax.set_xticks(range(len(models)), [name.replace(" ", "\n") for name in models])
        ax.set_title(f"traces of {arm}")
    axes[0, 0].set_ylabel("AUC, held-out traces")
    legend_below(fig, axes[0, 0])
    return fig


def draw_layers(table: pd.DataFrame, paper: pd.DataFrame, layer: int) -> tuple[Figure, pd.DataFrame]:
    """Shares of features that are different, maybe the same and the same at other layers, beside the paper's.

    Args:
        table: from :func:`reasoning_features.diffing.cross_layer.layer_table`.
        paper: :data:`reasoning_features.diffing.cross_layer.PAPER`.
        layer: the layer whose features are sought.
    """
    groups = list(dict.fromkeys(table["group"]))
    fig, axes = new_figure(1, len(groups) + 1, height=2.6, sharey=True, squeeze=False)
    for ax, group in zip(axes[0], groups, strict=False):
        rows = table[table["group"] == group]
        _stacked(ax, rows["layer"].astype(str).tolist(), [rows[v].to_numpy() for v in VERDICTS])
        ax.set(title=f"{group}\n(of layer {layer})", xlabel="sought at layer")
    labels = [f"{n} {group[0]}" for n, group in zip(paper["layer"], paper["group"], strict=True)]
    _stacked(axes[0, -1], labels, [paper[verdict].to_numpy() for verdict in VERDICTS])
    axes[0, -1].set(title="the paper's, of its layer 19\n(c: chosen, r: random)", xlabel="sought at layer")
    axes[0, -1].tick_params(axis="x", rotation=90)
    axes[0, 0].set_ylabel("share of features")
    legend_below(fig, axes[0, 0])
    return fig, table


def _stacked(ax: Axes, labels: list[str], shares: list[NDArray[np.float64]]) -> None:
    bottom = np.zeros(len(labels))
    for place, (verdict, held) in enumerate(zip(VERDICTS, shares, strict=True)):
        style: Any = {
            "color": COLOURS[place],
            "hatch": HATCHES[place],
            "edgecolor": "white",
            "linewidth": 0.3,
        }
        ax.bar(range(len(labels)), held, bottom=bottom, label=verdict, width=0.8, **style)
        bottom = bottom + held
    ax.set_xticks(range(len(labels)), labels)
