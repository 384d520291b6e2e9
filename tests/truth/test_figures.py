"""Figures give back the numbers they draw, and name every series."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from reasoning_features.interpretation.lexical_controls import CLASSES
from reasoning_features.truth import figures
from reasoning_features.truth.effects import GROUPS, Effects


def effects(seed: int = 0) -> Effects:
    rng = np.random.default_rng(seed)
    size, random_size = rng.uniform(0.1, 2, 40), rng.uniform(0.1, 2, 60)
    traces = rng.normal(0, 0.02, (12, 40)).astype(np.float32)
    traces[:, 3] -= 1
    random = np.stack([random_size * rng.normal(0, 0.05, 60), random_size * 0.05, random_size])
    change, counts = traces.sum(0) / 24, np.full(12, 2)
    return Effects(np.arange(100, 140), change, size, 0.1 * size, traces, counts, random)


def test_effects_by_rank_and_size():
    own = effects()
    table = figures.effect_table(own)
    best = table[table["rank"] == 1].iloc[0]
    assert best["feature"] == 103 and best["effect"] == pytest.approx(own.change[3])
    assert best["low"] <= best["effect"] <= best["high"] < -0.4
    assert (table["feature"] == -1).sum() == 60 and table["true"].sum() == own.true.sum()
    both = {f"variant {i}: persistence": effects(i) for i in range(2)}
    for draw in (figures.draw_effects, figures.draw_effect_against_size):
        fig, data = draw(both)
        assert len(fig.axes) == 2 and len(data) == 200
    assert "slope 1.00" in fig.axes[0].get_title()
    assert f"{own.true.sum()} of 40 pass" in figures.draw_effects(both)[0].axes[0].get_title()


def test_patching_by_block():
    rows = [(layer, group, 0.5, 0.4, 0.7, -1.5) for layer in range(4) for group in GROUPS]
    patched = pd.DataFrame(rows, columns=["layer", "group", "share", "low", "high", "change"])
    fig, data = figures.draw_patching({f"variant {i}": patched for i in range(2)})
    assert len(data) == 2 * 16 and "-1.50 nats" in fig.axes[0].get_title()


def test_decodability_marks_what_is_causal():
    labels = [f"label number {i}" for i in range(4)]
    table = pd.DataFrame({"feature": range(4), "label": labels, "auc": 0.6})
    fig, data = figures.draw_decodability({"one": table.iloc[1:], "two": table}, {"one": [2], "two": []})
    assert data.loc[data["causal"], ["arm", "feature"]].to_numpy().tolist() == [["one", 2]]
    assert [text.get_text() for text in fig.axes[0].get_yticklabels()] == [*labels[1:], labels[0]]


def test_places_are_drawn_in_units_of_their_thresholds():
    rows = [
        (3, 0.4, 0.3, 0.5, 0.6, 0.5, 0.7, "both", False),
        (5, -0.1, -0.2, 0.0, -0.9, -1.0, -0.8, "trace", True),
        (7, 0.0, -0.1, 0.1, 0.1, 0.0, 0.2, "neither", False),
    ]
    columns = ["feature", "at the decision", "low", "high", "over the trace", "trace low", "trace high"]
    table = pd.DataFrame(rows, columns=[*columns, "passes", "chosen"])
    table = table.assign(**{"threshold": 0.2, "trace threshold": 0.3})
    fig, data = figures.draw_places({"persistence": table, "verification": table})
    assert len(fig.axes) == 2 and len(data) == 6
    ax = fig.axes[0]
    assert "1 at the decision, 2 over, 1 both" in ax.get_title()
    drawn = {tuple(np.round(xy, 3)) for line in ax.get_lines() for xy in line.get_xydata()}
    # 0.4 / 0.2 and 0.6 / 0.3
    assert (2.0, 2.0) in drawn and (-0.5, -3.0) in drawn
    labels = [text.get_text() for text in fig.legends[0].get_texts()]
    assert labels == ["chosen", *figures.PASS_NAMES]


def results() -> pd.DataFrame:
    """Two scorers at three κ with three seeds."""
    cases = [(i, kappa, seed) for i in range(2) for kappa in (0.0, 0.5, 1.0) for seed in range(3)]
    table = pd.DataFrame(cases, columns=["scorer", "kappa", "autoencoder_seed"])
    table["labels"] = table["scorer"] % 2 == 1
    estimate = 0.1 + 0.2 * table["kappa"] + 0.3 * table["labels"] + 0.02 * table["autoencoder_seed"]
    table = table.assign(estimate=estimate, low=estimate - 0.05, high=estimate + 0.1, chance=0.05)
    return table.assign(
        metric="average precision", decision="persistence", scorer="scorer " + table["scorer"].astype(str)
    )


BANDS = pd.DataFrame({"kappa": [0.0, 0.5, 1.0], "null": "slot", "low": 0.05, "mean": 0.1, "high": 0.2})
BANDS = BANDS.assign(metric="average precision")


def test_precision_against_kappa():
    coupling = pd.DataFrame({"kappa": [1.0], "kappa_low": [0.9], "kappa_high": [1.0], "outside": [True]})
    fig, data = figures.draw_precision_against_kappa(results(), ["scorer 0", "scorer 1"], BANDS, coupling)
    assert data["series"].value_counts().to_dict() == {"scorer": 18, "null": 3, "real traces": 1}
    labels = [text.get_text() for text in fig.legends[0].get_texts()]
    drawn = ["scorer 0", "scorer 1", "chance (base rate)", "real labelled traces (beyond the scale)"]
    assert labels == ["mixtures of R and twins, 95%", *drawn]
    _, data = figures.draw_precision_against_kappa(results(), ["scorer 0"], BANDS.iloc[:0])
    assert set(data["series"]) == {"scorer"} and len(data) == 9


def test_lexical_bars():
    parts = [
        pd.DataFrame(
            {"group": f"group {i}", "class": CLASSES, "share": 1 / 3, "causal": causal, "features": i}
        )
        for i, causal in enumerate([0.1, 0.0, np.nan])
    ]
    fig, data = figures.draw_lexical({"coupled": pd.concat(parts), "decoupled": pd.concat(parts)})
    assert len(data) == 18 and set(data["arm"]) == {"coupled", "decoupled"}
    labels = [text.get_text() for text in fig.axes[0].get_yticklabels()]
    assert labels == [f"group {i} (n = {i})" for i in range(3)]
