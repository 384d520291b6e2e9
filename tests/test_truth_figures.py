"""Figures give back the numbers they draw."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from figure_checks import legible

from reasoning_features.truth.causal_truth import Effects
from reasoning_features.truth.patching import GROUPS
from reasoning_features.truth.truth_figures import (
    draw_decodability,
    draw_effect_against_size,
    draw_effects,
    draw_patching,
    draw_places,
    effect_table,
)

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def effects() -> Effects:
    size, random_size = RNG.uniform(0.1, 2, 40), RNG.uniform(0.1, 2, 60)
    traces = RNG.normal(0, 0.02, (12, 40)).astype(np.float32)
    traces[:, 3] -= 1
    effect = traces.sum(0) / 24
    return Effects(
        features=np.arange(100, 140),
        effect=effect,
        absolute=np.abs(effect),
        size=size,
        threshold=0.1 * size,
        documents=np.arange(12),
        traces=traces,
        counts=np.full(12, 2),
        random_effect=random_size * RNG.normal(0, 0.05, 60),
        random_absolute=random_size * 0.05,
        random_size=random_size,
    )


def test_the_table_ranks_features_and_keeps_random_directions_apart():
    held = effects()
    table = effect_table(held)
    best = table[table["rank"] == 1].iloc[0]
    assert best["feature"] == 103 and best["effect"] == pytest.approx(held.effect[3])
    assert best["low"] <= best["effect"] <= best["high"] < -0.4
    assert (table["feature"] == -1).sum() == 60 and table["true"].sum() == held.true.sum()


def test_every_figure_draws_and_returns_its_data():
    patched = pd.DataFrame(
        [
            {"layer": layer, "group": group, "share": 0.5, "low": 0.4, "high": 0.7, "change": -1.5}
            for layer in range(3)
            for group in GROUPS
        ]
    )
    fig, data = draw_patching({"coupled": patched, "decoupled": patched})
    assert len(fig.axes) == 2 and len(data) == 24 and "-1.50 nats" in fig.axes[0].get_title()
    held = {"persistence": effects(), "verification": effects()}
    fig, data = draw_effects(held)
    assert len(fig.axes) == 2 and len(data) == 200
    assert f"{held['persistence'].true.sum()} of 40 pass" in fig.axes[0].get_title()
    fig, data = draw_effect_against_size(held)
    assert len(data) == 200 and "slope 1.00" in fig.axes[0].get_title()
    table = pd.DataFrame(
        {"feature": [1, 2, 1, 2], "label": ["a b", "a b", "c", "c"], "auc": [0.5, 0.9, 0.6, 0.7]}
    )
    _, data = draw_decodability({"one": table}, {"one": [2]})
    assert data["causal"].tolist() == [False, True, False, True]


def test_many_layers_measurements_and_labels_are_legible():
    rows = [(layer, group, 0.5, 0.4, 0.7, -1.5) for layer in range(80) for group in GROUPS]
    patched = pd.DataFrame(rows, columns=["layer", "group", "share", "low", "high", "change"])
    fig, _ = draw_patching({f"arm {i}": patched for i in range(9)})
    legible(fig)
    held = {f"arm {i}: persistence": effects() for i in range(9)}
    for draw in (draw_effects, draw_effect_against_size):
        fig, _ = draw(held)
        assert len(fig.axes) == 9
        legible(fig)
    labels = [f"label number {i}" for i in range(12)]
    table = pd.DataFrame({"feature": range(12), "label": labels, "auc": 0.6})
    fig, _ = draw_decodability({"one": table.iloc[1:], "two": table}, {"one": [2], "two": []})
    assert [text.get_text() for text in fig.axes[0].get_yticklabels()] == [*labels[1:], labels[0]]
    legible(fig)


def test_places_are_drawn_in_units_of_their_thresholds():
    table = pd.DataFrame(
        {
            "feature": [3, 5, 7, 9],
            "at the decision": [0.4, -0.1, 0.0, 0.01],
            "low": [0.3, -0.2, -0.1, 0.0],
            "high": [0.5, 0.0, 0.1, 0.02],
            "threshold": 0.2,
            "over the trace": [0.6, -0.9, 0.1, 0.02],
            "trace low": [0.5, -1.0, 0.0, 0.0],
            "trace high": [0.7, -0.8, 0.2, 0.04],
            "trace threshold": 0.3,
            "passes": ["both", "trace", "neither", "neither"],
            "chosen": [False, True, False, False],
        }
    )
    fig, data = draw_places({"persistence": table, "verification": table})
    assert len(fig.axes) == 2 and len(data) == 8
    ax = fig.axes[0]
    assert "1 at the decision, 2 over, 1 both" in ax.get_title()
    drawn = {tuple(np.round(xy, 3)) for line in ax.get_lines() for xy in line.get_xydata()}
    # 0.4 / 0.2 and 0.6 / 0.3
    assert (2.0, 2.0) in drawn and (-0.5, -3.0) in drawn
    labels = [text.get_text() for text in fig.legends[0].get_texts()]
    assert labels == ["chosen", "pass at neither", "at the decision alone", "over the trace alone", "at both"]
