"""Figures of the subject and its corpora: traces with their moves, norms and losses, probes over depth."""

from __future__ import annotations

import html
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import HTML
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reasoning_features.reporting.figures import COLOURS, LINES, MARKERS, TEXT_WIDTH, narrow, new_figure
from reasoning_features.residual_stream.probes import EMBEDDINGS
from reasoning_features.text.corpus import Corpus

SHADES = (
    *("#E5E5E5", "#FFFFFF", "#A6D2EC", "#F5F08C", "#8FD6BC"),
    *("#E8A56F", "#DDB3D0", "#F2CF7E", "#C9A0A0", "#B5B5E6"),
)
"""Light backgrounds, one a move, in the order of the moves; a move's name stands beside its text as well."""
MONOSPACE = "DejaVu Sans Mono"
CHARACTER_WIDTH = 0.602  # of that font, in font sizes
CHARACTERS = 92
"""Characters a line of a drawn trace."""


def segments(corpus: Corpus, document: int, tokenizer: Any) -> pd.DataFrame:
    """A document as runs of tokens of one move: ``move`` (its name) and ``text``.

    Without labels it is one run, whose move is "unlabelled".
    """
    span = corpus.span(document)
    tokens = corpus.tokens[span]
    codes = np.zeros(len(tokens), dtype=int) if corpus.moves is None else corpus.moves[span].astype(int)
    edges = [0, *(np.flatnonzero(np.diff(codes)) + 1).tolist(), len(tokens)]
    names = corpus.move_names or ("unlabelled",)
    rows = [
        (names[codes[start]], tokenizer.decode(tokens[start:end].tolist()))
        for start, end in itertools.pairwise(edges)
    ]
    return pd.DataFrame(rows, columns=["move", "text"])


def trace_html(corpus: Corpus, document: int, tokenizer: Any) -> HTML:
    """A document with each run of tokens on its move's background; the move shows when pointed at."""
    shades = dict(zip(corpus.move_names or ("unlabelled",), SHADES, strict=False))
    held = segments(corpus, document, tokenizer)
    pieces = [
        f'<span style="background:{shades[move]};color:#000" title="{html.escape(move)}">'
        f"{html.escape(text)}</span>"
        for move, text in zip(held["move"], held["text"], strict=True)
    ]
    keys = [
        f'<span style="background:{shades[move]};color:#000"> {html.escape(move)} </span>'
        for move in dict.fromkeys(held["move"])
    ]
    return HTML(f'<pre style="white-space:pre-wrap">{" ".join(keys)}\n\n{"".join(pieces)}</pre>')


def draw_trace(corpus: Corpus, documents: Sequence[int], tokenizer: Any) -> tuple[Figure, pd.DataFrame]:
    """Documents drawn as text, one panel each, moves as backgrounds and as names in the margin.

    Returns:
        The figure, and its rows: ``document``, ``style``, ``move``, ``text``.
    """
    shades = dict(zip(corpus.move_names or ("unlabelled",), SHADES, strict=False))
    panels = [segments(corpus, i, tokenizer) for i in documents]
    lines = [wrapped(panel) for panel in panels]
    heights = [len(part) + 2 for part in lines]
    fig, axes = new_figure(
        len(panels), 1, height=0.125 * sum(heights) / len(panels) + 0.15, height_ratios=heights, squeeze=False
    )
    for ax, part, document in zip(axes[:, 0], lines, documents, strict=True):
        write_lines(ax, part, shades)
        style = corpus.styles[document] if corpus.styles else ""
        title = ", ".join(filter(None, [corpus.domains[document], style]))
        ax.set_title(title, loc="left")
    used = list(dict.fromkeys(move for panel in panels for move in panel["move"]))
    patches = [plt.Rectangle((0, 0), 1, 1, facecolor=shades[move], edgecolor="grey") for move in used]
    fig.legend(patches, used, loc="outside lower center", ncols=len(used))
    styles = corpus.styles or [""] * corpus.n_documents
    frames = [p.assign(document=i, style=styles[i]) for p, i in zip(panels, documents, strict=True)]
    data = pd.concat(frames, ignore_index=True)[["document", "style", "move", "text"]]
    return fig, data.assign(text=data["text"].str.replace("\n", "⏎"))


def draw_profiles(data: pd.DataFrame, series: str, ylabel: str) -> Figure:
    """Means by position and by move with their intervals, one colour for each value of a column.

    Args:
        data: rows of :func:`reasoning_features.residual_stream.token_statistics.means_by_place_and_move` with
            a column more.
        series: that column.
        ylabel: what is averaged, with its unit.
    """
    panels = list(pd.unique(data["by"]))
    fig, axes = new_figure(1, len(panels), height=2.6, sharey=True, squeeze=False)
    for ax, by in zip(axes[0], panels, strict=True):
        for place, name in enumerate(pd.unique(data[series])):
            part = data[(data["by"] == by) & (data[series] == name)]
            _errorbars(ax, part.infer_objects(), "group", str(name), place)
        ax.set(xlabel="position (tokens)" if by == "position" else by)
    axes[0, 0].set(ylabel=ylabel)
    fig.legend(*axes[0, 0].get_legend_handles_labels(), title=series, loc="outside right upper")
    return fig


def draw_probes(probed: pd.DataFrame, profile_layer: int) -> Figure:
    """Balanced accuracy by depth for each target, beside its control, chance and the profile's layer.

    Args:
        probed: rows of :func:`reasoning_features.residual_stream.probes.probe_layers` with a column
            ``target``.
        profile_layer: the layer the profile reads.
    """
    targets = list(pd.unique(probed["target"]))
    fig, axes = new_figure(1, len(targets), height=2.6, sharey=True, squeeze=False)
    for ax, target in zip(axes[0], targets, strict=True):
        held = probed[probed["target"] == target].rename(columns={"balanced accuracy": "mean"})
        for series, (labels, part) in enumerate(held.groupby("labels", sort=False)):
            _errorbars(ax, part, "layer", f"{labels} labels", series)
        ax.axhline(probed["chance"].iloc[0], color="black", linestyle=":", linewidth=1, label="chance")
        ax.axvline(profile_layer, color="grey", linewidth=4, alpha=0.3, label="profile's layer")
        layers = sorted(probed["layer"].unique())
        ax.set_xticks(layers, ["token" if layer == EMBEDDINGS else str(layer) for layer in layers])
        ax.set(title=str(target), xlabel="layer")
    axes[0, 0].set(ylabel="balanced accuracy")
    axes[0, 0].legend()
    return fig


def _errorbars(ax: Axes, means: pd.DataFrame, by: str, label: str, series: int) -> None:
    """Means with their intervals: a line over numbers, marks over names."""
    numeric = pd.api.types.is_numeric_dtype(means[by])
    ax.errorbar(
        means[by],
        means["mean"],
        yerr=np.maximum([means["mean"] - means["low"], means["high"] - means["mean"]], 0),
        color=COLOURS[series],
        marker=MARKERS[series],
        linestyle=LINES[series] if numeric else "none",
        capsize=2,
        label=label,
    )
    if not numeric:
        ax.tick_params(axis="x", rotation=40)


def wrapped(held: pd.DataFrame, characters: int = CHARACTERS) -> list[list[tuple[str, str]]]:
    """Runs cut into lines of so many characters, at newlines and before spaces: (move, text) pieces."""
    lines: list[list[tuple[str, str]]] = [[]]
    width = 0
    for move, text in zip(held["move"], held["text"], strict=True):
        for piece in re.findall(rf"\n| ?[^ \n]{{1,{characters - 1}}}| ", text):
            if piece == "\n" or width + len(piece) > characters:
                lines.append([])
                width = 0
            if piece != "\n":
                lines[-1].append((move, piece))
                width += len(piece)
    return [line for line in lines if line]


def write_lines(
    ax: Axes,
    lines: list[list[tuple[str, str]]],
    shades: Mapping[str, str],
    characters: int = CHARACTERS,
    width: float = TEXT_WIDTH,
) -> None:
    """Write lines of :func:`wrapped` into a panel of this width (inches), moves behind and in the margin."""
    margin = 12  # characters left for the names of moves
    ax.set(xlim=(-margin, characters), ylim=(len(lines) + 0.3, -0.7))
    ax.axis("off")
    size = width * 72 * 0.96 / (characters + margin) / CHARACTER_WIDTH
    for row, line in enumerate(lines):
        column = 0
        names = list(dict.fromkeys(move for move, _ in line))
        ax.text(-margin, row, names[0], fontsize=size, va="center", color="#444444", style="italic")
        for move, text in line:
            ax.add_patch(plt.Rectangle((column, row - 0.5), len(text), 1, color=shades[move], linewidth=0))
            start = column + len(text) - len(text.lstrip())
            style: Any = {"fontsize": size, "va": "center", "family": MONOSPACE, "parse_math": False}
            ax.text(start, row, narrow(text.lstrip()), **style)
            column += len(text)
