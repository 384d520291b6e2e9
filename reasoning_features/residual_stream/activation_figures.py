"""Figures of the subject and its corpora: traces with their moves, norms and losses, probes over depth."""

from __future__ import annotations

import html
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import HTML
from matplotlib.axes import Axes
from matplotlib.colors import hsv_to_rgb, to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from reasoning_features.reporting.plots import (
    TEXT_WIDTH,
    colour_bar,
    legend_below,
    look,
    narrow,
    new_figure,
    panels,
)
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
"""Characters a line of a drawn trace, beside the margin."""
MARGIN = 12
"""Characters left of a line for the names of its moves; a text without moves has no margin."""
LONGEST = 40
"""Lines of a drawn trace; the rest is left out, and said to be."""


def shades(moves: Iterable[str]) -> dict[str, str]:
    """A light background for each of any number of moves, and white for text without one ("")."""
    # steps of the golden ratio around the circle of hues: none comes near the ones before it
    more = (to_hex(tuple(hsv_to_rgb((0.618 * i % 1, 0.35, 0.95)))) for i in itertools.count())
    return dict(zip(moves, itertools.chain(SHADES, more), strict=False)) | {"": "#FFFFFF"}


def segments(corpus: Corpus, document: int, tokenizer: Any) -> pd.DataFrame:
    """A document as runs of tokens of one move: ``move`` (its name) and ``text``.

    Without labels it is one run, whose move is "".
    """
    span = corpus.span(document)
    tokens = corpus.tokens[span]
    codes = np.zeros(len(tokens), dtype=int) if corpus.moves is None else corpus.moves[span].astype(int)
    edges = [0, *(np.flatnonzero(np.diff(codes)) + 1).tolist(), len(tokens)]
    names = corpus.move_names or ("",)
    rows = [
        (names[codes[start]], tokenizer.decode(tokens[start:end].tolist()))
        for start, end in itertools.pairwise(edges)
    ]
    return pd.DataFrame(rows, columns=["move", "text"])


def trace_html(corpus: Corpus, document: int, tokenizer: Any) -> HTML:
    """A document with each run of tokens on its move's background; the move shows when pointed at."""
    shade = shades(corpus.move_names)
    held = segments(corpus, document, tokenizer)
    pieces = [
        f'<span style="background:{shade[move]};color:#000" title="{html.escape(move)}">'
        f"{html.escape(text)}</span>"
        if move
        else html.escape(text)
        for move, text in zip(held["move"], held["text"], strict=True)
    ]
    keys = [
        f'<span style="background:{shade[move]};color:#000"> {html.escape(move)} </span>'
        for move in _named(held)
    ]
    head = f"{' '.join(keys)}\n\n" if keys else ""
    # a newline right after <pre> is dropped, so one is given
    return HTML(f'<pre style="white-space:pre-wrap">\n{head}{"".join(pieces)}</pre>')


def draw_trace(corpus: Corpus, documents: Sequence[int], tokenizer: Any) -> tuple[Figure, pd.DataFrame]:
    """Documents drawn as text, one panel each, moves as backgrounds and as names in the margin.

    Returns:
        The figure, and its rows: ``document``, ``style``, ``move``, ``text``, the parts left out too.
    """
    shade = shades(corpus.move_names)
    held = [segments(corpus, i, tokenizer) for i in documents]
    lines = [shortened(wrapped(runs)) for runs in held]
    heights = [len(part) + 2 for part in lines]
    fig, axes = new_figure(
        len(held), 1, height=0.125 * sum(heights) / len(held) + 0.15, height_ratios=heights, squeeze=False
    )
    for ax, part, document in zip(axes[:, 0], lines, documents, strict=True):
        write_lines(ax, part, shade)
        style = corpus.styles[document] if corpus.styles else ""
        title = ", ".join(filter(None, [corpus.domains[document], style]))
        ax.set_title(title, loc="left", parse_math=False)
    moves_below(fig, _named(pd.concat(held)), shade)
    styles = corpus.styles or [""] * corpus.n_documents
    frames = [p.assign(document=i, style=styles[i]) for p, i in zip(held, documents, strict=True)]
    data = pd.concat(frames, ignore_index=True)[["document", "style", "move", "text"]]
    return fig, data.assign(text=data["text"].str.replace("\n", "⏎"))


def moves_below(fig: Figure, moves: Iterable[str], shade: Mapping[str, str]) -> None:
    """A legend of the moves' backgrounds, where there are any."""
    patches = {m: plt.Rectangle((0, 0), 1, 1, facecolor=shade[m], edgecolor="grey") for m in moves}
    legend_below(fig, patches)


def _named(held: pd.DataFrame) -> list[str]:
    """Moves in the order in which they come first, without text that has none."""
    return [move for move in pd.unique(held["move"]) if move]


def draw_profiles(data: pd.DataFrame, series: str, ylabel: str) -> Figure:
    """Means by position and by move with their intervals, one colour for each value of a column.

    Values that are numbers are depths: they have a colour bar, and a logarithmic axis, the stream's norm
    growing by orders of magnitude with depth. Names have a legend.

    Args:
        data: rows of :func:`reasoning_features.residual_stream.token_statistics.means_by_place_and_move` with
            a column more.
        series: that column.
        ylabel: what is averaged, with its unit.
    """
    depths = pd.api.types.is_numeric_dtype(data[series])
    kinds = list(pd.unique(data["by"]))
    longest = max((len(group) for group in data["group"] if isinstance(group, str)), default=0)
    fig, axes = panels(len(kinds), height=2.2 + 0.065 * longest, sharey=True, ylabel=ylabel)
    scale = colour_bar(fig, axes, data[series], series) if depths else None
    for ax, by in zip(axes, kinds, strict=True):
        for place, name in enumerate(pd.unique(data[series])):
            part = data[(data["by"] == by) & (data[series] == name)]
            style = look(place)
            if scale:  # there may be eighty, so thin ones
                style = {
                    "color": scale.to_rgba(name),
                    "linestyle": "-",
                    "linewidth": 0.9,
                    "marker": ".",
                    "ms": 3,
                }
            _errorbars(ax, part.infer_objects(), "group", label=str(name), **style)
        ax.set(xlabel="position (tokens)" if by == "position" else by, yscale="log" if depths else "linear")
    if not depths:
        legend_below(fig, title=series)
    return fig


def draw_probes(probed: pd.DataFrame, profile_layer: int) -> Figure:
    """Balanced accuracy by depth for each target, beside its control, chance and the profile's layer.

    Args:
        probed: rows of :func:`reasoning_features.residual_stream.probes.probe_layers` with a column
            ``target``.
        profile_layer: the layer the profile reads.
    """
    targets = list(pd.unique(probed["target"]))
    fig, axes = panels(len(targets), height=2.6, sharey=True, ylabel="balanced accuracy")
    for ax, target in zip(axes, targets, strict=True):
        held = probed[probed["target"] == target].rename(columns={"balanced accuracy": "mean"})
        for place, (labels, part) in enumerate(held.groupby("labels", sort=False)):
            style = look(place) | {"ms": min(4, 90 / len(part))}
            _errorbars(ax, part, "layer", label=f"{labels} labels", **style)
        ax.axhline(probed["chance"].iloc[0], color="black", linestyle=":", linewidth=1, label="chance")
        ax.axvline(profile_layer, color="grey", linewidth=4, alpha=0.3, label="profile's layer")
        ax.set_xticks(*_depth_ticks(probed["layer"]))
        ax.set(title=str(target), xlabel="layer")
    legend_below(fig)
    return fig


def _depth_ticks(layers: pd.Series) -> tuple[list[int], list[str]]:
    """Ticks of some layers and their labels, the embedding's first; none so near that labels would meet."""
    last = int(layers.max())
    ticks = [int(tick) for tick in MaxNLocator(8, integer=True).tick_values(0, last) if tick <= last]
    if EMBEDDINGS not in layers.to_numpy():
        return ticks, [str(tick) for tick in ticks]
    ticks = [tick for tick in ticks if tick - EMBEDDINGS > 0.12 * last]
    return [EMBEDDINGS, *ticks], ["token", *map(str, ticks)]


def _errorbars(ax: Axes, means: pd.DataFrame, by: str, **style: Any) -> None:
    """Means with their intervals: a line over numbers, marks over names."""
    if not pd.api.types.is_numeric_dtype(means[by]):
        style["linestyle"] = "none"
        ax.tick_params(axis="x", rotation=90)
    spread = np.maximum([means["mean"] - means["low"], means["high"] - means["mean"]], 0)
    ax.errorbar(means[by], means["mean"], yerr=spread, capsize=1, **style)


def wrapped(held: pd.DataFrame, characters: int = CHARACTERS) -> list[list[tuple[str, str]]]:
    """Runs cut into lines at newlines and before spaces: (move, text) pieces.

    Lines have so many characters, and the margin's as well where no move is known.
    """
    if not _named(held):
        characters += MARGIN
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


def shortened(lines: list[list[tuple[str, str]]]) -> list[list[tuple[str, str]]]:
    """Lines of :func:`wrapped`, so many as are drawn, the last one telling how many are left out."""
    if len(lines) <= LONGEST:
        return lines
    return [*lines[: LONGEST - 1], [("", f"… and {len(lines) - LONGEST + 1} more lines")]]


def write_lines(
    ax: Axes,
    lines: list[list[tuple[str, str]]],
    shade: Mapping[str, str],
    characters: int = CHARACTERS,
    width: float = TEXT_WIDTH,
) -> None:
    """Write lines of :func:`wrapped` into a panel of this width (inches), moves behind and in the margin."""
    places = characters + MARGIN
    margin = MARGIN if any(move for line in lines for move, _ in line) else 0
    ax.set(xlim=(-margin, places - margin), ylim=(len(lines) + 0.3, -0.7))
    ax.axis("off")
    size = width * 72 * 0.96 / places / CHARACTER_WIDTH
    for row, line in enumerate(lines):
        column = 0
        ax.text(-margin, row, line[0][0], fontsize=size, va="center", color="#444444", style="italic")
        for move, text in line:
            ax.add_patch(plt.Rectangle((column, row - 0.5), len(text), 1, color=shade[move], linewidth=0))
            start = column + len(text) - len(text.lstrip())
            style: Any = {"fontsize": size, "va": "center", "family": MONOSPACE, "parse_math": False}
            ax.text(start, row, narrow(text.lstrip()), **style)
            column += len(text)
