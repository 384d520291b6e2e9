"""What steering does to text, worked out by hand; traces side by side, long ones cut with a note."""

from __future__ import annotations

import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from figure_checks import legible

from reasoning_features.models.conditions import UNSTEERED
from reasoning_features.steering.steering_texts import (
    CHARACTERS,
    LENGTH,
    MEASURES,
    REASONING,
    REPEATED,
    Trace,
    draw_text_effects,
    draw_traces,
    flipped,
    moves_of,
    side_by_side,
    text_effects,
    text_measures,
)
from reasoning_features.text.traces import LONGEST, MARGIN

WORDS = ["wait", "let me", "1"]  # the last has no letters: it is never found, and found nowhere


def answered(*texts: str, prompt: str = "Wait?<think>") -> pd.DataFrame:
    """Unsteered answers to as many problems."""
    told = {"condition": UNSTEERED, "feature": -1, "gamma": 0.0, "problem": range(len(texts))}
    tokens = [tuple(text.split()) for text in texts]
    return pd.DataFrame(told | {"text": [prompt + t for t in texts], "tokens": tokens, "thinking_tokens": 7})


@pytest.mark.parametrize(
    ("text", "reasoning", "repeated"),
    [
        ("wait, let me see: wait, let it be.", 100 * 3 / 8, 100 * 1 / 7),  # "wait, let" comes again
        ("Let's wait. Let me wait", 100 * 3 / 5, 0),  # let's is one word
        ("no no no no no", 0, 100 * 3 / 4),
        ("wait", 100, 0),
        ("1 + 1 = 2.", 0, 0),  # without words
        ("", 0, 0),
        ("Hmm, wait.</think> Wait, wait, wait", 100 * 1 / 2, 0),  # its thinking alone
        ("so wait<|im_end|>", 100 * 1 / 2, 0),  # a mark is no word
    ],
)
def test_measures_by_hand(text, reasoning, repeated):
    row = text_measures(answered(text), ["Wait?<think>"], WORDS).loc[0]
    assert row[[LENGTH, REASONING, REPEATED]].tolist() == pytest.approx([7, reasoning, repeated])


def test_each_answer_has_its_own_prompt_and_keeps_what_is_known_of_it():
    table = answered("b wait", "c", prompt="")
    table["text"] = ["wait wait b", "wait b"]
    found = text_measures(table.iloc[::-1], ["wait wait", "wait"], WORDS)
    assert list(found.columns) == ["condition", "feature", "gamma", "problem", *MEASURES]
    assert found["problem"].tolist() == [1, 0] and found[REASONING].tolist() == [0, 0]


def measured(condition: str, feature: int, gamma: float, lengths: dict[int, float]) -> pd.DataFrame:
    told = {"condition": condition, "feature": feature, "gamma": gamma, "problem": list(lengths)}
    return pd.DataFrame(told | {LENGTH: list(lengths.values()), REASONING: 5.0, REPEATED: 10.0})


def test_effects_are_paired_over_problems():
    plain = measured(UNSTEERED, -1, 0.0, {0: 10, 1: 20, 2: 60})
    # in another order: 13 − 10, 23 − 20, 63 − 60 are the same change, so there is nothing to resample
    more = measured("4 at 2", 4, 2.0, {2: 63, 0: 13, 1: 23})
    less = measured("4 at -1", 4, -1.0, {0: 10, 1: 14, 2: 48}).assign(**{REPEATED: [10.0, 40.0, 40.0]})
    table = text_effects(pd.concat([plain, more, less]))
    assert table["condition"].tolist() == ["4 at 2"] * 3 + ["4 at -1"] * 3
    told = table.set_index(["gamma", "measure"])
    assert told.loc[(2, LENGTH), ["unsteered", "change", "low", "high"]].tolist() == [30, 3, 3, 3]
    assert told.loc[(-1, LENGTH), "change"] == pytest.approx((0 - 6 - 12) / 3)
    assert told.loc[(-1, LENGTH), "low"] < -6 < told.loc[(-1, LENGTH), "high"]
    assert told.loc[(-1, REPEATED), ["unsteered", "change"]].tolist() == pytest.approx([10, 20])
    assert (told["problems"] == 3).all() and (told.xs(REASONING, level="measure")["change"] == 0).all()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("features", "gammas"), [(40, [-4, -2, 1, 2, 4]), (2, [2])])
def test_any_number_of_features_and_strengths_is_drawn(features, gammas):
    numbers = list(range(1000, 1000 + features))
    rows = [(f, g, m, f - 1000 + g) for f in reversed(numbers) for g in gammas for m in MEASURES]
    effects = pd.DataFrame(rows, columns=["feature", "gamma", "measure", "change"])
    effects = effects.assign(low=effects["change"] - 1, high=effects["change"] + 1)
    half = features // 2
    fig = draw_text_effects(effects, {"ReasonScore": numbers[:half], "random": numbers[half:]})
    names = [label.get_text() for label in fig.axes[0].get_yticklabels()]
    assert names[0] == "ReasonScore 1000" and names[-1] == f"random {numbers[-1]}" and len(names) == features
    (legend,) = fig.legends
    assert [label.get_text() for label in legend.get_texts()] == [f"γ = {gamma}" for gamma in gammas]
    # every feature has a mark a strength in every panel, at its change
    drawn = [points.get_offsets() for points in fig.axes[0].collections if len(points.get_offsets()) > 1]
    in_pairs = np.arange(features).reshape(2, half).T.ravel()  # each random feature under its match
    np.testing.assert_allclose([o[:, 0] for o in drawn], [in_pairs + gamma for gamma in gammas])
    legible(fig)
    plt.close(fig)


PROMPT = "<|bos|><|user|>Two of 3 9 4 with sum 7.<|assistant|><think>\n"


GIVES_UP = (
    PROMPT + "Wait, now try 3 + 9 = 12, high.\nAnd, thus stop with 3 + 9.\n</think>\n\\boxed{ 3 + 9 }<|eos|>"
)


GOES_ON = PROMPT + (
    "Wait, now try 3 + 9 = 12, high.\nHmm, so undo there.\nWait, now take 3 + 4 = 7, yes.\nSpoilt line\n"
    "And, so keep 3 + 4.\n</think>\n\\boxed{ 3 + 4 }<|eos|>"
)


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
