"""Figures of dictionaries draw every row of their tables, and each architecture looks the same in all."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from reasoning_features.dictionaries.autoencoder import NAMES
from reasoning_features.dictionaries.evaluation import EXPLAINED
from reasoning_features.sae_checks import figures
from reasoning_features.sae_checks.interpretability import CEILING, FLOOR
from reasoning_features.sae_checks.synthetic import FIRINGS, FROZEN, TRAINED


def test_architectures_and_their_variants_are_told_apart():
    looks = {name: figures.style(name) for name in NAMES}
    parts = ("color", "marker", "markerfacecolor")
    assert len({tuple(str(look[part]) for part in parts) for look in looks.values()}) == len(looks)
    assert {name for name, look in looks.items() if look["markerfacecolor"] == "white"} == set(FROZEN)
    names = ["frozen decoder", "frozen decoder (cov)", "BatchTopK", "BatchTopK, second seed", FLOOR, CEILING]
    variants = figures.styles(names)
    assert len({str(look) for look in variants.values()}) == len(names)
    assert [look["label"] for look in variants.values()] == names
    assert variants["BatchTopK"] == figures.styles(["BatchTopK"])["BatchTopK"] == looks["batchtopk"]
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
    fig, drawn = figures.draw_metrics(
        given.sample(frac=1, random_state=0).sort_values("metric", kind="stable")
    )
    panels = {ax.get_xlabel(): ax for ax in fig.axes if ax.get_xlabel()}
    assert set(panels) == set(names) and len(drawn) == 11
    labels = [tick.get_text() for tick in fig.axes[0].get_yticklabels()]
    for metric, ax in panels.items():
        rows = given[given["metric"] == metric].set_index("dictionary")
        points = [line for line in ax.lines if len(line.get_xdata()) == 1]
        found = {labels[round(line.get_ydata()[0])]: line.get_xdata()[0] for line in points}
        assert found == pytest.approx(rows["estimate"].to_dict())


def test_the_sweep_shows_gamma_at_one_chunk_and_chunks_at_the_papers_gamma():
    kinds = [(0.0, 1, 1), (0.25, 1, 1), (0.25, 4, 1), (0.25, 1, 5), (1.0, 1, 1)]
    swept = pd.DataFrame(
        [(g, k, e, seed, seed + g) for g, k, e in kinds for seed in range(2)],
        columns=["gamma", "chunks", "every", "seed", "MeanCosSim"],
    ).assign(composition=0.5, **{EXPLAINED: 0.9})
    fig, data = figures.draw_sweep(swept)
    values = data.groupby("setting")["value"].unique()
    assert values["γ"].tolist() == [0, 0.25, 1] and values["K"].tolist() == [1, 4]
    assert [ax.get_xlabel() for ax in fig.axes] == ["γ"] * 3 + ["K"] * 3
    np.testing.assert_allclose(fig.axes[1].lines[0].get_ydata(), [0.5, 0.75, 1.5])


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
def grid():
    """Two seeds of every architecture in small worlds, a longer training of TopK, and one in large worlds."""
    small = [training(name, firing, seed) for name in NAMES for firing in FIRINGS for seed in range(2)]
    large = [row for firing in FIRINGS for row in training("topk", firing, 0, 3200)]
    large = [row | {"step": 3 * row["step"], "steps": 3000} for row in large]
    longer = [row | {"step": 4 * row["step"], "steps": 4000} for row in training("topk", "equal", 0)]
    return pd.DataFrame([*(row for part in small for row in part), *longer, *large])


def test_recovery_has_a_mark_with_its_interval_for_every_architecture_and_size(grid):
    fig, data = figures.draw_recovery(grid)
    labels = [text.get_text() for text in fig.legends[0].get_texts()]
    assert len(data) == 2 * (9 + 1) + 1 and labels == [*NAMES.values(), "4,000 steps", "3,200 features"]
    equal, unequal = fig.axes
    assert "unequally" not in equal.get_title() and "unequally" in unequal.get_title()
    assert len(equal.containers) == 11


def test_steps_have_a_panel_a_size_and_firing_with_the_mean_over_seeds(grid):
    fig, data = figures.draw_steps(grid)
    assert len(data) == ((9 * 2 + 1) * 2 + 1) * 3
    assert [len(ax.lines) for ax in fig.axes] == [10, 9, 1, 1]
    line = next(line for line in fig.axes[0].lines if line.get_label() == "TopK")
    assert line.get_xdata().tolist() == [0, 100, 1000]
    assert line.get_ydata()[-1] == pytest.approx((2 + 4) / 2 / 100)


def test_frequency_is_that_of_unequal_features_pooled_over_seeds(grid):
    fig, data = figures.draw_frequency(grid)
    assert set(data["firing"]) == {"unequal"}
    assert [len(ax.lines) for ax in fig.axes] == [len(TRAINED), len(FROZEN), 1]
