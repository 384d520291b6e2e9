"""Figures of autoencoders show every training, and their data has a row for everything drawn."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from figure_checks import different, legible

from reasoning_features.dictionaries.figures import (
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
    assert [ax.get_ylabel().replace("\n", " ") for ax in fig.axes] == list(CURVES)
    assert fig.axes[1].get_ylim() == (0, pytest.approx(2.2)), "a constant L0 is a line, not its last digits"
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


def test_more_autoencoders_than_colours_are_told_apart() -> None:
    names = [f"autoencoder {i}" for i in range(12)]
    column = "fraction of variance explained"
    rows = pd.DataFrame({"architecture": np.repeat(names, 2), "L0": [4.0, 8] * 12, column: 0.5})
    rows = rows.assign(**{"matched share": 0.5, "paired one to one": 0.4})
    fig = draw_frontier(
        rows,
        rows.rename(columns={"architecture": "autoencoder"}).replace(regex="auto", value="stored ")[
            ["autoencoder", "L0", column]
        ],
    )
    stars = [line for line in fig.axes[0].lines if line.get_marker() == "*" and len(line.get_xdata()) == 1]
    assert len(stars) == 24 and different((s.get_color(), s.get_markeredgecolor()) for s in stars)
    legible(fig)
    history = pd.DataFrame({"tokens": [0, 10]} | {name: [2.0, 1.0] for name in CURVES})
    fig, _ = draw_curves(dict.fromkeys(names, history))
    assert different((line.get_color(), line.get_marker()) for line in fig.axes[0].lines)
    legible(fig)
    fig, _ = draw_densities({name: np.geomspace(1e-4, 0.5, 20) for name in names})
    assert different((line.get_color(), line._dash_pattern) for line in fig.axes[0].lines)
    legible(fig)
    curve = pd.DataFrame({"training": np.repeat(names, 2), "step": [0, 10] * 12, "matched share": 0.5})
    fig, _ = draw_agreement(
        curve.assign(**{"paired one to one": 0.4}), dict.fromkeys("abcdefghijkl", np.ones(3)), 0.7
    )
    assert len(fig.legends[0].get_texts()) == 36
    legible(fig)
