"""Figures of autoencoders: explained variance at equal L0, training curves, densities, agreement of seeds."""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import fill

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter
from numpy.typing import NDArray

from reasoning_features.reporting.plots import COLOURS, distribution, legend_below, look, new_figure

CURVES = ("loss", "L0", "fraction of variance explained", "dead share")


def draw_frontier(frontier: pd.DataFrame, marked: pd.DataFrame) -> Figure:
    """Explained variance, and what a second seed finds again, against L0; one line an architecture.

    Args:
        frontier: short trainings, rows of :func:`reasoning_features.dictionaries.autoencoder_training.sweep`.
        marked: SAEs to mark in the first panel, with columns ``autoencoder``, ``L0`` and
            ``fraction of variance explained``.
    """
    columns = ("fraction of variance explained", "matched share", "paired one to one")
    fig, axes = new_figure(1, 3, height=2.4)
    architectures = frontier.groupby("architecture")
    for place, (architecture, rows) in enumerate(architectures):
        held = rows.sort_values("L0")
        for ax, column in zip(axes, columns, strict=True):
            ax.plot(held["L0"], held[column], label=architecture, **look(place))
            ax.set(xlabel="L0 (active features a token)", ylabel=column)
            ax.set_xscale("log", base=2)
            ax.xaxis.set_major_formatter(ScalarFormatter())
    for place, row in enumerate(marked.itertuples(index=False), start=len(architectures)):
        # stars in as many colours as there are, then with edges in others
        style = look(place, "color") | {"mec": look(place + place // len(COLOURS))["color"]}
        axes[0].plot(row[1], row[2], "*", markersize=8, label=row[0], **style)
    for ax in axes[1:]:
        ax.set(ylim=(-0.02, 1.02))
    legend_below(fig)
    return fig


def draw_curves(histories: Mapping[str, pd.DataFrame]) -> tuple[Figure, pd.DataFrame]:
    """Held-out loss, L0, explained variance and dead share against tokens, one line a training.

    Returns:
        The figure, and the histories one after the other with a column ``training``.
    """
    fig, axes = new_figure(2, 2, height=1.8, sharex=True)
    for place, (name, history) in enumerate(histories.items()):
        for ax, column in zip(axes.flat, CURVES, strict=True):
            ax.plot(history["tokens"], history[column], label=name, **look(place))
            ax.set(ylabel=fill(column, 20))
    for ax in axes[1]:
        ax.set(xlabel="tokens")
    axes[0, 0].set(yscale="log")
    for ax in (axes[0, 1], axes[1, 1]):  # TopK's L0 is constant: its last digits would fill the panel
        ax.set_ylim(0, 1.1 * ax.dataLim.ymax)
    legend_below(fig)
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
    ax.set(xlabel="share of tokens a feature is active on", ylabel="features, normalised")
    legend_below(fig)
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
    trainings = curve.groupby("training", sort=False)
    for place, (name, rows) in enumerate(trainings):
        style = look(place, "color", "marker")
        left.plot(rows["step"], rows["matched share"], "-", label=name, **style)
        paired = rows["paired one to one"]
        left.plot(rows["step"], paired, ":", markerfacecolor="white", label=f"{name}, one to one", **style)
    left.set(xlabel="training steps", ylabel=f"share at cosine ≥ {threshold:g}", ylim=(-0.02, 1.02))
    first = int(curve.loc[curve["step"] > 0, "step"].min())
    left.set_xscale("symlog", linthresh=first)
    left.set_xlim(left=-first / 5)
    edges = np.linspace(0, 1, 41)
    # one legend for both panels: what is on the right looks like nothing on the left
    for place, (name, held) in enumerate(cosines.items(), start=len(trainings)):
        style = look(place, "color", "linestyle", "hatch")
        right.hist(held, edges, histtype="step", label=name, density=True, **style)
    right.axvline(threshold, color="black", linestyle=":", linewidth=1)
    right.set(xlabel="best decoder cosine of a live feature", ylabel="density")
    legend_below(fig)
    data = pd.concat([pd.DataFrame({"pair": n, "cosine": c}) for n, c in cosines.items()], ignore_index=True)
    return fig, data
