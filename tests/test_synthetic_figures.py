"""Figures on data with known features show every architecture, trained and frozen apart."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from figure_checks import legible

from reasoning_features.foundations.names import NAMES
from reasoning_features.foundations.synthetic_cells import FIRINGS, FROZEN, TRAINED
from reasoning_features.foundations.synthetic_figures import draw_frequency, draw_recovery, draw_steps
from reasoning_features.foundations.synthetic_grid import EXPLAINED


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def training(architecture: str, firing: str, seed: int, features: int = 100) -> list[dict]:
    """Rows of one training: what is found grows with the step and the architecture's place."""
    place = list(NAMES).index(architecture)
    rows = []
    for step in (0, 100, 1000):
        for number, low in enumerate((0.001, 0.01) if firing == "unequal" else (0.01,)):
            row = {"architecture": architecture, "firing": firing, "seed": seed, "width": 8, "L0": 2.0}
            row |= {
                "features": features,
                "steps": 1000,
                "step": step,
                "samples": 512 * step,
                "dead share": 0.0,
            }
            row |= {EXPLAINED: step / 2000 + place / 100 + seed / 50, "best cosine": 0.5}
            row |= {"bin": number, "from": low, "to": 10 * low, "in bin": 60 if number else 40}
            rows.append(row | {"found": (place + seed) * step // 500})
    return rows


@pytest.fixture
def grid() -> pd.DataFrame:
    """Two seeds of every architecture in small worlds, a longer training of TopK, and one in large worlds."""
    small = [training(name, firing, seed) for name in NAMES for firing in FIRINGS for seed in range(2)]
    large = [row for firing in FIRINGS for row in training("topk", firing, 0, 3200)]
    large = [row | {"step": 3 * row["step"], "steps": 3000} for row in large]
    longer = [row | {"step": 4 * row["step"], "steps": 4000} for row in training("topk", "equal", 0)]
    return pd.DataFrame([*(row for part in small for row in part), *longer, *large])


def shown(fig) -> list[str]:
    return [text.get_text() for text in fig.legends[0].get_texts()]


def test_recovery_has_a_mark_with_its_interval_for_every_architecture_and_size(grid):
    fig, data = draw_recovery(grid)
    assert len(data) == 2 * (9 + 1) + 1 and shown(fig) == [*NAMES.values(), "4,000 steps", "3,200 features"]
    equal, unequal = fig.axes
    assert "unequally" not in equal.get_title() and "unequally" in unequal.get_title()
    assert len(equal.containers) == 11
    top = data[(data["firing"] == "unequal") & (data["architecture"] == "topk")].iloc[0]
    mark = next(held[0] for held in unequal.containers if held.get_label() == "TopK")
    assert (mark.get_xdata()[0], mark.get_ydata()[0]) == (top[EXPLAINED], top["recovered"])
    assert max(held[0].get_markersize() for held in unequal.containers) > mark.get_markersize()


def test_recovery_is_drawn_where_there_is_one_seed_and_nothing_was_found(grid):
    fig, data = draw_recovery(grid[(grid["seed"] == 0) & (grid["architecture"] == "relu")])
    assert (data["recovered"] == 0).all() and shown(fig) == ["ReLU"]
    fig.canvas.draw()


def test_steps_have_a_panel_a_size_and_firing_with_the_mean_over_seeds(grid):
    fig, data = draw_steps(grid)
    assert len(data) == ((9 * 2 + 1) * 2 + 1) * 3
    assert [len(ax.lines) for ax in fig.axes] == [10, 9, 1, 1]
    assert [ax.get_title().split()[0] for ax in fig.axes] == ["100", "100", "3,200", "3,200"]
    assert shown(fig) == list(NAMES.values())
    line = next(line for line in fig.axes[0].lines if line.get_label() == "TopK")
    assert line.get_xdata().tolist() == [0, 100, 1000]
    assert line.get_ydata()[-1] == pytest.approx((2 + 4) / 2 / 100)
    assert all(ax.get_xlim()[0] < 0 and ax.get_xlim()[1] >= 4000 for ax in fig.axes)


def test_steps_leave_out_a_panel_without_trainings(grid):
    fig, _ = draw_steps(grid[(grid["features"] == 100) | (grid["firing"] == "equal")])
    assert [ax.get_visible() for ax in fig.axes] == [True, True, True, False]
    assert [ax.get_xlabel() for ax in fig.axes] == ["", "training steps", "training steps", ""]


def test_frequency_is_that_of_unequal_features_pooled_over_seeds(grid):
    fig, data = draw_frequency(grid)
    assert set(data["firing"]) == {"unequal"}
    assert [len(ax.lines) for ax in fig.axes] == [len(TRAINED), len(FROZEN), 1]
    line = next(line for line in fig.axes[0].lines if line.get_label() == "OrtSAE")
    assert line.get_ydata().tolist() == [(10 + 12) / 80, (10 + 12) / 120]
    assert line.get_xdata() == pytest.approx([0.001 * 10**0.5, 0.01 * 10**0.5])
    assert len({ax.get_title() for ax in fig.axes}) == 3


def test_many_sizes_and_durations_are_legible(grid):
    small = grid[(grid["features"] == 100) & (grid["seed"] == 0)]
    sizes = [small.assign(features=100 * size) for size in range(1, 6)]
    longer = [small.assign(steps=1000 * i, step=i * small["step"]) for i in range(2, 12)]
    fig, _ = draw_recovery(pd.concat([*sizes, *longer]))
    assert len(shown(fig)) == len(NAMES) + 4 + 10
    legible(fig)
    for draw in (draw_steps, draw_frequency):
        fig, _ = draw(pd.concat(sizes))
        assert len(fig.axes) == 10
        legible(fig)
