"""Figures of the benchmark give back the numbers they draw."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from figure_checks import different, legible

from reasoning_features.interpretation.lexical_controls import CLASSES
from reasoning_features.truth.benchmark_figures import (
    draw_lexical,
    draw_precision_against_kappa,
    draw_scorers,
)


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


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
