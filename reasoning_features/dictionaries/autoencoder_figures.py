"""Figures of autoencoders: explained variance at equal L0, training curves, densities, agreement of seeds."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter
from numpy.typing import NDArray

from reasoning_features.reporting.figures import COLOURS, HATCHES, MARKERS, distribution, new_figure

CURVES = ("loss", "L0", "fraction of variance explained", "dead share")


def draw_frontier(frontier: pd.DataFrame, marked: pd.DataFrame) -> Figure:
    """Explained variance, and what a second seed finds again, against L0; one line an architecture.

    Args:
        frontier: short trainings, rows of :func:`reasoning_features.dictionaries.autoencoder_training.sweep`.
        marked: SAEs to mark in the first panel, with columns ``autoencoder``, ``L0`` and
            ``fraction of variance explained``.
    """
    panels = ("fraction of variance explained", "matched share", "paired one to one")
    fig, axes = new_figure(1, 3, height=2.4)
    for series, (architecture, rows) in enumerate(frontier.groupby("architecture")):
        held = rows.sort_values("L0")
        for ax, column in zip(axes, panels, strict=True):
            ax.plot(
                held["L0"], held[column], label=architecture, color=COLOURS[series], marker=MARKERS[series]
            )
            ax.set(xlabel="L0 (active features a token)", ylabel=column)
            ax.set_xscale("log", base=2)
            ax.xaxis.set_major_formatter(ScalarFormatter())
    for series, row in enumerate(marked.itertuples(index=False)):
        axes[0].plot(row[1], row[2], "*", color=COLOURS[series + 2], markersize=8, label=row[0])
    for ax in axes[1:]:
        ax.set(ylim=(-0.02, 1.02))
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return fig


def draw_curves(histories: Mapping[str, pd.DataFrame]) -> tuple[Figure, pd.DataFrame]:
    """Held-out loss, L0, explained variance and dead share against tokens, one line a training.

    Returns:
        The figure, and the histories one after the other with a column ``training``.
    """
    fig, axes = new_figure(2, 2, height=1.8, sharex=True)
    for series, (name, history) in enumerate(histories.items()):
        for ax, column in zip(axes.flat, CURVES, strict=True):
            ax.plot(
                history["tokens"], history[column], label=name, marker=MARKERS[series], color=COLOURS[series]
            )
            ax.set(ylabel=column)
    for ax in axes[1]:
        ax.set(xlabel="tokens")
    axes[0, 0].set(yscale="log")
    axes[0, 0].legend()
    return fig, pd.concat([h.assign(training=name) for name, h in histories.items()], ignore_index=True)


def draw_densities(densities: Mapping[str, NDArray[np.float64]]) -> tuple[Figure, pd.DataFrame]:
    """How often live features are active, one outline an SAE, on a logarithmic axis.

    Returns:
        The figure, and its data: ``autoencoder``, ``feature``, ``density``.
    """
    parts = [
        pd.DataFrame({"autoencoder": name, "feature": np.flatnonzero(held), "density": held[held > 0]})
        for name, held in densities.items()
    ]
    data = pd.concat(parts, ignore_index=True)
    fig, ax = new_figure(width=4.5, height=2.4)
    distribution(ax, data, "density", "autoencoder", bins=30, log=True)
    ax.set(xlabel="density (share of tokens a feature is active on)")
    return fig, data


def draw_agreement(
    curve: pd.DataFrame, cosines: Mapping[str, NDArray[np.float64]], threshold: float
) -> tuple[Figure, pd.DataFrame]:
    """What a second seed finds again: share against training steps, and best cosines feature by feature.

    Args:
        curve: rows of ``training``, ``step``, ``matched share``, ``paired one to one``.
        cosines: best cosines of live features with another set of directions, by name.
        threshold: the cosine from which a feature counts as found again.

    Returns:
        The figure, and the cosines as rows of ``pair`` and ``cosine``.
    """
    fig, (left, right) = new_figure(1, 2, height=2.6)
    for series, (name, rows) in enumerate(curve.groupby("training", sort=False)):
        style = {"marker": MARKERS[series], "color": COLOURS[series]}
        left.plot(rows["step"], rows["matched share"], "-", label=name, **style)
        paired = rows["paired one to one"]
        left.plot(rows["step"], paired, ":", markerfacecolor="white", label=f"{name}, one to one", **style)
    left.set(xlabel="training steps", ylabel=f"share at cosine ≥ {threshold:g}", ylim=(-0.02, 1.02))
    first = int(curve.loc[curve["step"] > 0, "step"].min())
    left.set_xscale("symlog", linthresh=first)
    left.set_xlim(left=-first / 5)
    left.legend()
    edges = np.linspace(0, 1, 41)
    for series, (name, held) in enumerate(cosines.items()):
        right.hist(
            held,
            edges,
            histtype="step",
            label=name,
            color=COLOURS[series],
            hatch=HATCHES[series],
            density=True,
        )
    right.axvline(threshold, color="black", linestyle=":", linewidth=1)
    right.set(xlabel="best decoder cosine of a live feature", ylabel="density")
    right.legend(loc="upper left")
    data = pd.concat([pd.DataFrame({"pair": n, "cosine": c}) for n, c in cosines.items()], ignore_index=True)
    return fig, data
