"""Traces side by side: moves on their backgrounds, everything escaped, long ones cut with a note."""

from __future__ import annotations

import re

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from figure_checks import legible

from reasoning_features.models.conditions import UNSTEERED
from reasoning_features.organism.traces import MOVES
from reasoning_features.residual_stream.activation_figures import LONGEST, MARGIN, SHADES
from reasoning_features.steering.trace_viewer import (
    CHARACTERS,
    Trace,
    draw_traces,
    flipped,
    moves_of,
    side_by_side,
    traces_html,
)

PROMPT = "<|bos|><|user|>Two of 3 9 4 with sum 7.<|assistant|><think>\n"
GIVES_UP = (
    PROMPT + "Wait, now try 3 + 9 = 12, high.\nAnd, thus stop with 3 + 9.\n</think>\n\\boxed{ 3 + 9 }<|eos|>"
)
GOES_ON = PROMPT + (
    "Wait, now try 3 + 9 = 12, high.\nHmm, so undo there.\nWait, now take 3 + 4 = 7, yes.\nSpoilt line\n"
    "And, so keep 3 + 4.\n</think>\n\\boxed{ 3 + 4 }<|eos|>"
)
SHADE = dict(zip(MOVES, SHADES, strict=True))


@pytest.fixture
def answers():
    rows = [
        (UNSTEERED, 0, False, 12, GIVES_UP),
        (UNSTEERED, 1, True, 12, GOES_ON),
        (UNSTEERED, 2, True, 12, GOES_ON),
        ("on", 0, True, 20, GOES_ON),
        ("on", 1, False, 20, GIVES_UP),
        ("on", 2, True, 20, GOES_ON),
    ]
    return pd.DataFrame(rows, columns=["condition", "problem", "correct", "thinking_tokens", "text"])


def test_moves_are_read_after_the_prompt():
    runs = moves_of(GOES_ON)
    assert runs["move"].tolist() == [
        "explore", "compute", "backtrack", "explore", "compute", "", "conclude", "answer",
    ]  # fmt: skip
    assert PROMPT + "".join(runs["text"]) == GOES_ON
    assert moves_of("Some <b>prose</b>.").values.tolist() == [["", "Some <b>prose</b>."]]


def test_a_problem_under_two_conditions(answers):
    question, traces = side_by_side(answers, 0, ["on"])
    assert question == "Two of 3 9 4 with sum 7."
    headings = ["unsteered: wrong, 12 tokens", "on: right, 20 tokens"]
    assert [trace.heading for trace in traces] == headings
    assert [trace.text for trace in traces] == [GIVES_UP, GOES_ON]
    assert flipped(answers, "on") == {"wrong to right": [0], "right to wrong": [1]}


def test_the_page_colours_moves_and_escapes_the_rest(answers):
    title, traces = side_by_side(answers, 0, ["on"])
    shown = traces_html(title + " <i>", [*traces, Trace("<u>", 'Prose "<b>"')])
    assert f'<span style="background:{SHADE["give up"]};color:#000" title="give up">And, thus' in shown.page
    for move in ("explore", "give up", "conclude"):
        assert f"&nbsp;{move}&nbsp;" in shown.fragment
    assert "Spoilt line\n" in shown.fragment and "Prose &quot;&lt;b&gt;&quot;" in shown.fragment
    allowed = {"p", "span", "div", "pre", "b"}
    assert set(re.findall(r"</?(\w+)", shown._repr_html_())) <= allowed
    assert "<b>" not in shown.fragment and "<u>" not in shown.page and "<i>" not in shown.page
    assert shown.page.startswith("<!doctype html>") and "http" not in shown.page


def test_texts_without_moves_have_no_colours():
    fragment = traces_html("prose", [Trace("one", "Once upon a time.")]).fragment
    assert "background" not in fragment


def test_the_figure_holds_every_word_within_its_panel(answers):
    title, traces = side_by_side(answers, 0, ["on"])
    fig, data = draw_traces("$x$ " + title, traces)
    for ax, trace in zip(fig.axes, traces, strict=True):
        drawn = [t.get_text() for t in ax.texts if t.get_family() == ["DejaVu Sans Mono"]]
        assert "".join(drawn).replace(" ", "") == re.sub(r"\s", "", trace.text.removeprefix(PROMPT))
        assert max(t.get_position()[0] + len(t.get_text()) for t in ax.texts) <= CHARACTERS
    assert {text.get_text() for text in fig.legends[0].get_texts()} >= {"explore", "give up", "conclude"}
    assert data["trace"].unique().tolist() == [trace.heading for trace in traces]
    fig.draw_without_rendering()
    plt.close(fig)


def test_long_and_strange_traces_are_cut_and_told():
    long = PROMPT + "Wait, now try 3 + 9 = 12, high.\n" * 50 + "z" * 200 + "\x00\ud800 $\\frac$\n"
    fig, data = draw_traces("long", [Trace("a", long), Trace("b", "no moves")])
    texts = [text.get_text() for text in fig.axes[0].texts]
    assert "… and 15 more lines" in texts  # 50 sentences and 4 lines of the rest, less 39
    assert len({text.get_position()[1] for text in fig.axes[0].texts}) == LONGEST
    assert "".join(data.loc[data["trace"] == "a", "text"]).count("high") == 50
    fig.draw_without_rendering()
    plt.close(fig)


def test_real_text_has_no_margin_and_long_questions_and_many_traces_fit(answers):
    prose = Trace("a condition with a name of many words " * 3, "It costs $5 and $6_x^2, \\frac. " * 40)
    fig, _ = draw_traces("How many dollars ($) are left? " * 30, [prose] * 5)
    assert len(fig.axes) == 5 and not fig.legends
    assert all(ax.get_xlim() == (0, CHARACTERS + MARGIN) for ax in fig.axes)
    assert "…" in fig.get_suptitle()
    legible(fig)
    plt.close(fig)
