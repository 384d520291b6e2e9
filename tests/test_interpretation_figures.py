"""Function groups as shares, and figure 3b."""

from __future__ import annotations

import pandas as pd
import pytest

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
