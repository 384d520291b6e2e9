"""Steering's claims: numbers, controls and intervals as they are recorded."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from test_steering_results import made

from reasoning_features.models.conditions import UNSTEERED
from reasoning_features.reporting.claims import Measured
from reasoning_features.statistics import Interval
from reasoning_features.steering import steering_claims as effects
from reasoning_features.steering.search import CHOSEN, FEATURES, SLOT
from reasoning_features.steering.steering_results import ban_table


@pytest.fixture
def study():
    return made(1.0, 0, {CHOSEN: 0.7, SLOT: 0.5, FEATURES: 0.55})


def test_an_effect_has_both_intervals(study):
    found = effects.effect(study, CHOSEN)
    wide, narrow = found.value, found.narrow
    assert wide.n == 400 and wide.estimate == pytest.approx(0.2, abs=0.06)
    assert wide.low < narrow.low < wide.estimate < narrow.high < wide.high


def test_length_is_relative_to_the_unsteered_model(study):
    found = effects.length_effect(study, [SLOT])
    assert found.value.estimate == pytest.approx(1 / 40) and found.control == pytest.approx(1 / 40)


def test_the_strongest_control_is_chosen_before_fresh_problems(study):
    study.evaluation.loc[study.evaluation["group"] == SLOT, "correct"] = True
    assert effects.strongest_control(study, [SLOT, FEATURES]) == FEATURES


def test_screening_counts_candidates(study):
    found = effects.screening_effect(study, [SLOT])
    assert found == Measured(Interval(1, 1, 1, n=1), control=0)


def test_the_difference_is_over_all_seeds():
    studies = [
        made(kappa, s, {CHOSEN: 0.5 + 0.2 * kappa, SLOT: 0.5}) for s in range(2) for kappa in (1.0, 0.0)
    ]
    found = effects.difference_effect(studies)
    assert found.value.estimate == pytest.approx(0.2, abs=0.05) and found.value.low > 0.1


@pytest.fixture
def banned():
    right = {UNSTEERED: [1, 1, 1, 1], "R": [1, 0, 0, 0], "random 0": [1, 1, 0, 0], "random 1": [1, 1, 1, 1]}
    right |= {"twins of R": [1, 1, 1, 1]}
    frames = [
        pd.DataFrame({"condition": name, "problem": np.arange(4), "correct": values, "thinking_tokens": 9})
        for name, values in right.items()
    ]
    return pd.concat(frames, ignore_index=True)


def test_banning_r_is_compared_with_the_mean_of_random_sets(banned):
    table = ban_table(banned).set_index("banned")
    assert table.loc["R", "change"] == -0.75 and table.loc["twins of R", "change"] == 0
    assert table.loc["random words (2 sets)", "accuracy"] == 0.75
    assert table.loc["R less random words", "change"] == -0.5
    assert effects.ban_effect(banned).value.estimate == 0.5
    assert effects.run_effect(banned, "R", UNSTEERED).value.estimate == -0.75
