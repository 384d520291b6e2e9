"""Traces are drawn with every character of theirs, and with the move each token has."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from figure_checks import different, legible
from transformers import AutoTokenizer

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


@pytest.fixture
def traced(tiny_llama: Path) -> tuple[Corpus, object]:
    """One document of three runs: explore, verify, explore."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    runs = [("Wait, let me try 3 + 4 < 9.\n", 0), ("Perhaps " * 30, 1), ("right.", 0)]
    ids = [tokenizer.encode(text) for text, _ in runs]
    tokens = np.concatenate(ids).astype(np.int32)
    corpus = Corpus(
        name="traced",
        tokens=tokens,
        starts=np.array([0, len(tokens)]),
        special=np.zeros(len(tokens), dtype=bool),
        thinking=np.ones(len(tokens), dtype=bool),
        domains=["pair"],
        moves=np.concatenate([[move] * len(part) for part, (_, move) in zip(ids, runs, strict=True)]),
        move_names=("explore", "verify"),
        styles=["careful"],
    )
    return corpus, tokenizer


def test_runs_of_a_move(traced) -> None:
    held = segments(traced[0], 0, traced[1])
    assert held["move"].tolist() == ["explore", "verify", "explore"]
    assert held["text"].tolist() == ["Wait, let me try 3 + 4 < 9.\n", "Perhaps " * 30, "right."]


def test_a_trace_without_labels_has_no_margin_and_no_legend(traced) -> None:
    corpus = replace(traced[0], moves=None, move_names=())
    assert segments(corpus, 0, traced[1])["move"].tolist() == [""]
    shown = trace_html(corpus, 0, traced[1]).data
    assert "unlabelled" not in shown and "span" not in shown and "4 &lt; 9" in shown
    fig, data = draw_trace(corpus, [0], traced[1])
    (ax,) = fig.axes
    assert not fig.legends and data["move"].tolist() == [""]
    assert ax.get_xlim() == (0, CHARACTERS + MARGIN)
    lines = {text.get_position()[1]: text.get_position()[0] + len(text.get_text()) for text in ax.texts}
    assert CHARACTERS < max(lines.values()) <= CHARACTERS + MARGIN
    legible(fig)
    plt.close(fig)


def test_no_move_is_without_a_shade_and_long_texts_are_cut(traced) -> None:
    corpus, tokenizer = traced
    names = tuple(f"move {i}" for i in range(24))
    assert different(shades(names).values()) is False  # white is a move's too
    assert different(shades(names)[name] for name in names)
    tokens = np.resize(corpus.tokens, 1200)
    many = replace(
        corpus, tokens=tokens, starts=np.array([0, 1200]), special=np.zeros(1200, bool),
        thinking=np.ones(1200, bool), moves=np.arange(1200) // 50, move_names=names,
    )  # fmt: skip
    fig, data = draw_trace(many, [0], tokenizer)
    assert data["move"].unique().tolist() == list(names)
    assert [text.get_text() for text in fig.legends[0].get_texts()] == list(names)
    assert len({text.get_position()[1] for text in fig.axes[0].texts}) == LONGEST
    assert "more lines" in fig.axes[0].texts[-1].get_text()
    legible(fig)
    plt.close(fig)


def test_html_escapes_and_shades(traced) -> None:
    shown = trace_html(traced[0], 0, traced[1]).data
    assert "4 &lt; 9" in shown
    assert shown.count(SHADES[0]) == 3 and shown.count(SHADES[1]) == 2  # runs and keys


def test_drawn_lines_keep_every_word_and_fit(traced) -> None:
    fig, data = draw_trace(traced[0], [0], traced[1])
    drawn = [t.get_text() for t in fig.axes[0].texts if t.get_family() == ["DejaVu Sans Mono"]]
    assert "".join(drawn).replace(" ", "") == "".join(data["text"]).replace("⏎", "").replace(" ", "")
    assert max(t.get_position()[0] + len(t.get_text()) for t in fig.axes[0].texts) <= CHARACTERS
    assert data["style"].unique().tolist() == ["careful"]
    plt.close(fig)
