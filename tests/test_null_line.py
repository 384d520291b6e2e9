"""The main line under a null: what is planted is found, and a dictionary beside itself differs by nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from studies import made
from tiny import make_benchmark as benchmark
from tiny import signed_identity

from reasoning_features.foundations import null_line
from reasoning_features.steering.steering_study import CHOSEN, FEATURES, SLOT
from reasoning_features.truth.benchmark import Scorer, column, evaluate_all

EFFECT = np.concatenate([np.full(5, 0.5), np.full(20, 0.01)])
SCORER = Scorer("ReasonScore", column("score:reason score"), False, False, "")


def dictionary(architecture, score):
    made_of = benchmark(EFFECT, 0.3, noise=0.05)
    evidence = made_of.evidence.assign(**{"score:reason score": score})
    return replace(made_of, architecture=architecture, evidence=evidence)


GOOD = dictionary("batchtopk", EFFECT)
BAD = dictionary("soft_frozen_decoder-iso", -EFFECT)


def test_precision_over_chance_is_the_benchmarks_less_the_base_rate():
    table = null_line.over_chance(evaluate_all([SCORER], [GOOD, BAD]))
    own = table[table["scorer"] == "ReasonScore"].set_index("dictionary")
    assert own.loc["BatchTopK", "estimate"] == pytest.approx(1 - 5 / 25)
    assert own.loc["soft-frozen decoder", "estimate"] < 0.1
    assert own.loc["BatchTopK", "positives"] == 5 and own.loc["BatchTopK", "live"] == 25
    found, drawn = null_line.precision_over_chance(GOOD)
    assert found == pytest.approx(own.loc["BatchTopK", "estimate"]) and np.isfinite(drawn).all()
    panels = null_line.scorer_panels(table, "coupled-0")
    assert list(panels["metric"].unique()) == ["ReasonScore", "the effect itself"]


def test_differences_are_paired_over_traces_and_problems():
    itself = null_line.scorer_difference(GOOD, GOOD)
    assert (itself.estimate, itself.low, itself.high) == (0, 0, 0)
    better = null_line.scorer_difference(GOOD, BAD)
    assert better.low > 0.5 and better.n == 40
    wide, narrow = (null_line.scorer_difference(GOOD, BAD, level).low for level in (0.95, 0.5))
    assert wide <= narrow
    strong, weak = (made(1.0, 0, {CHOSEN: c, FEATURES: 0.5, SLOT: 0.5}) for c in (0.8, 0.5))
    won = null_line.winner_difference(strong, weak)
    assert won.low > 0.2 and won.n == 400
    rows = null_line.differences((GOOD, BAD), (strong, weak)).set_index("measure")
    steering = rows.loc["steering, gain of ReasonScore's winner"]
    assert steering["trained"] - steering["null"] == pytest.approx(steering["difference"])
    assert (rows["low"] <= rows["low 90"]).all() and (rows["high 90"] <= rows["high"]).all()


def test_winners_are_told_by_dictionary_in_points():
    studies = {
        "BatchTopK": made(1.0, 0, {CHOSEN: 0.8, FEATURES: 0.5, SLOT: 0.5}),
        "frozen decoder": made(1.0, 0, {CHOSEN: 0.5, FEATURES: 0.5, SLOT: 0.5}),
    }
    won = null_line.winners(studies)
    panels = null_line.winner_panels(won).set_index(["metric", "dictionary"])
    assert len(panels) == 4
    gain = panels.loc[(f"{CHOSEN}, gain (points)", "BatchTopK"), "estimate"]
    assert gain == pytest.approx(30, abs=6)


def test_presence_counts_by_activation_and_by_cosine():
    one, other = signed_identity(4), signed_identity(4)
    other.W_dec.data = other.W_dec.data.roll(1, dims=1) + other.W_dec.data  # cosine 0.707 with two
    matched = pd.DataFrame({"S": [0.9, 0.1], "S-M": [0.8, 0.75]}, index=[0, 1])
    found = null_line.presence(
        matched, one, {"S": ("base", one), "S-M": ("arm", other)}, np.array([0, 1])
    ).set_index("stage")
    assert found["share"].tolist() == [0.5, 1.0] and found.loc["S", "n"] == 2
    assert found.loc["S", "by cosine"] == 1 and found.loc["S", "between stages"] == 1
    assert found.loc["S-M", "by cosine"] == 1
