"""Figures of dictionaries draw every row of their tables, where it is to be looked for."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from figure_checks import different, legible

from reasoning_features.errors import UserError
from reasoning_features.foundations.dictionary_figures import draw_clustering, draw_metrics, draw_sweep


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def table(groups: list[tuple], names: list[str]) -> pd.DataFrame:
    """A row a group, with estimates 0.1, 0.2, … and intervals of 0.05 on either side."""
    found = pd.DataFrame(groups, columns=names)
    found["estimate"] = 0.1 * np.arange(1, len(found) + 1)
    return found.assign(low=found["estimate"] - 0.05, high=found["estimate"] + 0.05)


def test_metrics_have_a_panel_each_and_a_dictionary_keeps_its_row() -> None:
    names = ["MeanCosSim", "composition", "absorption", "uniqueness"]
    groups = [(metric, each) for metric in names for each in ("ReLU", "OrtSAE", "random")]
    given = table(groups, ["metric", "dictionary"]).drop(index=[8])  # random directions absorb nothing
    fig, drawn = draw_metrics(given.sample(frac=1, random_state=0).sort_values("metric", kind="stable"))
    held = {ax.get_xlabel(): ax for ax in fig.axes if ax.get_xlabel()}
    assert set(held) == set(names) and len(drawn) == 11
    labels = [tick.get_text() for tick in fig.axes[0].get_yticklabels()]
    for metric, ax in held.items():
        rows = given[given["metric"] == metric].set_index("dictionary")
        points = [line for line in ax.lines if len(line.get_xdata()) == 1]
        found = {labels[round(line.get_ydata()[0])]: line.get_xdata()[0] for line in points}
        assert found == pytest.approx(rows["estimate"].to_dict())
    assert fig.axes[0].get_ylim() == (2.5, -0.5)  # the first dictionary on top


def test_a_mark_without_an_interval_is_drawn() -> None:
    given = table([("MeanCosSim", "ReLU")], ["metric", "dictionary"]).assign(low=np.nan, high=np.nan)
    fig, _ = draw_metrics(given)
    assert [line.get_xdata().tolist() for line in fig.axes[0].lines][1] == [0.1]


def test_one_metric_of_a_dictionary_twice_is_refused() -> None:
    with pytest.raises(UserError, match="two rows for one metric"):
        draw_metrics(table([("composition", "ReLU")] * 2, ["metric", "dictionary"]))


def test_sweeps_have_a_panel_a_setting_and_metric_in_the_order_of_values() -> None:
    values = {"γ": [0.25, 0.0, 4.0], "K": [8, 1, 64]}
    groups = [(s, v, m) for s, each in values.items() for v in each for m in ("EV", "MeanCosSim")]
    given = table(groups, ["setting", "value", "metric"])
    fig, drawn = draw_sweep(given)
    assert [(ax.get_xlabel(), ax.get_ylabel()) for ax in fig.axes] == [
        ("γ", "EV"), ("γ", "MeanCosSim"), ("K", "EV"), ("K", "MeanCosSim"),
    ]  # fmt: skip
    assert [tick.get_text() for tick in fig.axes[0].get_xticklabels()] == ["0", "0.25", "4"]
    np.testing.assert_allclose(fig.axes[0].lines[0].get_ydata(), [0.3, 0.1, 0.5])
    assert drawn["value"].tolist() == [0, 0.25, 4, 0, 0.25, 4, 1, 8, 64, 1, 8, 64]
    assert drawn.sort_values("estimate")["estimate"].tolist() == given["estimate"].tolist()


def test_clustering_has_a_line_a_dictionary() -> None:
    groups = [(each, threshold) for each in ("ReLU", "OrtSAE") for threshold in (0.3, 0.1)]
    fig, drawn = draw_clustering(table(groups, ["dictionary", "threshold"]))
    assert {line.get_label(): line.get_xdata().tolist() for line in fig.axes[0].lines} == {
        "ReLU": [0.1, 0.3],
        "OrtSAE": [0.1, 0.3],
    }
    assert drawn["dictionary"].tolist() == ["ReLU", "ReLU", "OrtSAE", "OrtSAE"]


def test_any_number_of_dictionaries_and_metrics_is_legible() -> None:
    names = [f"dictionary {i}" for i in range(20)] + [f"OrtSAE, seed {i}" for i in range(5)] + ["OrtSAE"]
    fig, _ = draw_clustering(table([(n, t) for n in names for t in (0.1, 0.3)], ["dictionary", "threshold"]))
    lines = fig.axes[0].lines
    told = [(li.get_color(), li.get_marker(), li.get_markerfacecolor(), li._dash_pattern) for li in lines]
    assert len(told) == 26 and different(told)
    legible(fig)
    metrics = [f"metric {i}" for i in range(12)]
    fig, _ = draw_metrics(table([(m, n) for m in metrics for n in names], ["metric", "dictionary"]))
    legible(fig)
    groups = [("γ", value / 4, m) for value in range(12) for m in metrics]
    fig, _ = draw_sweep(table(groups, ["setting", "value", "metric"]))
    assert different((ax.lines[0].get_color(), ax.lines[0].get_marker()) for ax in fig.axes)
    legible(fig)


def test_nothing_to_draw_is_refused() -> None:
    with pytest.raises(UserError, match="table to draw is empty"):
        draw_clustering(pd.DataFrame(columns=["dictionary", "threshold", "estimate", "low", "high"]))
    with pytest.raises(UserError, match="table to draw is empty"):
        draw_metrics(pd.DataFrame(columns=["metric", "dictionary", "estimate", "low", "high"]))
