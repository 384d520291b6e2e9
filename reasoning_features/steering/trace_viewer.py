"""Traces side by side, moves coloured: a steered one beside the unsteered one of the same problem.

Moves are read off the texts; a text without moves that are known is shown uncoloured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from textwrap import wrap

import pandas as pd
from matplotlib.figure import Figure

from reasoning_features.interpretation.feature_pages import document, escaped
from reasoning_features.models.conditions import UNSTEERED
from reasoning_features.organism.parser import parse
from reasoning_features.organism.traces import ASSISTANT, MOVES, USER
from reasoning_features.reporting.plots import TEXT_WIDTH, panels
from reasoning_features.residual_stream.activation_figures import (
    moves_below,
    shades,
    shortened,
    wrapped,
    write_lines,
)

CHARACTERS = 56
"""Characters a line of a drawn trace, of two side by side, beside the margin."""
ACROSS = 2
_SHADES = shades(MOVES)
_LINE = 0.118  # inches


@dataclass(frozen=True)
class Trace:
    """A text, the prompt included, and what stands above it."""

    heading: str
    text: str


@dataclass(frozen=True)
class Beside:
    """Traces of one problem, as a notebook shows them; ``page`` is the same as a file of its own."""

    title: str
    fragment: str = field(repr=False)

    @property
    def page(self) -> str:
        """A page that loads nothing."""
        return document(self.title, f"<h1>{escaped(self.title)}</h1>\n{self.fragment}")

    def _repr_html_(self) -> str:
        return f"<p><b>{escaped(self.title)}</b></p>\n{self.fragment}"


def moves_of(text: str) -> pd.DataFrame:
    """A text after its prompt as runs of one move: ``move`` ("": none is known) and ``text``."""
    spans = parse(text).spans
    known = any(move not in ("prompt", "prose", "answer", None) for _, _, move in spans)
    runs: list[tuple[str, str]] = []
    for start, end, move in spans if known else [(0, len(text), None)]:
        if move != "prompt" and start < end:
            runs.append((move or "", text[start:end]))
    return pd.DataFrame(runs, columns=["move", "text"])


def question_of(text: str) -> str:
    """The question of a text that holds its prompt, without the signs of the chat; else nothing."""
    start, end = text.find(USER), text.find(ASSISTANT)
    return text[start + len(USER) : end] if 0 <= start < end else ""


def side_by_side(
    answers: pd.DataFrame, problem: int, conditions: Sequence[str] = (), prompt: str = ""
) -> tuple[str, list[Trace]]:
    """The question, and the traces of one problem: unsteered, then under the conditions.

    With ``prompt``, the text begins after it.

    Args:
        answers: :func:`reasoning_features.steering.answering.answers`.
        problem: the problem's number.
        conditions: names of conditions.
    """
    held = answers[answers["problem"] == problem].set_index("condition").loc[[UNSTEERED, *conditions]]
    ended = held["finished"].tolist() if "finished" in held else [True] * len(held)
    verdicts = [
        ("right" if correct else "wrong") if whole else "cut"
        for correct, whole in zip(held["correct"].tolist(), ended, strict=True)
    ]
    told = zip(held.index.tolist(), verdicts, held["thinking_tokens"].tolist(), strict=True)
    headings = [f"{name}: {verdict}, {tokens} tokens" for name, verdict, tokens in told]
    texts: list[str] = held["text"].tolist()
    traces = [Trace(*pair) for pair in zip(headings, [text[len(prompt) :] for text in texts], strict=True)]
    return question_of(texts[0]), traces


def flipped(answers: pd.DataFrame, condition: str) -> dict[str, list[int]]:
    """Problems whose answer a condition changes: "wrong to right" and "right to wrong", in their order."""
    table = answers.pivot(index="problem", columns="condition", values="correct").astype(bool)
    plain, steered = table[UNSTEERED], table[condition]
    found = {"wrong to right": ~plain & steered, "right to wrong": plain & ~steered}
    return {name: sorted(int(problem) for problem in table.index[which]) for name, which in found.items()}


def traces_html(title: str, traces: Sequence[Trace]) -> Beside:
    """Traces beside one another, runs of text on their move's background; the move shows when pointed at."""
    held = [moves_of(trace.text) for trace in traces]
    used = list(dict.fromkeys(move for runs in held for move in runs["move"] if move))
    keys = " ".join(f'<span style="{_style(move)}">&nbsp;{escaped(move)}&nbsp;</span>' for move in used)
    columns = []
    for trace, runs in zip(traces, held, strict=True):
        pieces = [
            f'<span style="{_style(move)}" title="{escaped(move)}">{escaped(text)}</span>'
            if move
            else escaped(text)
            for move, text in zip(runs["move"], runs["text"], strict=True)
        ]
        # a newline right after <pre> is dropped, so one is given
        columns.append(
            f'<div style="flex:1 1 22rem;min-width:0"><p>{escaped(trace.heading)}</p>'
            f'<pre style="white-space:pre-wrap;overflow-wrap:anywhere;text-align:left">\n{"".join(pieces)}'
            "</pre></div>"
        )
    shown = f'<div style="display:flex;flex-wrap:wrap;gap:0 1.5rem">{"".join(columns)}</div>'
    return Beside(title, (f"<p>{keys}</p>\n" if used else "") + shown)


def _style(move: str) -> str:
    return f"background:{_SHADES[move]};color:#000"


def draw_traces(title: str, traces: Sequence[Trace]) -> tuple[Figure, pd.DataFrame]:
    """Traces drawn two in a row at the width of the text, moves behind and named in the margin.

    Returns:
        The figure, and its rows: ``trace`` (the heading), ``move``, ``text``, the parts left out too.
    """
    held = [moves_of(_printable(trace.text)) for trace in traces]
    lines = [shortened(wrapped(runs, CHARACTERS)) for runs in held]
    rows = max(map(len, lines))
    width = TEXT_WIDTH / min(len(traces), ACROSS)
    fig, axes = panels(len(traces), ACROSS, height=_LINE * (rows + 6) + 0.2)
    # a real question may be a paragraph: its first lines
    asked = wrap(title, 95, max_lines=4, placeholder=" …")
    fig.suptitle("\n".join(asked), fontsize=8, parse_math=False)
    fig.set_figheight(fig.get_figheight() + _LINE * (len(asked) - 1))
    for ax, part, trace in zip(axes, lines, traces, strict=True):
        write_lines(ax, part, _SHADES, CHARACTERS, width)
        ax.set_ylim(rows + 0.3, -0.7)
        ax.set_title("\n".join(wrap(trace.heading, 50)), loc="left", fontsize=7, parse_math=False)
    moves_below(fig, dict.fromkeys(m for part in lines for line in part for m, _ in line if m), _SHADES)
    frames = [runs.assign(trace=trace.heading) for runs, trace in zip(held, traces, strict=True)]
    data = pd.concat(frames, ignore_index=True)[["trace", "move", "text"]]
    return fig, data.assign(text=data["text"].str.replace("\n", "⏎"))


def _printable(text: str) -> str:
    """Text as it is drawn: control characters and lone surrogates as a box, newlines as they are."""
    return "".join(c if c == "\n" or c.isprintable() else "□" for c in text)
