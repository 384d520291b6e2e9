"""What steering does to text: its length, its words of R, how it repeats itself; traces side by side.

Moves are read off the texts; a text without moves that are known is shown uncoloured.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from textwrap import fill, wrap

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.figure import Figure

from reasoning_features.models.conditions import UNSTEERED
from reasoning_features.organism.language import ASSISTANT, END_THINK, STEP_LABELS, USER
from reasoning_features.organism.parser import parse
from reasoning_features.reporting.plots import TEXT_WIDTH, legend_below, name_rows, new_figure, panels
from reasoning_features.statistics import bootstrap_mean
from reasoning_features.text.traces import (
    moves_below,
    shades,
    shortened,
    wrapped,
    write_lines,
)
from reasoning_features.text.vocabulary import split_words

LENGTH, REASONING, REPEATED = "tokens", "words of R in a hundred", "repeated pairs of tokens (%)"
MEASURES = (LENGTH, REASONING, REPEATED)
CHARACTERS = 56
"""Characters a line of a drawn trace, of two side by side, beside the margin."""
ACROSS = 2
_MARK = re.compile(r"<[^<>\s]*>")
"""A mark of the template, such as the end of a text: its letters are no words."""
_SHADES = shades(STEP_LABELS)
_LINE = 0.118  # inches


def text_measures(answers: pd.DataFrame, prompts: Sequence[str], words: Sequence[str]) -> pd.DataFrame:
    """The measures of every answer's text, without its prompt: of its thinking, or of all where none ends.

    Args:
        answers: :func:`reasoning_features.steering.answering.answers`; ``text`` begins with the prompt.
        prompts: the text of each problem's prompt.
        words: R.

    Returns:
        ``condition``, ``feature``, ``gamma``, ``problem``, and: ``tokens``; ``words of R in a hundred``
        words (0 in a text without words); ``repeated pairs of tokens (%)``, the share of pairs of neighbours
        that stood in the text before (near 100 where a text goes in circles, or is blank lines).
    """
    phrases = [split_words(word) for word in words if split_words(word)]
    rows = []
    for text, problem, tokens in answers[["text", "problem", "tokens"]].itertuples(index=False, name=None):
        thinking = text[len(prompts[problem]) :].split(END_THINK)[0]
        written = split_words(_MARK.sub(" ", thinking))
        pairs = list(pairwise(tokens))
        hits = sum(written[i : i + len(phrase)] == phrase for phrase in phrases for i in range(len(written)))
        repeated = 100 * (len(pairs) - len(set(pairs))) / max(len(pairs), 1)
        rows.append((100 * hits / max(len(written), 1), repeated))
    told = answers[["condition", "feature", "gamma", "problem"]].reset_index(drop=True)
    told[LENGTH] = answers["thinking_tokens"].to_numpy(dtype=float)
    return told.join(pd.DataFrame(rows, columns=[REASONING, REPEATED], dtype=float))


def text_effects(measured: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Change of each measure from the unsteered text of the same problem and the same draws.

    Returns:
        One row a condition and measure: ``condition``, ``feature``, ``gamma``, ``measure``, ``unsteered``
        (mean), ``change``, ``low``, ``high`` (95%, problems resampled), ``problems``.
    """
    plain = measured[measured["condition"] == UNSTEERED].set_index("problem")[list(MEASURES)]
    named = ["condition", "feature", "gamma"]
    rows = []
    for key, part in measured[measured["condition"] != UNSTEERED].groupby(named, sort=False):
        change = part.set_index("problem")[list(MEASURES)] - plain
        for measure in MEASURES:
            mean = bootstrap_mean(change[measure].to_numpy(), seed=seed)
            told = {"measure": measure, "unsteered": plain[measure].mean(), "change": mean.estimate}
            told |= {"low": mean.low, "high": mean.high, "problems": mean.n}
            rows.append(dict(zip(named, key, strict=True)) | told)
    return pd.DataFrame(rows)


def draw_text_effects(effects: pd.DataFrame, kinds: Mapping[str, Sequence[int]]) -> Figure:
    """Change of each measure for each feature and strength, one panel a measure, features in their order.

    ``kinds`` is kind → its features (:func:`reasoning_features.steering.published.steered_conditions`).
    """
    gammas = sorted(effects["gamma"].unique())
    # each random feature stands under the one that it is matched to
    rows = [
        (kind, feature)
        for matched in zip(*kinds.values(), strict=True)
        for kind, feature in zip(kinds, matched, strict=True)
    ]
    fig, axes = new_figure(1, len(MEASURES), height=1 + 0.2 * len(rows), sharey=True)
    for ax, measure in zip(axes, MEASURES, strict=True):
        for place, gamma in enumerate(gammas):
            part = effects[(effects["measure"] == measure) & (effects["gamma"] == gamma)]
            part = part.set_index("feature").loc[[feature for _, feature in rows]]
            at = np.arange(len(rows)) + 0.5 * ((place + 0.5) / len(gammas) - 0.5)
            colour = colormaps["viridis"](0.8 * place / max(len(gammas) - 1, 1))
            ax.hlines(at, part["low"], part["high"], color=colour, linewidth=1.2)
            ax.scatter(part["change"], at, s=12, color=colour, label=f"γ = {gamma:g}", zorder=3)
        ax.axvline(0, color="black", linewidth=0.8)
        ax.set_xlabel(fill(f"change: {measure}", 22))
    name_rows(axes[0], [f"{kind} {feature}" for kind, feature in rows])
    legend_below(fig)
    return fig


@dataclass(frozen=True)
class Trace:
    """A text, the prompt included, and what stands above it."""

    heading: str
    text: str


def moves_of(text: str) -> pd.DataFrame:
    """A text after its prompt as runs of one move: ``move`` ("": none is known) and ``text``."""
    spans = parse(text).spans
    known = any(move not in ("prompt", "prose", "answer", None) for _, _, move in spans)
    runs = [
        (move or "", text[start:end])
        for start, end, move in (spans if known else [(0, len(text), None)])
        if move != "prompt" and start < end
    ]
    return pd.DataFrame(runs, columns=["move", "text"])


def side_by_side(
    answers: pd.DataFrame, problem: int, conditions: Sequence[str] = (), prompt: str = ""
) -> tuple[str, list[Trace]]:
    """The question, and the traces of one problem: unsteered, then under the conditions named.

    With ``prompt``, the text begins after it. The question is that of a text in the organism's chat; else "".
    """
    own = answers[answers["problem"] == problem].set_index("condition").loc[[UNSTEERED, *conditions]]
    traces = []
    for name, row in own.iterrows():
        verdict = ("right" if row["correct"] else "wrong") if row.get("finished", True) else "cut"
        heading = f"{name}: {verdict}, {row['thinking_tokens']} tokens"
        traces.append(Trace(heading, row["text"][len(prompt) :]))
    text: str = own["text"].iloc[0]
    start, end = text.find(USER), text.find(ASSISTANT)
    return text[start + len(USER) : end] if 0 <= start < end else "", traces


def flipped(answers: pd.DataFrame, condition: str) -> dict[str, list[int]]:
    """Problems whose answer a condition changes: "wrong to right" and "right to wrong", in their order."""
    table = answers.pivot(index="problem", columns="condition", values="correct").astype(bool)
    plain, steered = table[UNSTEERED], table[condition]
    changed = {"wrong to right": ~plain & steered, "right to wrong": plain & ~steered}
    return {name: sorted(int(problem) for problem in table.index[which]) for name, which in changed.items()}


def draw_traces(title: str, traces: Sequence[Trace]) -> tuple[Figure, pd.DataFrame]:
    """Traces drawn two in a row at the width of the text, moves behind and named in the margin.

    Returns:
        The figure, and its rows: ``trace`` (the heading), ``move``, ``text``, the parts left out too.
    """
    runs = [moves_of(_printable(trace.text)) for trace in traces]
    lines = [shortened(wrapped(part, CHARACTERS)) for part in runs]
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
    frames = [part.assign(trace=trace.heading) for part, trace in zip(runs, traces, strict=True)]
    data = pd.concat(frames, ignore_index=True)[["trace", "move", "text"]]
    return fig, data.assign(text=data["text"].str.replace("\n", "⏎"))


def _printable(text: str) -> str:
    """Text as it is drawn: control characters and lone surrogates as a box, newlines as they are."""
    return "".join(c if c == "\n" or c.isprintable() else "□" for c in text)
