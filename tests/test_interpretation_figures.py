"""Function groups as shares, and figure 3b."""

from __future__ import annotations

import pandas as pd
import pytest
from figure_checks import different, legible
from reasoning_features.interpretation.interpretation_figures import draw_groups, group_shares


def test_shares_of_each_class():
    chosen = pd.DataFrame({"feature": range(4), "group": ["goes on", "goes on", "checks", "goes on"]})
    random = pd.DataFrame({"feature": range(2), "group": ["none", "checks"]})
    shares = group_shares({"chosen": chosen, "random": random})
    found = shares.set_index(["class", "group"])["share"]
    assert found["chosen", "goes on"] == pytest.approx(0.75)
    assert found["random", "goes on"] == 0
    assert found["random", "checks"] == pytest.approx(0.5)
    # Mean shares: goes on .375, checks .375, none .25.
    assert list(shares["group"].unique())[-1] == "none"
    assert (shares["low"] <= shares["share"]).all() and (shares["share"] <= shares["high"]).all()
    (ax,) = draw_groups(shares).axes
    assert len(ax.patches) == 6
    assert [label.get_text() for label in ax.get_yticklabels()] == list(shares["group"].unique())


def test_twelve_classes_and_twenty_groups_are_legible():
    names = [f"writes ${i}_x$ instead of what it had begun to say" for i in range(20)]
    frame = pd.DataFrame({"group": names})
    fig = draw_groups(group_shares({f"class {i}": frame for i in range(12)}))
    bars = [bar[0] for bar in fig.axes[0].containers if len(bar) == 20]
    assert different((bar.get_facecolor(), bar.get_hatch()) for bar in bars)
    legible(fig)
