"""Figures of steering draw what they are given, and give it back."""

from __future__ import annotations

from dataclasses import replace

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from figure_checks import different, legible
from test_steering_results import made

from reasoning_features.steering import steering_figures as figures
from reasoning_features.steering import steering_results as results
from reasoning_features.steering.search import CHOSEN, SLOT


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.fixture
def studies():
    return {
        name: made(kappa, 0, {CHOSEN: 0.6, SLOT: 0.5})
        for name, kappa in (("coupled", 1.0), ("decoupled", 0.0))
    }


def test_screening_and_winners_have_a_row_a_class(studies):
    fig, data = figures.draw_screening(studies)
    assert len(fig.axes) == 2 and set(data["arm"]) == set(studies)
    assert [label.get_text() for label in fig.axes[0].get_yticklabels()] == [CHOSEN, SLOT]
    fig, data = figures.draw_winners({arm: results.winners_table(study) for arm, study in studies.items()})
    assert [label.get_text() for label in fig.axes[0].get_yticklabels()] == [CHOSEN, SLOT]


def test_the_arms_apart_have_a_row_a_seed_and_one_for_all(studies):
    table = results.arms_apart(list(studies.values()))
    fig, data = figures.draw_arms_apart({SLOT: table})
    assert [label.get_text() for label in fig.axes[0].get_yticklabels()] == ["seed 0", "all seeds"]
    assert set(data["against"]) == {SLOT}


def test_strengths_spending_and_forests_draw(studies):
    rows = [
        {
            "vector": "v",
            "how": how,
            "share of norm": share,
            "measure": measure,
            "mean": 0.5,
            "low": 0.4,
            "high": 0.6,
        }
        for how in ("added", "clamped")
        for share in (-0.1, 0.1)
        for measure in ("accuracy", "thinking tokens")
    ]
    fig, _ = figures.draw_strengths(pd.DataFrame(rows))
    assert len(fig.axes) == 2
    curve = pd.DataFrame(
        {"method": ["a", "a", "b"], "tokens": [1, 2, 3], "accuracy": 0.5, "low": 0.4, "high": 0.6}
    )
    fig, data = figures.draw_spending(curve)
    assert len(data) == 3
    table = pd.DataFrame({"run": ["x", "y"], "panel": "p", "estimate": [0.1, 0.2], "low": 0.0, "high": 0.3})
    fig, _ = figures.draw_forest(table, "run", "panel", "gain (points)", 100)
    assert fig.axes[0].get_xlabel() == "gain (points)"


def test_many_classes_arms_and_vectors_are_legible(studies):
    study = studies["coupled"]
    rows = [study.screening.assign(group=f"class number {i}") for i in range(20)]
    fig, _ = figures.draw_screening({"one": replace(study, screening=pd.concat(rows)), "two": study})
    assert len(fig.axes[0].get_yticklabels()) == 22
    legible(fig)
    table = results.winners_table(study)
    winners = [
        table.assign(**{"class": f"class number {i}", "domain": results.ALL}).head(1) for i in range(20)
    ]
    fig, _ = figures.draw_winners({f"arm {i}": pd.concat(winners) for i in range(12)})
    points = [held for held in fig.axes[0].collections if held.get_label().startswith("arm")]
    assert different((held.get_facecolor(), held.get_paths()) for held in points) and len(points) == 12
    legible(fig)
    apart = results.arms_apart(list(studies.values()))
    seeds = pd.concat([apart.assign(seed=i) for i in range(10)])
    fig, _ = figures.draw_arms_apart({f"words {i}": seeds for i in range(5)})
    legible(fig)
    ends = {"mean": 0.5, "accuracy": 0.5, "low": 0.4, "high": 0.6}
    grid = pd.MultiIndex.from_product(
        [[f"vector {i}" for i in range(20)], ["accuracy", "thinking tokens"], [-0.1, 0.1]]
    )
    curves = grid.to_frame(index=False, name=["vector", "measure", "share of norm"]).assign(
        how="added", **ends
    )
    fig, _ = figures.draw_strengths(curves)
    assert different((line.get_color(), line.get_marker()) for line in fig.axes[0].lines[:-1])
    legible(fig)
    spent = curves.rename(columns={"vector": "method", "share of norm": "tokens"})
    fig, _ = figures.draw_spending(spent)
    assert different((line.get_color(), line.get_marker()) for line in fig.axes[0].lines)
    legible(fig)
    forest = curves.rename(columns={"mean": "estimate", "share of norm": "panel"})
    forest = forest[forest["measure"] == "accuracy"]
    fig, _ = figures.draw_forest(forest, "vector", "panel", "gain (points)", 100)
    legible(fig)
