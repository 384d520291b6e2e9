"""Figures of diffing: what is drawn is what is given back, and every group can be told apart."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from figure_checks import different, legible

from reasoning_features.diffing import diffing_figures as figures
from reasoning_features.diffing.cross_layer import PAPER, layer_table
from reasoning_features.diffing.presence import (
    PAPER_PRESENT,
    Bounds,
    by_frequency,
    presence,
    stage_cosines,
    threshold_sweep,
)

STAGES = ("S", "S-D-F", "placebo S-M")
GROUPS = {"chosen": np.arange(6), "causal": np.arange(6, 10)}
LIMITS = Bounds(np.linspace(0.8, 1, 30), np.full((2, 30), 0.25), 0.5)


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.fixture
def cosines() -> pd.DataFrame:
    import torch

    generator = torch.Generator().manual_seed(0)
    decoder = torch.randn(30, 8, generator=generator)
    noise = {name: 0.3 * (i + 1) * torch.randn(30, 8, generator=generator) for i, name in enumerate(STAGES)}
    return stage_cosines(decoder, {name: decoder + added for name, added in noise.items()})


def test_presence_has_a_panel_an_arm_and_a_threshold(cosines):
    random = np.arange(10, 22).reshape(2, 6)
    table = presence(cosines, GROUPS, random, np.ones(30, dtype=bool), 0.7)
    held = {"arm": table, "other": table}
    fig, data = figures.draw_presence({"one": held, "two": held}, PAPER_PRESENT)
    assert len(fig.axes) == 4 and len(data) == 4 * len(table)
    assert [label.get_text() for label in fig.axes[-1].get_xticklabels()] == ["S", "S→D→F", "placebo S→M"]
    assert {text.get_text() for text in fig.legends[0].get_texts()} >= {"chosen", "causal"}
    bare, _ = figures.draw_presence({"one": held}, {})
    assert "the paper's, on its models" not in {t.get_text() for t in bare.legends[0].get_texts()}


def test_sweep_draws_bounds_and_marks(cosines):
    sweep = threshold_sweep(cosines, GROUPS, LIMITS, np.linspace(0.3, 1, 8))
    marks = {"arm": {"calibrated": 0.5, "the paper's": 0.7}}
    fig, data = figures.draw_sweep({"arm": sweep}, STAGES[:2], marks)
    assert len(fig.axes) == 2 and set(data["stage"]) == {*STAGES, "second seed", "rotated"}
    # two groups, two bounds, two marks
    assert len(fig.axes[0].lines) == 6


def test_bounds_points_and_probes(cosines):
    density = np.geomspace(1e-4, 0.1, 30)
    table = by_frequency(LIMITS, density, {"calibrated": 0.5})
    fig, data = figures.draw_bounds({"arm": table}, {"arm": 0.5})
    assert len(data) == 5 and fig.axes[0].get_xscale() == "log"
    group = np.where(np.arange(30) < 6, "chosen", "other features")
    points = pd.DataFrame(
        {"feature": range(30), "cosine": cosines["S"], "correlation": 0.5, "density": density, "group": group}
    ).sort_values("group", ascending=False)
    fig, data = figures.draw_matching({"arm, S": points})
    assert len(data) == 30 and len(fig.axes[0].collections) == 2
    fig, data = figures.draw_on_base({"arm": points})
    assert len(data) == 30 and fig.axes[0].get_xscale() == "log"
    rows = [("arm", read, labels, 0.6, 0.5, 0.7) for read in "ab" for labels in ("true", "shuffled")]
    probed = pd.DataFrame(rows, columns=["arm", "read", "labels", "auc", "low", "high"])
    fig = figures.draw_probes(probed)
    assert [label.get_text() for label in fig.axes[0].get_yticklabels()] == ["a", "b"]


def test_layers_stand_beside_the_papers():
    values = {"1": np.linspace(0, 1, 30), "3": np.linspace(0.4, 1, 30)}
    table = layer_table(values, GROUPS)
    fig, data = figures.draw_layers(table, PAPER, 2)
    assert len(fig.axes) == 3 and data is table
    widths = [bar.get_width() for bar in fig.axes[2].patches]
    assert np.reshape(widths, (3, -1)).sum(axis=0) == pytest.approx(1.0)


def test_many_stages_groups_arms_and_layers_are_legible():
    stages, groups = [f"S-M-{i}" for i in range(12)], [f"group {i}" for i in range(12)]
    grid = pd.MultiIndex.from_product([stages, groups]).to_frame(index=False, name=["stage", "group"])
    ends = {"share": 0.5, "auc": 0.5, "low": 0.4, "high": 0.6}
    fig, _ = figures.draw_presence({"0.7": dict.fromkeys(["one", "two"], grid.assign(**ends))}, PAPER_PRESENT)
    marks = [held[0] for held in fig.axes[0].containers]
    assert len(marks) == 12 and different((mark.get_color(), mark.get_marker()) for mark in marks)
    assert np.ptp([mark.get_xdata()[0] for mark in marks]) < 1  # none stands at another stage
    legible(fig)
    sweep = grid.merge(pd.DataFrame({"threshold": [0.2, 0.9]}), how="cross").assign(share=0.5)
    fig, _ = figures.draw_sweep({"arm": sweep}, stages, {"arm": {}})
    assert len(fig.axes) == 12
    assert different((line.get_color(), line._dash_pattern) for line in fig.axes[0].lines)
    legible(fig)
    points = pd.DataFrame({"cosine": 0.5, "correlation": 0.5, "density": [0.1, 0.2] * 6, "group": groups})
    for draw in (figures.draw_matching, figures.draw_on_base):
        fig, _ = draw({f"panel {i}": points for i in range(9)})
        assert len(fig.axes) == 9
        legible(fig)
    density = np.geomspace(1e-4, 0.1, 30)
    arms = [f"arm {i}" for i in range(9)]
    table = by_frequency(LIMITS, density, {"calibrated": 0.5})
    fig, _ = figures.draw_bounds(dict.fromkeys(arms, table), dict.fromkeys(arms, 0.5))
    legible(fig)
    probed = pd.MultiIndex.from_product([arms, arms, ["true", "shuffled"]]).to_frame(index=False)
    fig = figures.draw_probes(probed.set_axis(["arm", "read", "labels"], axis=1).assign(**ends))
    legible(fig)
    fig, _ = figures.draw_layers(layer_table({f"{i}": np.ones(30) for i in range(30)}, GROUPS), PAPER, 2)
    assert len(fig.axes[0].get_yticklabels()) == 30
    legible(fig)
