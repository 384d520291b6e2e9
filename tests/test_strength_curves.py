"""Strength curves: which trials there are, and their means."""

from __future__ import annotations

from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from reasoning_features.models.conditions import Condition
from reasoning_features.steering.strength_curves import ADDED, CLAMPED, curve_trials, curves


@pytest.fixture
def made():
    sae = SimpleNamespace(W_dec=torch.eye(4) * 2, cfg=SimpleNamespace(d_sae=4))
    evidence = pd.DataFrame({"maximum": [0.0, 5.0, 1.0, 1.0], "decoder norm": [2.0] * 4})
    others = {"mean difference": [Condition("md at -0.1", gamma=-0.1, vector=torch.ones(4))]}
    return curve_trials(sae, evidence, {"feature 1": 1}, [-0.2, 0.4], 20.0, others)


def test_a_feature_is_added_and_clamped_at_every_strength_and_others_added(made):
    conditions, trials = made
    assert len(conditions) == len(trials) == 5 and trials["condition"].is_unique
    assert trials["how"].tolist() == [ADDED, ADDED, CLAMPED, CLAMPED, ADDED]
    assert trials["share of norm"].tolist() == pytest.approx([-0.1, 0.2, -0.1, 0.2, -0.1])
    assert conditions[1].vector is not None and conditions[3].clamp == pytest.approx(2.0)


def test_curves_are_means_with_intervals(made):
    _, trials = made
    one = trials["condition"].iloc[1]
    names = [name for name in trials["condition"] for _ in range(4)]
    answered = pd.DataFrame({"condition": names, "correct": [True, False] * 10, "thinking_tokens": 30})
    answered.loc[answered["condition"] == one, "correct"] = True
    found = curves(answered, trials).set_index(["condition", "measure"])
    assert found.loc[(one, "accuracy"), "mean"] == 1
    row = found.loc[(trials["condition"].iloc[0], "accuracy")]
    assert row["mean"] == 0.5 and row["low"] < 0.5 < row["high"] and row["n"] == 4
    assert set(found.xs("thinking tokens", level="measure")["mean"]) == {30}
