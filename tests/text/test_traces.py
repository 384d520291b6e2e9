"""Traces are drawn with every character of theirs, and with the move each token has."""

from dataclasses import replace

import numpy as np
from tiny import Pieces, corpus_of

from reasoning_features.text.traces import draw_trace

RUNS = ["Wait, let me try 3 + 4 < 9.\n", "Perhaps ", "right."]
TOKENIZER = Pieces(RUNS)


def test_drawn_lines_keep_every_word():
    plain = corpus_of([RUNS[0], *[RUNS[1]] * 30, RUNS[2]], pieces=RUNS)
    fig, data = draw_trace(plain, [0], TOKENIZER)  # without labels and legend
    assert not fig.legends and data["move"].tolist() == [""]
    moves = np.array([0, *[1] * 30, 0])
    traced = replace(plain, moves=moves, move_names=("explore", "verify"), styles=["careful"])
    fig, data = draw_trace(traced, [0], TOKENIZER)
    drawn = [t.get_text() for t in fig.axes[0].texts if t.get_family() == ["DejaVu Sans Mono"]]
    assert "".join(drawn).replace(" ", "") == "".join(data["text"]).replace("⏎", "").replace(" ", "")
    assert data["move"].tolist() == ["explore", "verify", "explore"]
    assert data["style"].unique().tolist() == ["careful"]
