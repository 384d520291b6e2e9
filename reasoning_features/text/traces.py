"""Texts shown with their moves: as HTML, and drawn line by line with each move behind its words."""

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

from reasoning_features.reporting.plots import TEXT_WIDTH, legend_below, narrow, new_figure
from reasoning_features.text.corpus import Corpus

# Light backgrounds, one a move, in the order of the moves; a move's name stands beside its text as well.
SHADES = (
    *("#E5E5E5", "#FFFFFF", "#A6D2EC", "#F5F08C", "#8FD6BC"),
    *("#E8A56F", "#DDB3D0", "#F2CF7E", "#C9A0A0", "#B5B5E6"),
)
MONOSPACE = "DejaVu Sans Mono"
CHARACTER_WIDTH = 0.602  # of that font, in font sizes
CHARACTERS = 92  # of a line of a drawn trace, beside the margin
MARGIN = 12  # characters left of a line for the names of its moves; a text without moves has no margin
LONGEST = 40  # lines of a drawn trace; the rest is left out, and said to be

Line = list[tuple[str, str]]  # its pieces: move ("" where none is known) and text


def shades(moves: Iterable[str]) -> dict[str, str]:
    """A light background for each of any number of moves, and white for text without one ("")."""
    # steps of the golden ratio around the circle of hues: none comes near the ones before it
    more = (to_hex(tuple(hsv_to_rgb((0.618 * i % 1, 0.35, 0.95)))) for i in itertools.count())
    return dict(zip(moves, itertools.chain(SHADES, more), strict=False)) | {"": "#FFFFFF"}


def segments(corpus: Corpus, document: int, tokenizer: Any) -> pd.DataFrame:
    """A document as runs of tokens of one ``move``, with their ``text``; without labels one run, of ""."""
    tokens = corpus.document(document)
    codes = np.zeros(len(tokens), int) if corpus.moves is None else corpus.moves[corpus.span(document)]
    names = corpus.move_names or ("",)
    edges = [0, *(np.flatnonzero(np.diff(codes)) + 1).tolist(), len(tokens)]
    runs = itertools.pairwise(edges)
    rows = [(names[codes[start]], tokenizer.decode(tokens[start:end].tolist())) for start, end in runs]
    return pd.DataFrame(rows, columns=["move", "text"])


def trace_html(corpus: Corpus, document: int, tokenizer: Any) -> HTML:
    """A document with each run of tokens on its move's background; the move shows when pointed at."""
    shade = shades(corpus.move_names)

    def run(move: str, text: str) -> str:
        style = f'style="background:{shade[move]};color:#000" title="{html.escape(move)}"'
        return f"<span {style}>{html.escape(text)}</span>" if move else html.escape(text)

    runs = segments(corpus, document, tokenizer)
    keys = " ".join(run(move, f" {move} ") for move in moves_of_runs(runs))
    body = "".join(run(move, text) for move, text in zip(runs["move"], runs["text"], strict=True))
    head = f"{keys}\n\n" if keys else ""
    # a newline right after <pre> is dropped, so one is given
    return HTML(f'<pre style="white-space:pre-wrap">\n{head}{body}</pre>')


def draw_trace(corpus: Corpus, documents: Sequence[int], tokenizer: Any) -> tuple[Figure, pd.DataFrame]:
    """Documents drawn as text, one panel each, moves as backgrounds and as names in the margin.

    The data are all runs, those left out too: ``document``, ``style``, ``move``, ``text``.
    """
    shade, styles = shades(corpus.move_names), corpus.styles or [""] * corpus.n_documents
    runs = [segments(corpus, i, tokenizer).assign(document=i, style=styles[i]) for i in documents]
    lines = [shortened(wrapped(part)) for part in runs]
    heights = [len(part) + 2 for part in lines]
    height = 0.125 * sum(heights) / len(runs) + 0.15
    fig, axes = new_figure(len(runs), 1, height=height, height_ratios=heights, squeeze=False)
    for ax, part, i in zip(axes[:, 0], lines, documents, strict=True):
        write_lines(ax, part, shade)
        ax.set_title(", ".join(filter(None, [corpus.domains[i], styles[i]])), loc="left", parse_math=False)
    data = pd.concat(runs, ignore_index=True)[["document", "style", "move", "text"]]
    moves_below(fig, moves_of_runs(data), shade)
    return fig, data.assign(text=data["text"].str.replace("\n", "⏎"))


def moves_below(fig: Figure, moves: Iterable[str], shade: Mapping[str, str]) -> None:
    """A legend of the moves' backgrounds, where there are any."""
    patches = {m: plt.Rectangle((0, 0), 1, 1, facecolor=shade[m], edgecolor="grey") for m in moves}
    legend_below(fig, patches)


def moves_of_runs(runs: pd.DataFrame) -> list[str]:
    """Moves of runs in the order in which they come first, without text that has none."""
    return [move for move in pd.unique(runs["move"]) if move]


def wrapped(runs: pd.DataFrame, characters: int = CHARACTERS) -> list[Line]:
    """Runs cut into lines at newlines and before spaces; without moves the margin's width is text's too."""
    if not moves_of_runs(runs):
        characters += MARGIN
    lines: list[Line] = [[]]
    width = 0
    for move, text in zip(runs["move"], runs["text"], strict=True):
        for piece in re.findall(rf"\n| ?[^ \n]{{1,{characters - 1}}}| ", text):
            if piece == "\n" or width + len(piece) > characters:
                lines.append([])
                width = 0
            if piece != "\n":
                lines[-1].append((move, piece))
                width += len(piece)
    return [line for line in lines if line]


def shortened(lines: list[Line]) -> list[Line]:
    """The lines that are drawn, the last one telling how many are left out."""
    if len(lines) <= LONGEST:
        return lines
    return [*lines[: LONGEST - 1], [("", f"… and {len(lines) - LONGEST + 1} more lines")]]


def write_lines(
    ax: Axes,
    lines: list[Line],
    shade: Mapping[str, str],
    characters: int = CHARACTERS,
    width: float = TEXT_WIDTH,
) -> None:
    """Write lines into a panel of this width (inches), with their moves behind and in the margin."""
    places = characters + MARGIN
    margin = MARGIN if any(move for line in lines for move, _ in line) else 0
    ax.set(xlim=(-margin, places - margin), ylim=(len(lines) + 0.3, -0.7))
    ax.axis("off")
    # a full line may be a little wider than its panel: room made for it would move the others
    style: Any = {"va": "center", "in_layout": False}
    style["fontsize"] = width * 72 * 0.96 / places / CHARACTER_WIDTH
    for row, line in enumerate(lines):
        column = 0
        ax.text(-margin, row, line[0][0], color="#444444", style="italic", **style)
        for move, text in line:
            ax.add_patch(plt.Rectangle((column, row - 0.5), len(text), 1, color=shade[move], linewidth=0))
            start, shown = column + len(text) - len(text.lstrip()), narrow(text.lstrip())
            ax.text(start, row, shown, family=MONOSPACE, parse_math=False, **style)
            column += len(text)
