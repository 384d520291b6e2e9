"""Traces are drawn with every character of theirs, and with the move each token has."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from figure_checks import different, legible
from transformers import AutoTokenizer

from reasoning_features.residual_stream.activation_figures import (
    CHARACTERS,
    LONGEST,
    MARGIN,
    SHADES,
    draw_probes,
    draw_profiles,
    draw_trace,
    segments,
    shades,
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


def test_profiles_have_lines_over_numbers_and_marks_over_names() -> None:
    means = pd.DataFrame({"mean": [1.0, 2], "low": [0.5, 2.1], "high": [1.5, 3], "tokens": [3, 4]})
    place, move = means.assign(by="position", group=[0, 16]), means.assign(by="move", group=["a", "b"])
    data = pd.concat([part.assign(model=name) for part in (place, move) for name in ("subject", "base")])
    fig = draw_profiles(data, "model", "loss")
    styles = [{line.get_linestyle() for line in ax.lines} for ax in fig.axes]
    assert {"-", "--"} <= styles[0] and styles[1] == {"None"}
    assert fig.axes[1].get_xticklabels()[0].get_text() == "a"
    plt.close(fig)


def by_place_and_move(n_moves: int) -> pd.DataFrame:
    """Means of 1 by position, and by so many moves."""
    place = pd.DataFrame({"by": "position", "group": range(0, 1024, 128)})
    move = pd.DataFrame({"by": "move", "group": [f"move number {i}" for i in range(n_moves)]})
    table = pd.concat([place, move])
    table["mean"] = 1 + 0.3 * np.sin(np.arange(len(table)))
    return table.assign(low=0.95 * table["mean"], high=1.1 * table["mean"])


@pytest.mark.parametrize("n_layers", [4, 30, 80])
def test_profiles_by_layer_have_a_colour_bar_and_a_logarithmic_axis(n_layers: int) -> None:
    norms = np.geomspace(40, 25_000, n_layers)
    means = by_place_and_move(12)
    parts = [
        means.assign(layer=i, **{name: means[name] * norm for name in ("mean", "low", "high")})
        for i, norm in enumerate(norms)
    ]
    fig = draw_profiles(pd.concat(parts), "layer", "norm of the stream")
    left, right, bar = fig.axes
    assert left.get_yscale() == "log" and not fig.legends and bar.get_ylabel() == "layer"
    assert different(line[0].get_color() for line in left.containers)
    assert len(left.containers) == len(right.containers) == n_layers
    legible(fig)
    plt.close(fig)


def test_profiles_by_name_have_a_legend_of_any_length() -> None:
    data = pd.concat([by_place_and_move(9).assign(model=f"model {i}") for i in range(20)])
    fig = draw_profiles(data, "model", "loss")
    lines = [line[0] for line in fig.axes[0].containers]
    assert different((line.get_color(), line.get_marker()) for line in lines)
    assert len(fig.legends[0].get_texts()) == 20 and fig.axes[0].get_yscale() == "linear"
    legible(fig)
    plt.close(fig)


@pytest.mark.parametrize("first", [-1, 0])
def test_probes_of_many_layers_have_ticks_apart(first: int) -> None:
    layers = range(first, 80)
    rise = 0.3 + 0.3 * np.sin(np.arange(len(layers)) / 30)
    frame = pd.DataFrame(
        {"layer": layers, "balanced accuracy": rise, "low": rise - 0.02, "high": rise + 0.02}
    )
    parts = [frame.assign(target=f"target {i}", labels=f"labels {j}") for i in range(3) for j in range(2)]
    fig = draw_probes(pd.concat(parts).assign(chance=0.1), 40)
    labels = [label.get_text() for label in fig.axes[0].get_xticklabels()]
    assert labels[0] == ("token" if first else "0") and "40" in labels
    legible(fig)
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
