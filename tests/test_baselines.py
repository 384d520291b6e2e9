"""Baselines of steering: the mean difference of decisions, and what the others push."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from reasoning_features.errors import UserError
from reasoning_features.organism.tokenizer import train_tokenizer
from reasoning_features.organism.traces import base_documents
from reasoning_features.steering import baselines


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(d.text for d in base_documents(500, 0))


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


def test_every_baseline_has_both_signs_and_its_own_names(stream, decisions, tokenizer):
    subject = SimpleNamespace(tokenizer=tokenizer)
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
