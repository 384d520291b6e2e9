"""Baselines of steering, other ways to spend as many tokens, and gains carried by the decisions."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from reasoning_features.errors import UserError
from reasoning_features.models.conditions import UNSTEERED, Condition
from reasoning_features.models.subject import load_subject
from reasoning_features.settings import load_settings
from reasoning_features.steering import baselines
from reasoning_features.steering.answering import answers
from reasoning_features.steering.baselines import (
    LONGER,
    MAJORITY,
    RUNS,
    STEERED,
    at_equal_tokens,
    equal_token_comparison,
    majority_votes,
    mediation_answers,
    mediation_table,
    single_answers,
    spending_curve,
)
from reasoning_features.steering.benchmarks import Questions, load_questions, repeated
from reasoning_features.steering.token_rules import bias_to_go_on


@pytest.fixture
def decisions():
    corpus = SimpleNamespace(n_tokens=8)
    positions, towards = np.array([1, 3, 4, 6]), np.array([True, False, True, False])
    return SimpleNamespace(name="persistence", corpus=corpus, positions=positions, towards=towards)


@pytest.fixture
def stream(monkeypatch):
    """Token i's stream is (i, 1, 0), whatever is asked; only the tokens asked for are given."""

    def read(subject, corpus, batch_tokens, include=None):
        wanted = np.arange(8) if include is None else np.flatnonzero(include)
        residual = torch.stack([torch.tensor([float(i), 1.0, 0.0]) for i in wanted])
        # in two batches, the second first: the order of a stream is by length
        for part in (slice(2, None), slice(0, 2)):
            yield SimpleNamespace(residual=residual[part], positions=torch.from_numpy(wanted)[part])

    monkeypatch.setattr(baselines, "stream", read)


def test_the_mean_difference_is_of_the_decisions_own_tokens(stream, decisions):
    found = baselines.mean_difference(None, decisions, 100)
    # (1 + 4) / 2 − (3 + 6) / 2 along the first axis, nothing along the others
    assert found.tolist() == pytest.approx([-1.0, 0.0, 0.0])


def test_decisions_that_went_one_way_are_told(stream, decisions):
    decisions.towards[:] = True
    with pytest.raises(UserError, match="all went one way"):
        baselines.mean_difference(None, decisions, 100)


def test_mean_norm_is_over_all_tokens(stream):
    expected = np.mean([np.hypot(i, 1) for i in range(8)])
    assert baselines.mean_norm(None, None, 100) == pytest.approx(expected)


def test_every_baseline_has_both_signs_and_its_own_names(stream, decisions, organism_tokenizer):
    subject = SimpleNamespace(tokenizer=organism_tokenizer)
    made = baselines.baselines(subject, {"persistence": decisions}, ["wait", "hmm"], 10.0, 100)
    assert set(made) == {
        baselines.MEAN_DIFFERENCE, baselines.REASONING_BIAS, baselines.STOPPING_BIAS, baselines.WAIT
    }  # fmt: skip
    names = [condition.name for conditions in made.values() for condition in conditions]
    assert len(names) == len(set(names))
    for name in (baselines.MEAN_DIFFERENCE, baselines.REASONING_BIAS, baselines.STOPPING_BIAS):
        gammas = np.array([condition.gamma for condition in made[name]])
        assert sorted(gammas) == sorted(-gammas)
    strongest = made[baselines.MEAN_DIFFERENCE][-1]
    assert float(strongest.vector.norm()) == pytest.approx(0.3 * 10)
    assert baselines.MEAN_DIFFERENCE not in baselines.baselines(subject, {}, ["wait", "hmm"], 10.0, 100)


def votes(*samples):
    """Answers to two problems whose right answer is "a", sample by sample, ten tokens each."""
    rows = [
        {"problem": 2 * sample + i, "answer": answer, "correct": answer == "a", "thinking_tokens": 10 + i}
        for sample, given in enumerate(samples)
        for i, answer in enumerate(given)
    ]
    return pd.DataFrame(rows)


def test_majorities_by_hand():
    answered = votes("ab", "bb", "ba", [None, "a"], "aa")
    found = majority_votes(answered.sample(frac=1, random_state=0), 2, [1, 2, 3, 4, 5])
    right = found.pivot(index="size", columns="problem", values="correct")
    assert right[0].tolist() == [True, True, False, False, True]  # a, tie to a, b b, b b, tie to a
    assert right[1].tolist() == [False, False, False, False, True]  # b, b b, b b, tie to b, a a a
    assert found.loc[found["size"] == 3, "tokens"].tolist() == [30, 33]
    assert not majority_votes(votes([None, "a"]), 2, [1])["correct"].iloc[0]
    with pytest.raises(UserError, match="7 answers to each of 2 problems"):
        majority_votes(answered, 2, [1, 7])


def test_repeated_questions_have_draws_of_their_own(tiny_subject):
    def grade(numbers, continuations):
        return pd.DataFrame({"asked": list(numbers)})

    questions = Questions("two", [[0, 5, 6], [0, 9]], ["a", "b"], 1, 8, ("asked",), grade)
    again = answers(tiny_subject, repeated(questions, 3), [], seed=2, progress=None)
    assert again["asked"].tolist() == [0, 1] * 3
    once = answers(tiny_subject, questions, [], seed=2, progress=None)
    assert again["tokens"].tolist()[:2] == once["tokens"].tolist()
    assert len(set(again["tokens"])) == 6


@pytest.fixture
def spent():
    """One answer costs 10 tokens and is right on the first problem; three cost 30 and are right on both."""
    rows = [
        (MAJORITY, size, problem, size == 3 or problem == 0, 10 * size)
        for size in (1, 3)
        for problem in (0, 1)
    ]
    return pd.DataFrame(rows, columns=["method", "size", "problem", "correct", "tokens"])


@pytest.mark.parametrize(("tokens", "expected"), [(10, [1, 0]), (15, [1, 0.25]), (30, [1, 1])])
def test_between_two_sizes_lies_their_mixture(spent, tokens, expected):
    assert at_equal_tokens(spent, tokens).tolist() == pytest.approx(expected)


def test_what_cannot_be_spent_is_told(spent):
    for tokens in (9.0, 31.0):
        with pytest.raises(UserError, match=r"Majority spends 10\.0 to 30\.0 tokens"):
            at_equal_tokens(spent, tokens)


def test_steered_answers_beside_others_of_equal_tokens(spent):
    def answered(condition, correct, tokens):
        return pd.DataFrame(
            {"condition": condition, "problem": [0, 1], "correct": correct, "thinking_tokens": tokens}
            | {"tokens": [(5, 6), (7,)]}  # the new ones, as answers have them
        )

    plain, wait = answered(UNSTEERED, [True, False], 10), answered("wait", [False, False], 20)
    longer = single_answers(pd.concat([plain, wait]), {UNSTEERED: 0, "wait": 1})
    assert longer["size"].tolist() == [0, 0, 1, 1]
    steered = answered("steered", [True, True], 15).iloc[::-1]
    found = equal_token_comparison(steered, pd.concat([spent, longer])).set_index("method")
    # majority: (1 + .25) / 2; longer: half of the first problem's one, and none of the second's
    assert found["other"].to_dict() == pytest.approx({MAJORITY: 0.625, LONGER: 0.25})
    assert found["difference"].to_dict() == pytest.approx({MAJORITY: 0.375, LONGER: 0.75})
    assert found["n"].tolist() == [2, 2]
    curve = spending_curve(spent)
    assert curve[["tokens", "accuracy"]].values.tolist() == [[10, 0.5], [30, 1.0]]


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
