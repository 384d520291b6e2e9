"""Mediation: gains carried by the decisions, and gains that are not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from reasoning_features.errors import UserError
from reasoning_features.models.conditions import UNSTEERED, Condition
from reasoning_features.models.subject import load_subject
from reasoning_features.settings import load_settings
from reasoning_features.steering.benchmarks import load_questions
from reasoning_features.steering.mediation import RUNS, STEERED, mediation_answers, mediation_table
from reasoning_features.steering.token_rules import bias_to_go_on

TO_STEERED, TO_UNSTEERED, *OWN = RUNS


def answered(accuracies):
    """Answers with exactly these accuracies, on 200 problems in one order of difficulty."""
    rows = [
        {"condition": run, "problem": problem, "correct": problem < 200 * accuracy}
        for run, accuracy in accuracies.items()
        for problem in range(200)
    ]
    return pd.DataFrame(rows)


def test_shares_of_the_steered_gain():
    given = {UNSTEERED: 0.4, STEERED: 0.8, TO_STEERED: 0.7, TO_UNSTEERED: 0.5, **dict.fromkeys(OWN, 0.4)}
    table = mediation_table(answered(given), n_resamples=200).set_index("run")
    assert table["gain"].to_dict() == pytest.approx(
        {STEERED: 0.4, TO_STEERED: 0.3, TO_UNSTEERED: 0.1, OWN[0]: 0.0, OWN[1]: 0.0}
    )
    assert table["share"].tolist() == pytest.approx([1, 0.75, 0.25, 0, 0])
    assert (table["share_low"] <= table["share"]).all() and (table["share"] <= table["share_high"]).all()
    assert table.loc[STEERED, ["low", "high"]].between(0.3, 0.5).all()


def test_no_gain_has_no_shares():
    given = {UNSTEERED: 0.4, STEERED: 0.405, **dict.fromkeys(RUNS, 0.4)}
    assert mediation_table(answered(given), n_resamples=200)["share"].isna().all()


@pytest.fixture(scope="module")
def organism():
    settings = load_settings("organism")
    subject = load_subject(settings.subject, settings.layer)
    ask = [load_questions(settings, subject.tokenizer, split, 32) for split in ("selection", "evaluation")]
    return subject, *ask


def test_a_bias_against_giving_up_acts_through_the_decisions(organism):
    subject, measured, reported = organism
    bias = Condition("bias", rule=bias_to_go_on(subject.tokenizer, 3.0))
    given, rates = mediation_answers(subject, measured, reported, bias, seed=0, progress=None)
    assert rates[STEERED].overall > rates[UNSTEERED].overall + 0.2
    assert len(given) == 32 * (2 + len(RUNS))
    means = given.groupby("condition")["explore"].mean()
    # tries follow the rates that are forced, whichever model they are forced on
    assert means[TO_STEERED] > means[UNSTEERED] + 0.5
    assert means[TO_UNSTEERED] < means[STEERED] - 0.5
    assert np.isfinite(mediation_table(given, "explore")["share"]).all()


def test_problems_are_not_both_measured_and_reported(organism):
    subject, measured, _ = organism
    with pytest.raises(UserError, match="both measured and reported"):
        mediation_answers(subject, measured, replace(measured, name="again"), Condition("c"), seed=0)
