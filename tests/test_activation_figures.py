"""Traces are drawn with every character of theirs, and with the move each token has."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from transformers import AutoTokenizer

from reasoning_features.residual_stream.activation_figures import (
    CHARACTERS,
    SHADES,
    draw_probes,
    draw_profiles,
    draw_trace,
    segments,
    trace_html,
)
from reasoning_features.text.corpus import Corpus


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


def test_without_labels_a_trace_is_one_run(traced) -> None:
    corpus = replace(traced[0], moves=None, move_names=())
    assert segments(corpus, 0, traced[1])["move"].tolist() == ["unlabelled"]
    assert "unlabelled" in trace_html(corpus, 0, traced[1]).data


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


def test_profiles_have_lines_over_numbers_and_marks_over_names() -> None:
    means = pd.DataFrame({"mean": [1.0, 2], "low": [0.5, 2.1], "high": [1.5, 3], "tokens": [3, 4]})
    place, move = means.assign(by="position", group=[0, 16]), means.assign(by="move", group=["a", "b"])
    data = pd.concat([part.assign(model=name) for part in (place, move) for name in ("subject", "base")])
    fig = draw_profiles(data, "model", "loss")
    styles = [{line.get_linestyle() for line in ax.lines} for ax in fig.axes]
    assert {"-", "--"} <= styles[0] and styles[1] == {"None"}
    assert fig.axes[1].get_xticklabels()[0].get_text() == "a"
    plt.close(fig)


def test_probes_have_a_panel_a_target() -> None:
    rows = [
        (target, layer, labels, 0.5, 0.4, 0.6, 0.1)
        for target in ("own", "next")
        for layer in (-1, 0, 1)
        for labels in ("true", "shuffled")
    ]
    columns = ["target", "layer", "labels", "balanced accuracy", "low", "high", "chance"]
    fig = draw_probes(pd.DataFrame(rows, columns=columns), 1)
    assert [ax.get_title() for ax in fig.axes] == ["own", "next"]
    assert [label.get_text() for label in fig.axes[0].get_xticklabels()] == ["token", "0", "1"]
    plt.close(fig)
