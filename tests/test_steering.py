"""Steered answers: the vector that is added, where, and pairs of conditions."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import WIDTH, make_tiny_llama, signed_identity

from reasoning_features.benchmarks import Questions
from reasoning_features.errors import UserError
from reasoning_features.steering import UNSTEERED, Condition, answers, feature_conditions
from reasoning_features.subject import load_subject


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    return load_subject(str(make_tiny_llama(tmp_path_factory.mktemp("model"))), 1)


@pytest.fixture
def questions():
    prompts = [[0, 5, 6], [0, 7, 8], [0, 9]]

    def grade(numbers, continuations):
        told = {"tokens": [tuple(row) for row in continuations], "asked": list(numbers)}
        return pd.DataFrame(told)

    return Questions("three", prompts, ["a"] * 3, 1, 12, ("asked",), grade)


def test_the_vector_is_equation_7():
    sae = signed_identity(WIDTH, gain=0.5)
    maxima = np.arange(2 * WIDTH, dtype=float)
    (one, other) = feature_conditions(sae, [3], [-0.5, 2.0], maxima)
    # f_max = 3, W_dec,3 = 0.5 along the fourth axis: γ · 3 · 0.5
    expected = torch.zeros(WIDTH)
    expected[3] = 1.5
    assert torch.equal(one.vector, -0.5 * expected)
    assert torch.equal(other.vector, 2.0 * expected)
    assert (other.feature, other.gamma) == (3, 2.0)


@pytest.mark.parametrize(
    ("feature", "gamma", "said"),
    [(2 * WIDTH, 1.0, "is not there"), (0, 1.0, "never active"), (3, float("nan"), "not all finite")],
)
def test_what_cannot_be_steered_is_told(feature, gamma, said):
    with pytest.raises(UserError, match=said):
        feature_conditions(signed_identity(WIDTH), [feature], [gamma], np.arange(2 * WIDTH, dtype=float))


def test_conditions_share_draws_and_a_batch_changes_nothing(subject, questions):
    strong = torch.zeros(WIDTH)
    strong[2] = 40.0
    conditions = [Condition("none", 4, 0.0, torch.zeros(WIDTH)), Condition("strong", 5, 1.0, strong)]
    frame = answers(subject, questions, conditions, seed=3, progress=None)
    assert frame["condition"].tolist() == [UNSTEERED] * 3 + ["none"] * 3 + ["strong"] * 3
    assert frame["problem"].tolist() == frame["asked"].tolist() == [0, 1, 2] * 3
    by = frame.groupby("condition")["tokens"].apply(list)
    assert by["none"] == by[UNSTEERED] != by["strong"]
    alone = answers(subject, questions, conditions[1:], seed=3, batch=1, progress=None)
    assert alone.loc[alone["condition"] == "strong", "tokens"].tolist() == by["strong"]


def test_the_vector_is_added_everywhere_and_nothing_else(subject, questions):
    vector = torch.linspace(-1, 1, WIDTH)
    frame = answers(subject, questions, [Condition("c", 0, 1.0, vector)], seed=3, progress=None)
    prompt, (drawn,) = questions.prompts[0], frame.loc[frame["condition"] == "c", "tokens"].head(1)
    tokens = torch.tensor([[*prompt, *drawn]])
    logits = subject.logits_with(tokens, lambda stream: stream + vector)
    plain = subject.logits(tokens)
    assert not torch.allclose(logits, plain)
    # greedy check: under the edit each drawn token is among the nucleus of the edited logits
    chances = torch.softmax(logits[0, len(prompt) - 1 : -1].double() / 0.6, -1)
    own = chances[torch.arange(len(drawn)), torch.tensor(drawn)]
    before = (chances * (chances > own[:, None])).sum(-1)
    assert (before < 0.95).all()
