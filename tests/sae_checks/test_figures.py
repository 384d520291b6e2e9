"""Figures of dictionaries draw every row of their tables, and each architecture looks the same in all."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from figure_checks import different, legible

from reasoning_features.dictionaries.autoencoder import NAMES
from reasoning_features.dictionaries.evaluation import EXPLAINED
from reasoning_features.sae_checks.figures import (
    draw_frequency,
    draw_metrics,
    draw_recovery,
    draw_steps,
    draw_sweep,
    style,
    styles,
)
from reasoning_features.sae_checks.interpretability import CEILING, FLOOR
from reasoning_features.sae_checks.synthetic import FIRINGS, FROZEN, TRAINED


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_architectures_and_their_variants_are_told_apart():
    looks = {name: style(name) for name in NAMES}
    assert different((look["color"], look["marker"], look["markerfacecolor"]) for look in looks.values())
    assert {name for name, look in looks.items() if look["markerfacecolor"] == "white"} == set(FROZEN)
    names = ["frozen decoder", "frozen decoder (cov)", "BatchTopK", "BatchTopK, second seed", FLOOR, CEILING]
    variants = styles(names)
    assert different(variants.values()) and [look["label"] for look in variants.values()] == names
    assert variants["BatchTopK"] == styles(["BatchTopK"])["BatchTopK"] == looks["batchtopk"]
    assert variants["BatchTopK, second seed"]["color"] == looks["batchtopk"]["color"]


def metrics(metrics: list[str], names: list[str]) -> pd.DataFrame:
    """Estimates 0.1, 0.2, … with intervals of 0.05 on either side."""
    found = pd.DataFrame([(m, name) for m in metrics for name in names], columns=["metric", "dictionary"])
    found["estimate"] = 0.1 * np.arange(1, len(found) + 1)
    return found.assign(low=found["estimate"] - 0.05, high=found["estimate"] + 0.05)


def test_metrics_have_a_panel_each_and_a_dictionary_keeps_its_row():
    names = ["MeanCosSim", "composition", "absorption", "uniqueness"]
    given = metrics(names, ["ReLU", "OrtSAE", "random"]).drop(index=[8])  # random directions absorb nothing
    given.loc[0, ["low", "high"]] = np.nan
    fig, drawn = draw_metrics(given.sample(frac=1, random_state=0).sort_values("metric", kind="stable"))
    panels = {ax.get_xlabel(): ax for ax in fig.axes if ax.get_xlabel()}
    assert set(panels) == set(names) and len(drawn) == 11
    labels = [tick.get_text() for tick in fig.axes[0].get_yticklabels()]
    for metric, ax in panels.items():
        rows = given[given["metric"] == metric].set_index("dictionary")
        points = [line for line in ax.lines if len(line.get_xdata()) == 1]
        found = {labels[round(line.get_ydata()[0])]: line.get_xdata()[0] for line in points}
        assert found == pytest.approx(rows["estimate"].to_dict())
    assert fig.axes[0].get_ylim() == (2.5, -0.5)  # the first dictionary on top


def test_many_dictionaries_and_metrics_are_legible():
    names = [f"dictionary {i}" for i in range(10)] + [f"OrtSAE, seed {i}" for i in range(5)] + ["OrtSAE"]
    assert len({str(look) for look in styles(names).values()}) == len(names)
    fig, _ = draw_metrics(metrics([f"metric {i}" for i in range(5)], names))
    legible(fig)


def test_the_sweep_shows_gamma_at_one_chunk_and_chunks_at_the_papers_gamma():
    kinds = [(0.0, 1, 1), (0.25, 1, 1), (0.25, 4, 1), (0.25, 1, 5), (1.0, 1, 1)]
    swept = pd.DataFrame(
        [(g, k, e, seed, seed + g) for g, k, e in kinds for seed in range(2)],
        columns=["gamma", "chunks", "every", "seed", "MeanCosSim"],
    ).assign(composition=0.5, **{EXPLAINED: 0.9})
    fig, data = draw_sweep(swept)
    values = data.groupby("setting")["value"].unique()
    assert values["γ"].tolist() == [0, 0.25, 1] and values["K"].tolist() == [1, 4]
    at = data[(data["metric"] == "MeanCosSim") & (data["value"] == 0)].iloc[0]
    assert (at["estimate"], at["low"], at["high"]) == (0.5, 0, 1)
    assert [tick.get_text() for tick in fig.axes[0].get_xticklabels()] == ["0", "0.25", "1"]
    assert [ax.get_xlabel() for ax in fig.axes] == ["γ"] * 3 + ["K"] * 3
    np.testing.assert_allclose(fig.axes[1].lines[0].get_ydata(), [0.5, 0.75, 1.5])
    legible(fig)


def training(architecture: str, firing: str, seed: int, features: int = 100) -> list[dict]:
    """Rows of one training: what is found grows with the step and the architecture's place."""
    place = list(NAMES).index(architecture)
    rows = []
    for step in (0, 100, 1000):
        for number, low in enumerate((0.001, 0.01) if firing == "unequal" else (0.01,)):
            row = {"architecture": architecture, "firing": firing, "seed": seed, "width": 8, "L0": 2.0}
            row |= {"features": features, "steps": 1000, "step": step, "samples": 512 * step}
            row |= {EXPLAINED: step / 2000 + place / 100 + seed / 50, "dead share": 0.0, "best cosine": 0.5}
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
    mark = next(bar[0] for bar in unequal.containers if bar.get_label() == "TopK")
    assert (mark.get_xdata()[0], mark.get_ydata()[0]) == (top[EXPLAINED], top["recovered"])
    # one seed, and nothing was found
    fig, data = draw_recovery(grid[(grid["seed"] == 0) & (grid["architecture"] == "relu")])
    assert (data["recovered"] == 0).all() and shown(fig) == ["ReLU"]


def test_steps_have_a_panel_a_size_and_firing_with_the_mean_over_seeds(grid):
    fig, data = draw_steps(grid)
    assert len(data) == ((9 * 2 + 1) * 2 + 1) * 3
    assert [len(ax.lines) for ax in fig.axes] == [10, 9, 1, 1]
    line = next(line for line in fig.axes[0].lines if line.get_label() == "TopK")
    assert line.get_xdata().tolist() == [0, 100, 1000]
    assert line.get_ydata()[-1] == pytest.approx((2 + 4) / 2 / 100)
    fig, _ = draw_steps(grid[(grid["features"] == 100) | (grid["firing"] == "equal")])
    assert [ax.get_title().split()[0] for ax in fig.axes] == ["100", "100", "3,200"]


def test_frequency_is_that_of_unequal_features_pooled_over_seeds(grid):
    fig, data = draw_frequency(grid)
    assert set(data["firing"]) == {"unequal"}
    assert [len(ax.lines) for ax in fig.axes] == [len(TRAINED), len(FROZEN), 1]
    line = next(line for line in fig.axes[0].lines if line.get_label() == "OrtSAE")
    assert line.get_ydata().tolist() == [(10 + 12) / 80, (10 + 12) / 120]
    assert line.get_xdata() == pytest.approx([0.001 * 10**0.5, 0.01 * 10**0.5])


def test_several_sizes_and_durations_are_legible(grid):
    small = grid[(grid["features"] == 100) & (grid["seed"] == 0)]
    longer = [small.assign(steps=1000 * i, step=i * small["step"]) for i in (2, 3)]
    sizes = pd.concat([small, small.assign(features=200)])
    fig, _ = draw_recovery(pd.concat([sizes, *longer]))
    assert len(shown(fig)) == len(NAMES) + 1 + 3  # TopK has a longer training of its own
    legible(fig)
    for draw in (draw_steps, draw_frequency):
        fig, _ = draw(sizes)
        legible(fig)
