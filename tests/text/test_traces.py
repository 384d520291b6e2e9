"""Traces are drawn with every character of theirs, and with the move each token has."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
from figure_checks import different, legible
from tiny import Pieces, corpus_of

from reasoning_features.text.corpus import Corpus
from reasoning_features.text.traces import (
    CHARACTERS,
    LONGEST,
    MARGIN,
    SHADES,
    draw_trace,
    segments,
    shades,
    trace_html,
)

RUNS = ["Wait, let me try 3 + 4 < 9.\n", "Perhaps ", "right."]
TOKENIZER = Pieces(RUNS)


@pytest.fixture
def traced() -> Iterator[Corpus]:
    """One document of three runs: explore, verify, explore."""
    corpus = corpus_of([RUNS[0], *[RUNS[1]] * 30, RUNS[2]], pieces=RUNS)
    yield replace(
        corpus, moves=np.array([0, *[1] * 30, 0]), move_names=("explore", "verify"), styles=["careful"]
    )
    plt.close("all")


def test_runs_of_a_move(traced: Corpus) -> None:
    runs = segments(traced, 0, TOKENIZER)
    assert runs["move"].tolist() == ["explore", "verify", "explore"]
    assert runs["text"].tolist() == ["Wait, let me try 3 + 4 < 9.\n", "Perhaps " * 30, "right."]


def test_a_trace_without_labels_has_no_margin_and_no_legend(traced: Corpus) -> None:
    corpus = replace(traced, moves=None, move_names=())
    assert segments(corpus, 0, TOKENIZER)["move"].tolist() == [""]
    shown = trace_html(corpus, 0, TOKENIZER).data
    assert "unlabelled" not in shown and "span" not in shown and "4 &lt; 9" in shown
    fig, data = draw_trace(corpus, [0], TOKENIZER)
    (ax,) = fig.axes
    assert not fig.legends and data["move"].tolist() == [""]
    assert ax.get_xlim() == (0, CHARACTERS + MARGIN)
    lines = {text.get_position()[1]: text.get_position()[0] + len(text.get_text()) for text in ax.texts}
    assert CHARACTERS < max(lines.values()) <= CHARACTERS + MARGIN
    legible(fig)


def test_no_move_is_without_a_shade_and_long_texts_are_cut(traced: Corpus) -> None:
    names = tuple(f"move {i}" for i in range(24))
    assert different(shades(names).values()) is False  # white is a move's too
    assert different(shades(names)[name] for name in names)
    tokens = np.resize(traced.tokens, 1200)
    many = replace(
        traced, tokens=tokens, starts=np.array([0, 1200]), special=np.zeros(1200, bool),
        thinking=np.ones(1200, bool), moves=np.arange(1200) // 50, move_names=names,
    )  # fmt: skip
    fig, data = draw_trace(many, [0], TOKENIZER)
    assert data["move"].unique().tolist() == list(names)
    assert [text.get_text() for text in fig.legends[0].get_texts()] == list(names)
    assert len({text.get_position()[1] for text in fig.axes[0].texts}) == LONGEST
    assert "more lines" in fig.axes[0].texts[-1].get_text()
    legible(fig)


def test_html_escapes_and_shades(traced: Corpus) -> None:
    shown = trace_html(traced, 0, TOKENIZER).data
    assert "4 &lt; 9" in shown
    assert shown.count(SHADES[0]) == 3 and shown.count(SHADES[1]) == 2  # runs and keys


def test_drawn_lines_keep_every_word_and_fit(traced: Corpus) -> None:
    fig, data = draw_trace(traced, [0], TOKENIZER)
    drawn = [t.get_text() for t in fig.axes[0].texts if t.get_family() == ["DejaVu Sans Mono"]]
    assert "".join(drawn).replace(" ", "") == "".join(data["text"]).replace("⏎", "").replace(" ", "")
    assert max(t.get_position()[0] + len(t.get_text()) for t in fig.axes[0].texts) <= CHARACTERS
    assert data["style"].unique().tolist() == ["careful"]
