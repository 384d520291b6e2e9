"""Figures of autoencoders show every training, and their data has a row for everything drawn."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from reasoning_features.dictionaries.autoencoder_figures import (
    CURVES,
    draw_agreement,
    draw_curves,
    draw_densities,
    draw_frontier,
)


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_frontier_has_a_line_an_architecture_and_a_star_an_sae() -> None:
    column = "fraction of variance explained"
    shares = {"matched share": 0.5, "paired one to one": 0.4}
    found = {"architecture": ["topk", "relu", "topk"], "L0": [16.0, 9, 4], column: [0.9, 0.7, 0.8]}
    frontier = pd.DataFrame(found | shares)
    marked = pd.DataFrame({"autoencoder": ["default"], "L0": [8.0], column: [0.95]})
    lines = draw_frontier(frontier, marked).axes[0].lines
    assert [line.get_label() for line in lines][-1] == "default" and len(lines) == 3
    assert next(line for line in lines if "topk" in line.get_label()).get_xdata().tolist() == [4, 16]


def test_curves_keep_every_history() -> None:
    history = pd.DataFrame({"tokens": [0, 10]} | {name: [2.0, 1.0] for name in CURVES})
    fig, data = draw_curves({"seed 0": history, "seed 1": history})
    assert [ax.get_ylabel() for ax in fig.axes] == list(CURVES)
    assert data["training"].tolist() == ["seed 0", "seed 0", "seed 1", "seed 1"]


def test_densities_leave_dead_features_out() -> None:
    _, data = draw_densities({"one": np.array([0.0, 0.1, 0.2]), "two": np.array([0.3])})
    assert data.to_numpy().tolist() == [["one", 1, 0.1], ["one", 2, 0.2], ["two", 0, 0.3]]


def test_agreement_shows_both_shares() -> None:
    curve = pd.DataFrame(
        {"training": "here", "step": [0, 10], "matched share": [0.1, 0.8], "paired one to one": [0.1, 0.5]}
    )
    fig, data = draw_agreement(curve, {"second seed": np.array([0.5, 0.9])}, 0.7)
    assert [line.get_label() for line in fig.axes[0].lines] == ["here", "here, one to one"]
    assert data["pair"].tolist() == ["second seed"] * 2
