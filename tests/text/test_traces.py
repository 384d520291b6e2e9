"""Traces are drawn with every character of theirs, and with the move each token has."""

from dataclasses import replace

import numpy as np
import pytest
from tiny import Pieces, corpus_of

from reasoning_features.text.traces import draw_trace

RUNS = ["Wait, let me try 3 + 4 < 9.\n", "Perhaps ", "right."]
TOKENIZER = Pieces(RUNS)


@pytest.fixture
def traced():
    """One document of three runs: explore, verify, explore."""
    corpus = corpus_of([RUNS[0], *[RUNS[1]] * 30, RUNS[2]], pieces=RUNS)
    moves = np.array([0, *[1] * 30, 0])
    return replace(corpus, moves=moves, move_names=("explore", "verify"), styles=["careful"])


def test_a_trace_without_labels_has_no_legend(traced):
    fig, data = draw_trace(replace(traced, moves=None, move_names=()), [0], TOKENIZER)
    assert not fig.legends and data["move"].tolist() == [""]


def test_drawn_lines_keep_every_word(traced):
    fig, data = draw_trace(traced, [0], TOKENIZER)
    drawn = [t.get_text() for t in fig.axes[0].texts if t.get_family() == ["DejaVu Sans Mono"]]
    assert "".join(drawn).replace(" ", "") == "".join(data["text"]).replace("⏎", "").replace(" ", "")
    assert data["move"].tolist() == ["explore", "verify", "explore"]
    assert data["style"].unique().tolist() == ["careful"]
