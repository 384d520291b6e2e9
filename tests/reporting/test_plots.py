import hashlib
import json

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from tiny import contents

from reasoning_features.reporting import plots


def draw(run):
    data = pd.DataFrame({"x": [1, 2, 3], "y": [0.1, 1 / 3, 2 / 3]})
    fig, ax = plots.new_figure()
    ax.plot(data.x, data.y, label="a")
    ax.legend()
    return plots.save_figure(fig, "x01_line", data, run, "A line.")


def test_a_figure_is_saved_four_ways_with_the_same_bytes_each_time(run):
    shown, first = draw(run), contents(run.paths.figures)
    assert list(first) == ["x01_line.csv", "x01_line.json", "x01_line.pdf", "x01_line.png"]
    draw(run)
    assert contents(run.paths.figures) == first
    assert b"D:" not in first["x01_line.pdf"] and b"atplotlib" not in first["x01_line.png"]
    assert shown.data == first["x01_line.png"]
    assert first["x01_line.csv"] == b"x,y\n1,0.1\n2,0.333333\n3,0.666667\n"
    held = json.loads(first["x01_line.json"])
    assert held["caption"] == "A line."
    assert held["files"]["x01_line.pdf"] == hashlib.sha256(first["x01_line.pdf"]).hexdigest()
    assert not plt.get_fignums()


def test_a_distribution_has_unit_area_and_one_line_a_group():
    frame = pd.DataFrame({"value": np.arange(100.0), "group": ["a"] * 50 + ["b"] * 50})
    _, ax = plots.new_figure()
    plots.distribution(ax, frame, "value", "group", bins=10)
    assert [to_hex(line.get_color()).upper() for line in ax.lines] == list(plots.COLOURS[:2])
    assert ax.lines[0].get_linestyle() != ax.lines[1].get_linestyle()
    assert ax.get_legend_handles_labels()[1] == ["a", "b"]
    # 10 bins over 49 units of equal counts: the density is 1 / 49 everywhere inside
    assert np.nanmax(ax.lines[0].get_ydata()) == pytest.approx(1 / 49)


def test_any_number_of_series_look_different():
    looks = [str(plots.look(i)) for i in range(512)]
    assert len(set(looks)) == 512
    assert [plots.look(i)["color"] for i in range(8)] == list(plots.COLOURS)


def test_names_of_rows_are_cut_and_are_no_mathematics_and_text_takes_a_place_a_character():
    _, ax = plots.new_figure()
    plots.name_rows(ax, ["$x_1$ and $y$", "a " * 40])
    first, second = (label.get_text() for label in ax.get_yticklabels())
    assert first == r"\$x_1\$ and \$y\$" and len(second) == 36
    assert ax.get_ylim() == (1.5, -0.5)
    assert plots.narrow("<｜User｜> 3 + 4 = 7⏎") == "<|User|> 3 + 4 = 7⏎"
    assert plots.narrow("数e\u0301x\t\ud800") == "□e□x□□"
    names = ["coupled-0", "decoupled-2", "kappa-0.5-0", "other-0", "Qwen3-0.6B"]
    assert [plots.variant_name(name) for name in names] == [
        "R matters (κ = 1)", "R does not matter (κ = 0), seed 2", "κ = 0.5", "other-0", "Qwen3-0.6B",
    ]  # fmt: skip


def test_a_figure_without_data_is_not_saved_and_says_so(run):
    fig, _ = plots.new_figure()
    said = plots.save_figure(fig, "x01_none", pd.DataFrame(), run, "None.").data
    assert "nothing to draw in `x01_none`" in said
    assert not run.paths.figures.exists() and not plt.fignum_exists(fig.number)


def test_groups_stand_side_by_side_at_their_place_with_their_intervals():
    groups = ["all", "R", "random"]
    grid = pd.MultiIndex.from_product([["S", "S-M"], groups]).to_frame(index=False, name=["stage", "group"])
    table = grid.assign(share=0.5, low=0.4, high=0.7)
    fig, (ax,) = plots.panels(1)
    plots.grouped_points(ax, table, "stage", "group", "share")
    assert [label.get_text() for label in ax.get_xticklabels()] == ["S", "S-M"]
    marks = [held[0] for held in ax.containers]
    assert len(marks) == 3 and np.ptp([mark.get_xdata()[0] for mark in marks]) < 1
    (bars,) = ax.containers[0][2]
    assert bars.get_segments()[0][:, 1] == pytest.approx([0.4, 0.7])
    plots.legend_below(fig)
    assert [label.get_text() for label in fig.legends[0].get_texts()] == groups
