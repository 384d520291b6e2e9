"""What steering changes, and the group that follows, on answers with known changes."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from reasoning_features.interpretation.automatic_interpretation import (
    BROKEN,
    NO_CHANGE,
    changes,
    dose,
    function_groups,
    words_of_reasoning,
)
from reasoning_features.models.conditions import UNSTEERED

N = 30
MEASURES = ("thinking_tokens", "verify", "parseable")


def frame() -> pd.DataFrame:
    """Feature 1 adds 10 tokens a unit of γ; 2 does nothing; 3 spoils the form; 4 spoils it upwards only."""
    rng = np.random.default_rng(0)
    tokens, checks = rng.integers(30, 50, N), rng.integers(0, 2, N)
    rows = []

    def add(condition, feature, gamma, length, verify, parseable):
        told = {"condition": condition, "feature": feature, "gamma": gamma, "problem": np.arange(N)}
        told |= {"thinking_tokens": length, "verify": verify, "parseable": parseable}
        rows.append(pd.DataFrame(told))

    add(UNSTEERED, -1, 0.0, tokens, checks, True)
    for gamma in (-1.0, 1.0):
        add(f"1 at {gamma}", 1, gamma, tokens + 10 * gamma, checks, True)
        add(f"2 at {gamma}", 2, gamma, tokens, checks, True)
        add(f"3 at {gamma}", 3, gamma, tokens, checks, False)
        add(f"4 at {gamma}", 4, gamma, tokens, checks + (gamma < 0), gamma < 0)
    return pd.concat(rows, ignore_index=True)


def test_dose_leaves_out_strengths_that_spoil_the_form():
    bounds = dose(frame()).set_index("feature")
    assert bounds.loc[1].tolist() == [-1.0, 1.0]
    assert bounds.loc[3].tolist() == [0.0, 0.0]
    assert bounds.loc[4].tolist() == [-1.0, 0.0]


def test_changes_and_groups():
    changed = changes(frame(), MEASURES)
    found = changed.set_index(["feature", "measure"])
    # +10 less −10: 20 tokens on every problem, so the interval has no width.
    assert found.loc[(1, "thinking_tokens"), "change"] == pytest.approx(20)
    assert found.loc[(1, "thinking_tokens"), "change low"] == pytest.approx(20)
    # unsteered (0) less γ = −1 (one more check on every problem): −1.
    assert found.loc[(4, "verify"), "change"] == pytest.approx(-1)
    groups = function_groups(changed).set_index("feature")["group"]
    assert groups.to_dict() == {1: "thinks longer", 2: NO_CHANGE, 3: BROKEN, 4: "checks less"}


def test_words_are_counted_whole_and_in_any_casing():
    assert words_of_reasoning(
        ["Wait, wait. Waiter", "Let me see, but"], ["wait", "let me", "but"]
    ).tolist() == [2, 2]
