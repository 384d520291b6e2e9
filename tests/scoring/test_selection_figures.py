"""Figures give back the numbers they draw."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from figure_checks import different, legible

from reasoning_features.scoring.selection import grid_table, hyperparameter_grid
from reasoning_features.scoring.selection_figures import (
    draw_grid,
    draw_identity,
    draw_nulls,
    draw_scores,
    ranked,
)


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


RNG = np.random.default_rng(0)
SCORES = {"R": np.array([0.1, 0.3, 0.2]), "random 0": np.array([0.0, 0.1, 0.2]), "random 1": np.zeros(3)}


def test_ranked_sorts_and_bands():
    table = ranked(SCORES)
    assert table["R"].tolist() == [0.3, 0.2, 0.1] and "slot low" not in table
    # best scores of the two: 0.2 and 0; their 2.5% and 97.5% quantiles
    assert table.loc[0, ["random low", "random high"]].tolist() == pytest.approx([0.005, 0.195])


def test_every_figure_draws_and_returns_its_data():
    fig, data = draw_scores({"one": ranked(SCORES), "two": ranked(SCORES)}, k=1, quantile=0.9)
    assert len(fig.axes) == 2 and len(data) == 6
    grid = hyperparameter_grid([0.0, 0.7], [(1, 2), (2, 3)], 0.7)
    table = grid_table(grid, [RNG.random(30) for _ in grid], RNG.random(30), [5, 10])
    _, data = draw_grid({"one": table}, k=5)
    assert len(data) == 10 and set(data["arm"]) == {"one"}
    nulls = pd.DataFrame(
        {
            "vocabulary": ["R", "random 0", "random 1"],
            "kind": ["R", "random", "random"],
            "words_of_R": [2, 0, 0],
        }
    ).assign(score_mass=[0.3, 0.1, 0.2])
    _, data = draw_nulls({"one": nulls}, "score_mass", "score mass")
    assert data["score_mass"].tolist() == [0.3, 0.1, 0.2]
    frame = pd.DataFrame(RNG.random((40, 4)), columns=["score", "token", "token and the one before", "f1"])
    _, data = draw_identity({"one": frame.assign(chosen=frame["score"] > 0.8)}, k=5)
    assert len(data) == 40


def test_many_arms_windows_and_words_are_legible():
    arms = [f"arm {i}" for i in range(9)]
    fig, _ = draw_scores(dict.fromkeys(arms, ranked(SCORES)), k=1, quantile=0.9)
    legible(fig)
    grid = hyperparameter_grid([0.0, 0.3, 0.7, 1.0], [(i, i + 1) for i in range(12)], 0.7)
    table = grid_table(grid, [RNG.random(30) for _ in grid], RNG.random(30), [5, 10])
    fig, _ = draw_grid({"one": table}, k=5)
    assert different((line.get_color(), line._dash_pattern) for line in fig.axes[1].lines)
    legible(fig)
    kinds = pd.DataFrame({"vocabulary": ["R", "random 0"], "kind": ["R", "random"], "words_of_R": 1})
    fig, _ = draw_nulls(dict.fromkeys(arms, kinds.assign(score_mass=[0.3, 0.1])), "score_mass", "score mass")
    legible(fig)
    frame = pd.DataFrame(RNG.random((40, 4)), columns=["score", "token", "token and the one before", "f1"])
    fig, _ = draw_identity({"one": frame.assign(chosen=frame["score"] > 0.8)}, k=5)
    legible(fig)
