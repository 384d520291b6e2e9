"""Causal truth names the one direction a hand-built model reads, and the fast path equals the plain one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import WIDTH, make_corpus, signed_identity

from reasoning_features.errors import UserError
from reasoning_features.models.subject import Subject, load_subject
from reasoning_features.truth.causal_truth import PLACES, Effects, measure_effects
from reasoning_features.truth.decisions import Decisions, log_odds

CORPUS = make_corpus()
GAIN = 3.0


def decisions_at(places: list[int], documents: list[int]) -> Decisions:
    return Decisions(
        name="persistence",
        corpus=CORPUS,
        positions=CORPUS.starts[documents] + np.array(places),
        documents=np.array(documents),
        styles=[""] * len(places),
        towards=np.zeros(len(places), dtype=bool),
        positive=np.array([10, 11]),
        negative=np.array([20, 21, 22]),
    )


DECISIONS = decisions_at([3, 4, 2, 4], [0, 0, 1, 5])


@pytest.fixture(scope="module")
def reader(tiny_llama: Path) -> Subject:
    """A model whose decision is GAIN times the stream's first coordinate at the hook point, and no more."""
    subject = load_subject(str(tiny_llama), 1)
    last = subject.model.model.layers[2]
    last.self_attn.o_proj.weight.zero_()
    last.mlp.down_proj.weight.zero_()
    subject.model.model.norm = torch.nn.Identity()
    unembedding = torch.nn.Linear(WIDTH, 300, bias=False).requires_grad_(False)
    unembedding.weight.zero_()
    unembedding.weight[DECISIONS.positive, 0] = GAIN
    subject.model.set_output_embeddings(unembedding)
    return subject


def measured(
    subject: Subject, place: str, decisions: Decisions = DECISIONS, means: float = 0.0, sae: object = None
) -> Effects:
    features = np.arange(WIDTH)
    coder = signed_identity(WIDTH) if sae is None else sae
    return measure_effects(
        subject, coder, decisions, features, np.full(WIDTH, means), PLACES[place], n_random=200, seed=0
    )


@pytest.mark.parametrize("place", list(PLACES))
def test_the_direction_that_is_read_is_named_and_nothing_else(reader: Subject, place: str) -> None:
    found = measured(reader, place)
    assert found.true.tolist() == [True] + [False] * (WIDTH - 1)
    # feature 0 is relu(x_0): ablating it to 0 takes GAIN · relu(x_0) from the log-odds
    streams = {
        int(i): reader.residual(torch.from_numpy(CORPUS.document(i).astype(int))[None])[0] for i in (0, 1, 5)
    }
    active = [
        max(float(streams[d][p, 0]), 0.0) for d, p in zip(DECISIONS.documents, DECISIONS.places, strict=True)
    ]
    assert found.effect[0] == pytest.approx(-GAIN * np.mean(active), rel=1e-4)
    assert found.absolute[0] == pytest.approx(GAIN * np.mean(active), rel=1e-4)
    assert np.abs(found.effect[1:]).max() < 1e-5
    # by trace: the first document's two decisions are summed
    assert found.documents.tolist() == [0, 1, 5] and found.counts.tolist() == [2, 1, 1]
    assert found.traces[:, 0] == pytest.approx(
        -GAIN * np.array([active[0] + active[1], *active[2:]]), rel=1e-4
    )
    assert found.expected_by_chance == pytest.approx(0.01 * WIDTH)


class Constant:
    """An autoencoder whose feature 0 is always 0.7, and whose others are the stream."""

    W_dec = torch.eye(WIDTH)

    def encode(self, stream: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.full_like(stream[..., :1], 0.7), stream[..., 1:]], dim=-1)


@pytest.mark.parametrize("place", list(PLACES))
def test_a_feature_always_at_its_mean_has_no_effect(tiny_subject: Subject, place: str) -> None:
    found = measured(tiny_subject, place, means=0.7, sae=Constant())
    assert found.effect[0] == found.absolute[0] == found.size[0] == 0
    assert not found.true[0]
    assert found.absolute[1:].min() > 0


@pytest.mark.parametrize("place", list(PLACES))
def test_the_fast_path_is_the_plain_one(tiny_subject: Subject, place: str) -> None:
    decisions = decisions_at([4, 3, 3], [0, 1, 5])
    sae, mean = signed_identity(WIDTH), 0.4
    found = measured(tiny_subject, place, decisions, means=mean, sae=sae)
    for row, (document, at) in enumerate(zip(decisions.documents, decisions.places, strict=True)):
        tokens = torch.from_numpy(CORPUS.document(int(document)).astype(np.int64))[None]
        as_it_is = log_odds(tiny_subject.logits(tokens)[0, at], decisions)
        for feature in (0, 7, 31):

            def edit(stream: torch.Tensor, feature: int = feature, at: int = int(at)) -> torch.Tensor:
                edited = stream.clone()
                # the first token of every document is special, and stays
                where = slice(at, at + 1) if place == "decision" else slice(1, at + 1)
                edited[0, where] += (mean - sae.encode(stream)[0, where, feature])[:, None] * sae.W_dec[
                    feature
                ]
                return edited

            plain = log_odds(tiny_subject.logits_with(tokens, edit)[0, at], decisions) - as_it_is
            assert abs(float(plain)) > 1e-3
            assert found.traces[row, feature] == pytest.approx(float(plain), abs=1e-4)


def test_random_directions_push_as_far_as_some_feature(tiny_subject: Subject) -> None:
    found = measured(tiny_subject, "decision")
    assert len(found.random_size) == 200
    assert np.isclose(found.random_size[:, None], found.size[None], rtol=1e-4).any(axis=1).all()
    pushed = found.random_size > 0
    ratio = np.quantile(np.abs(found.random_effect[pushed] / found.random_size[pushed]), 0.99)
    assert found.threshold == pytest.approx(ratio * found.size)
    again = measured(tiny_subject, "decision")
    assert again.random_effect.tolist() == found.random_effect.tolist()


def test_intervals_resample_traces() -> None:
    traces = np.array([[1.0, 0.0], [3.0, 0.0], [2.0, 0.0]], dtype=np.float32)
    empty, sizes = np.zeros(2), np.array([1.0, 2.0, 4.0])
    found = Effects(
        features=np.arange(2), effect=np.array([1.5, 0]), absolute=empty, size=empty, threshold=empty,
        documents=np.arange(3), traces=traces, counts=np.array([1, 1, 2]),
        random_effect=np.ones(3), random_absolute=3 * sizes, random_size=sizes,
    )  # fmt: skip
    low, high = found.interval()
    # the means are 1 and 3 and 1 a trace: a resample lies between drawing one of them three times
    assert low[0] == pytest.approx(1.0) and 2 < high[0] <= 3.0
    assert low[1] == high[1] == 0
    assert found.slope == pytest.approx(1.0)
    assert replace(found, random_absolute=found.random_size**2).slope == pytest.approx(2.0)


def test_nothing_to_ablate_is_said(tiny_subject: Subject) -> None:
    with pytest.raises(UserError, match="need a decision and a live feature"):
        measured(tiny_subject, "decision", DECISIONS.select(np.array([], dtype=np.int64)))
