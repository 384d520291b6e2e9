"""Texts drawn line by line, each reasoning step behind its words and in the margin."""

import re
from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reasoning_features.organism.language import STEP_LABELS
from reasoning_features.reporting.plots import TEXT_WIDTH, legend_below, narrow, panels
from reasoning_features.text.corpus import Corpus

# light backgrounds, white for text whose step is not known
_SHADES = "#E5E5E5 #FFFFFF #A6D2EC #F5F08C #8FD6BC #E8A56F #DDB3D0 #F2CF7E #C9A0A0 #B5B5E6 #FFFFFF"
SHADES = dict(zip((*STEP_LABELS, ""), _SHADES.split(), strict=True))
MONOSPACE = "DejaVu Sans Mono"
CHARACTER_WIDTH = 0.602  # of that font, in font sizes
CHARACTERS = {1: 92, 2: 56}  # of a line beside the margin, by the number of texts side by side
MARGIN = 12  # characters left of a line for the names of its steps; a text without steps has no margin
LONGEST = 40  # lines of a drawn text; the rest is left out, and said to be
LINE = 0.118  # inches

Line = list[tuple[str, str]]  # its pieces: step ("" where none is known) and text


def segments(corpus: Corpus, document: int, tokenizer: Any) -> pd.DataFrame:
    """A document as runs of tokens of one ``move``, with their ``text``; without labels one run, of ""."""
    tokens, names = corpus.document(document), corpus.move_names or ("",)
    codes = np.zeros(len(tokens), int) if corpus.moves is None else corpus.moves[corpus.span(document)]
    runs = np.split(np.arange(len(tokens)), np.flatnonzero(np.diff(codes)) + 1)
    rows = [(names[codes[run[0]]], tokenizer.decode(tokens[run].tolist())) for run in runs]
    return pd.DataFrame(rows, columns=["move", "text"])


def draw_trace(corpus: Corpus, documents: Sequence[int], tokenizer: Any) -> tuple[Figure, pd.DataFrame]:
    """Documents drawn below each other, and all their runs: ``document``, ``style``, ``move``, ``text``."""
    styles = corpus.styles or [""] * corpus.n_documents
    runs = {i: segments(corpus, i, tokenizer).assign(document=i, style=styles[i]) for i in documents}
    told = {i: ", ".join(filter(None, [f"document {i}", corpus.domains[i], styles[i]])) for i in documents}
    fig = draw_runs({told[i]: part for i, part in runs.items()}, across=1)
    data = pd.concat(runs.values(), ignore_index=True)[["document", "style", "move", "text"]]
    return fig, data.assign(text=data["text"].str.replace("\n", "⏎"))


def draw_runs(runs: Mapping[str, pd.DataFrame], across: int, title: str = "") -> Figure:
    """Texts (heading → runs, as :func:`segments` gives them), so many in a row, with a legend of steps."""
    lines = [_wrapped(part, CHARACTERS[across]) for part in runs.values()]
    rows = max(map(len, lines))
    fig, axes = panels(len(runs), across, height=LINE * (rows + 6) + 0.2)
    # a real question may be a paragraph: its first lines
    asked = wrap(title, 95, max_lines=4, placeholder=" …")
    fig.suptitle("\n".join(asked), fontsize=8, parse_math=False)
    fig.set_figheight(fig.get_figheight() + LINE * (len(asked) - 1))
    for ax, part, heading in zip(axes, lines, runs, strict=True):
        _write(ax, part, across)
        ax.set_ylim(rows + 0.3, -0.7)
        ax.set_title("\n".join(wrap(heading, 50)), loc="left", fontsize=7, parse_math=False)
    drawn = {move for part in lines for line in part for move, _ in line if move}
    moves = [move for move in SHADES if move in drawn]  # in one order in all figures
    patches = {m: plt.Rectangle((0, 0), 1, 1, facecolor=SHADES[m], edgecolor="grey") for m in moves}
    legend_below(fig, patches)
    return fig


def _wrapped(runs: pd.DataFrame, characters: int) -> list[Line]:
    """Runs cut into lines at newlines and before spaces; without steps the margin's width is text's too."""
    if not runs["move"].any():
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
    lines = [line for line in lines if line]
    if len(lines) > LONGEST:
        lines = [*lines[: LONGEST - 1], [("", f"… and {len(lines) - LONGEST + 1} more lines")]]
    return lines


def _write(ax: Axes, lines: list[Line], across: int) -> None:
    """Write lines into one of ``across`` panels, with their steps behind and in the margin."""
    places = CHARACTERS[across] + MARGIN
    margin = MARGIN if any(move for line in lines for move, _ in line) else 0
    ax.set_xlim(-margin, places - margin)
    ax.axis("off")
    # a full line may be a little wider than its panel: room made for it would move the others
    style: Any = {"va": "center", "in_layout": False}
    style["fontsize"] = TEXT_WIDTH / across * 72 * 0.96 / places / CHARACTER_WIDTH
    for row, line in enumerate(lines):
        column = 0
        ax.text(-margin, row, line[0][0], color="#444444", style="italic", **style)
        for move, text in line:
            ax.add_patch(plt.Rectangle((column, row - 0.5), len(text), 1, color=SHADES[move], linewidth=0))
            start, shown = column + len(text) - len(text.lstrip()), narrow(text.lstrip())
            ax.text(start, row, shown, family=MONOSPACE, parse_math=False, **style)
            column += len(text)
