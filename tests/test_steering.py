"""Steered answers: the vector that is added, where, and pairs of conditions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import WIDTH, make_tiny_llama, signed_identity

from reasoning_features.errors import UserError
from reasoning_features.models.conditions import (
    UNSTEERED,
    Condition,
    clamped_conditions,
    feature_conditions,
    stream_edit,
)
from reasoning_features.models.subject import load_subject
from reasoning_features.steering.answering import answers, answers_under
from reasoning_features.steering.benchmarks import Questions
from reasoning_features.steering.token_rules import ForcedWait


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    return load_subject(str(make_tiny_llama(tmp_path_factory.mktemp("model"))), 1)


@pytest.fixture
def questions():
    prompts = [[0, 5, 6], [0, 7, 8], [0, 9]]

    def grade(numbers, continuations):
        told = {"asked": list(numbers)}
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


@pytest.fixture
def sae():
    torch.manual_seed(2)
    found = signed_identity(WIDTH, gain=0.5, centre=torch.linspace(-0.2, 0.2, WIDTH))
    found.W_enc.data += 0.1 * torch.randn(WIDTH, 2 * WIDTH)
    found.W_dec.data += 0.1 * torch.randn(2 * WIDTH, WIDTH)
    return found


def changed(subject, conditions, tokens, condition, sae=None):
    """The stream that a condition goes on with, and the one it was given, in a mixed batch."""
    edit = stream_edit(subject, conditions, n=1, sae=sae)
    stream = subject.residual(tokens)
    rows = torch.arange(len(conditions)).repeat_interleave(len(tokens))
    return edit.change(stream.repeat(len(conditions), 1, 1), rows)[rows == condition], stream


TOKENS = torch.tensor([[0, 5, 6, 9], [0, 7, 8, 4]])


def test_strength_0_changes_no_logit(subject, sae):
    maxima = np.ones(2 * WIDTH)
    (nothing,) = feature_conditions(sae, [3], [0.0], maxima)
    edit = stream_edit(subject, [nothing], 2)
    still = subject.logits_with(TOKENS, lambda stream: edit.change(stream, torch.tensor([0, 1])))
    assert torch.equal(still, subject.logits(TOKENS))


def test_exactly_the_vector_is_added_at_every_place_of_its_rows_alone(subject, sae):
    (one,) = feature_conditions(sae, [3], [0.5], np.full(2 * WIDTH, 4.0))
    other = Condition("another", vector=torch.ones(WIDTH))
    steered, stream = changed(subject, [Condition("none"), one, other], TOKENS, 1)
    assert torch.equal(steered, stream + 0.5 * 4.0 * sae.W_dec[3])
    untouched, _ = changed(subject, [Condition("none"), one, other], TOKENS, 0)
    assert torch.equal(untouched, stream)


def test_a_clamp_is_encode_edit_decode_with_the_error_kept(subject, sae):
    conditions = [
        Condition("none"),
        *clamped_conditions(sae, [3, 40], [-0.5, 2.0], np.full(2 * WIDTH, 1.5)),
        Condition("added", vector=torch.ones(WIDTH)),
    ]
    for i, condition in enumerate(conditions[1:-1], start=1):
        clamped, stream = changed(subject, conditions, TOKENS, i, sae)
        features = sae.encode(stream)
        error = stream - sae.decode(features)
        features[..., condition.feature] = condition.gamma * 1.5
        torch.testing.assert_close(clamped, sae.decode(features) + error)
        assert not torch.allclose(clamped, stream)


def test_a_row_of_a_mixed_batch_has_the_logits_it_has_alone(subject, sae):
    conditions = [
        Condition("none"),
        *feature_conditions(sae, [3], [2.0], np.full(2 * WIDTH, 1.5)),
        *clamped_conditions(sae, [40], [2.0], np.full(2 * WIDTH, 1.5)),
    ]
    tokens = TOKENS[:1]
    mixed = stream_edit(subject, conditions, 1, sae)
    batch = subject.logits_with(tokens.repeat(3, 1), lambda x: mixed.change(x, torch.arange(3)))
    for i, condition in enumerate(conditions):
        alone = stream_edit(subject, [condition], 1, sae)
        change = (lambda x, made=alone: made.change(x, torch.zeros(1, dtype=torch.int64))) if alone else None
        logits = subject.logits_with(tokens, change) if change else subject.logits(tokens)
        torch.testing.assert_close(batch[i : i + 1], logits)


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        (Condition("twice"), "Two conditions are named 'twice'"),
        (Condition("short", vector=torch.zeros(3)), "must be 32 finite numbers"),
        (Condition("endless", vector=torch.full((WIDTH,), torch.inf)), "must be 32 finite numbers"),
        (Condition("clamped", 3, clamp=1.0), "give the autoencoder"),
    ],
)
def test_what_no_condition_can_be_is_told(subject, questions, condition, said):
    with pytest.raises(UserError, match=said):
        answers(subject, questions, [condition, Condition("twice")], seed=0, progress=None)


@pytest.mark.parametrize(
    ("feature", "clamp", "said"), [(2 * WIDTH, 1.0, "is not there"), (3, float("inf"), "a finite activation")]
)
def test_what_cannot_be_clamped_is_told(subject, questions, sae, feature, clamp, said):
    with pytest.raises(UserError, match=said):
        answers(subject, questions, [Condition("c", feature, clamp=clamp)], 0, progress=None, sae=sae)


def test_a_prompt_beyond_the_context_is_told_before_it_is_asked(subject, questions):
    long = replace(questions, prompts=[[5] * 120] * 3)
    with pytest.raises(UserError, match="do not fit into the model's context of 128"):
        answers(subject, long, [], seed=0, progress=None)


class Only:
    """Writes one token alone, and in every place the problem's number instead where asked to."""

    def __init__(self, token, numbers=False):
        self.token, self.numbers = token, numbers

    def logits(self, logits, problems, written):
        return torch.full_like(logits, -torch.inf).index_fill(1, torch.tensor([self.token]), 0.0)

    def drawn(self, tokens, problems, written):
        return 20 + torch.tensor(problems) if self.numbers else tokens


def test_rules_change_their_own_condition_alone(subject, questions):
    conditions = [
        Condition("ten", rule=Only(10)),
        Condition("none"),
        Condition("numbers", rule=Only(10, numbers=True)),
    ]
    frame = answers(subject, questions, conditions, seed=3, batch=5, progress=None)
    by = frame.groupby("condition")["tokens"].apply(list)
    assert by["ten"] == [(10,) * 12] * 3
    assert by["numbers"] == [(20,) * 12, (21,) * 12, (22,) * 12]
    plain = answers(subject, questions, [], seed=3, progress=None)
    assert by[UNSTEERED] == by["none"] == plain["tokens"].tolist()


def test_a_rule_that_remembers_may_be_shared_and_used_again(subject, questions):
    plain = answers(subject, questions, [], seed=3, progress=None)["tokens"].tolist()
    often = max(set(sum(plain, ())), key=sum(plain, ()).count)
    rule = ForcedWait((200, 201), 1, (often,))
    strong = 40.0 * torch.eye(WIDTH)[2]
    conditions = [Condition("one", rule=rule), Condition("other", vector=strong, rule=rule)]
    mixed = answers(subject, questions, conditions, seed=3, progress=None)
    assert any(200 in tokens for tokens in mixed["tokens"])
    for condition in conditions:
        alone = answers_under(subject, questions, [condition], seed=3, batch=1)
        here = mixed.loc[mixed["condition"] == condition.name, "tokens"]
        assert here.tolist() == alone["tokens"].tolist()


@pytest.mark.parametrize("make", [feature_conditions, clamped_conditions])
@pytest.mark.parametrize(
    ("feature", "gamma", "said"),
    [(2 * WIDTH, 1.0, "is not there"), (0, 1.0, "never active"), (3, float("nan"), "not all finite")],
)
def test_what_cannot_be_steered_is_told(make, feature, gamma, said):
    with pytest.raises(UserError, match=said):
        make(signed_identity(WIDTH), [feature], [gamma], np.arange(2 * WIDTH, dtype=float))


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
