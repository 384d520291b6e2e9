"""Figures give back the numbers they draw."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from figure_checks import different, legible

from reasoning_features.interpretation.lexical_controls import CLASSES
from reasoning_features.truth.effects import GROUPS, Effects
from reasoning_features.truth.figures import (
    draw_decodability,
    draw_effect_against_size,
    draw_effects,
    draw_lexical,
    draw_patching,
    draw_places,
    draw_precision_against_kappa,
    draw_scorers,
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
    random = np.stack([random_size * RNG.normal(0, 0.05, 60), random_size * 0.05, random_size])
    change, counts = traces.sum(0) / 24, np.full(12, 2)
    return Effects(np.arange(100, 140), change, size, 0.1 * size, traces, counts, random)


def test_the_table_ranks_features_and_keeps_random_directions_apart():
    held = effects()
    table = effect_table(held)
    best = table[table["rank"] == 1].iloc[0]
    assert best["feature"] == 103 and best["effect"] == pytest.approx(held.change[3])
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


def results() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = []
    for scorer, labels in (("ReasonScore", False), ("mean difference", True)):
        for kappa in (0.0, 0.5, 1.0):
            for seed in range(3):
                estimate = 0.1 + 0.2 * kappa + 0.3 * labels + 0.05 * rng.random()
                row = {"kappa": kappa, "autoencoder_seed": seed, "scorer": scorer, "labels": labels}
                interval = {"estimate": estimate, "low": estimate - 0.05, "high": estimate + 0.1}
                rows.append(row | interval | {"metric": "average precision", "chance": 0.05})
    return pd.DataFrame(rows)


BANDS = pd.DataFrame(
    {"kappa": [0.0, 0.5, 1.0], "null": "slot", "low": 0.05, "mean": 0.1, "high": 0.2}
).assign(metric="average precision")


def test_precision_against_kappa():
    coupling = pd.DataFrame({"kappa": [1.0], "kappa_low": [0.9], "kappa_high": [1.0], "outside": [True]})
    fig, data = draw_precision_against_kappa(results(), ["ReasonScore", "mean difference"], BANDS, coupling)
    assert data["series"].value_counts().to_dict() == {"scorer": 18, "null": 3, "real traces": 1}
    labels = [text.get_text() for text in fig.legends[0].get_texts()]
    assert labels == [
        "mixtures of R and twins, 95%",
        "ReasonScore",
        "mean difference",
        "chance (base rate)",
        "real labelled traces (beyond the scale)",
    ]
    _, data = draw_precision_against_kappa(results(), ["ReasonScore"], BANDS.iloc[:0])
    assert set(data["series"]) == {"scorer"} and len(data) == 9


def test_scorers_by_arm():
    fig, data = draw_scorers(results(), {"decoupled": 0.0, "coupled": 1.0})
    assert len(data) == 12 and [ax.get_title() for ax in fig.axes] == ["decoupled", "coupled"]
    assert [text.get_text() for text in fig.axes[0].get_yticklabels()] == ["ReasonScore", "mean difference"]


def test_lexical_bars():
    table = pd.DataFrame(
        {
            "group": ["selected"] * 3 + ["random"] * 3,
            "class": [*CLASSES, *CLASSES],
            "share": [0.5, 0.3, 0.2, 0.1, 0.2, 0.7],
            "causal": [0.1, 0.0, 0.1, np.nan, np.nan, np.nan],
            "features": [20] * 3 + [40] * 3,
        }
    )
    fig, data = draw_lexical({"coupled": table, "decoupled": table})
    assert len(data) == 12 and set(data["arm"]) == {"coupled", "decoupled"}
    labels = [text.get_text() for text in fig.axes[0].get_yticklabels()]
    assert labels == ["selected (n = 20)", "random (n = 40)"]


def test_twelve_scorers_arms_and_groups_are_legible():
    many = pd.concat([results().assign(scorer=f"scorer {i}", labels=i % 2 == 0) for i in range(12)])
    scorers = list(many["scorer"].unique())
    fig, _ = draw_precision_against_kappa(many, scorers, BANDS)
    lines = [line for line in fig.axes[0].lines if line.get_label() in scorers]
    assert len(lines) == 12 and different((line.get_color(), line.get_marker()) for line in lines)
    legible(fig)
    fig, _ = draw_scorers(
        many, {f"κ = {i}": i / 2 for i in (0, 1, 2)} | {f"again {i}": 0.5 for i in range(9)}
    )
    legible(fig)
    parts = [
        pd.DataFrame({"group": f"group {i}", "class": CLASSES, "share": 1 / 3, "causal": 0.1, "features": i})
        for i in range(12)
    ]
    fig, _ = draw_lexical({"coupled": pd.concat(parts), "decoupled": pd.concat(parts)})
    assert len(fig.axes[0].get_yticklabels()) == 12
    legible(fig)
