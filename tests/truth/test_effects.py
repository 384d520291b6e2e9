"""Ablation names the direction a hand-built model reads; gradients, output scores and patching by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import LAYERS, VOCABULARY, WIDTH, make_corpus, make_decisions, signed_identity, small_corpus

from reasoning_features.errors import UserError
from reasoning_features.interpretation.features import logit_effects
from reasoning_features.models.subject import Subject, load_subject
from reasoning_features.text.corpus import Corpus
from reasoning_features.truth import effects
from reasoning_features.truth.decisions import Decisions, log_odds
from reasoning_features.truth.effects import GROUPS, PLACES, Effects

CORPUS = make_corpus()
GAIN = 3.0


def decisions_at(places: list[int], documents: list[int], corpus: Corpus = CORPUS) -> Decisions:
    return make_decisions(corpus, documents, places, [10, 11], [20, 21, 22])


DECISIONS = decisions_at([3, 4, 2, 4], [0, 0, 1, 5])


def document_tokens(corpus: Corpus, document: int) -> torch.Tensor:
    return torch.from_numpy(corpus.document(document).astype(np.int64))[None]


@pytest.fixture(scope="module")
def reader(tiny_llama):
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
    coder, every, to = sae or signed_identity(WIDTH), np.arange(WIDTH), np.full(WIDTH, means)
    return effects.measure_effects(subject, coder, decisions, every, to, PLACES[place], n_random=200, seed=0)


@pytest.mark.parametrize("place", list(PLACES))
def test_the_direction_that_is_read_is_named_and_nothing_else(reader, place):
    found = measured(reader, place)
    assert found.true.tolist() == [True] + [False] * (WIDTH - 1)
    # feature 0 is relu(x_0): ablating it to 0 takes GAIN · relu(x_0) from the log-odds
    streams = [reader.residual(document_tokens(CORPUS, int(i)))[0] for i in DECISIONS.documents]
    active = [max(float(x[p, 0]), 0.0) for x, p in zip(streams, DECISIONS.places, strict=True)]
    assert found.change[0] == pytest.approx(-GAIN * np.mean(active), rel=1e-4)
    assert found.effect[0] == -found.change[0]
    assert np.abs(found.change[1:]).max() < 1e-5
    # by trace: the first document's two decisions are summed
    assert found.counts.tolist() == [2, 1, 1]
    assert found.sums[:, 0] == pytest.approx(-GAIN * np.array([active[0] + active[1], *active[2:]]), rel=1e-4)


class Constant:
    """An autoencoder whose feature 0 is always 0.7, and whose others are the stream."""

    W_dec = torch.eye(WIDTH)

    def encode(self, stream: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.full_like(stream[..., :1], 0.7), stream[..., 1:]], dim=-1)


@pytest.mark.parametrize("place", list(PLACES))
def test_a_feature_always_at_its_mean_has_no_effect(tiny_subject, place):
    found = measured(tiny_subject, place, means=0.7, sae=Constant())
    assert found.change[0] == found.size[0] == 0
    assert not found.true[0]
    assert np.abs(found.change[1:]).min() > 0


@pytest.mark.parametrize("place", list(PLACES))
def test_the_fast_path_is_the_plain_one(tiny_subject, place):
    decisions = decisions_at([4, 3, 3], [0, 1, 5])
    sae, mean = signed_identity(WIDTH), 0.4
    found = measured(tiny_subject, place, decisions, means=mean, sae=sae)
    for row, (document, at) in enumerate(zip(decisions.documents, decisions.places, strict=True)):
        tokens = document_tokens(CORPUS, int(document))
        as_it_is = log_odds(tiny_subject.logits(tokens)[0, at], decisions)
        for feature in (0, 7, 31):

            def edit(stream: torch.Tensor, feature: int = feature, at: int = int(at)) -> torch.Tensor:
                edited = stream.clone()
                # the first token of every document is special, and stays
                where = slice(at, at + 1) if place == "decision" else slice(1, at + 1)
                amount = mean - sae.encode(stream)[0, where, feature]
                edited[0, where] += amount[:, None] * sae.W_dec[feature]
                return edited

            plain = log_odds(tiny_subject.logits_with(tokens, edit)[0, at], decisions) - as_it_is
            assert abs(float(plain)) > 1e-3
            assert found.sums[row, feature] == pytest.approx(float(plain), abs=1e-4)


def test_random_directions_push_as_far_as_some_feature(tiny_subject):
    found = measured(tiny_subject, "decision")
    change, _, size = found.random
    assert len(size) == 200
    assert np.isclose(size[:, None], found.size[None], rtol=1e-4).any(axis=1).all()
    pushed = size > 0
    ratio = np.quantile(np.abs(change[pushed] / size[pushed]), 0.99)
    assert found.threshold == pytest.approx(ratio * found.size)


def test_intervals_resample_traces_and_the_slope_is_of_random_directions():
    traces = np.array([[1.0, 0.0], [3.0, 0.0], [2.0, 0.0]], dtype=np.float32)
    empty, sizes = np.zeros(2), np.array([1.0, 2.0, 4.0])
    counts, random = np.array([1, 1, 2]), np.stack([np.ones(3), 3 * sizes, sizes])
    found = Effects(np.arange(2), np.array([1.5, 0]), empty, empty, traces, counts, random)
    table = found.table()
    assert table["feature"].tolist() == [0, 1, -1, -1, -1] and table["rank"].tolist()[:2] == [1, 2]
    assert table["effect"].tolist() == [1.5, 0, 1, 1, 1] and table["true"].tolist() == [True] + [False] * 4
    # the means are 1 and 3 and 1 a trace: a resample lies between drawing one of them three times
    assert table.loc[0, "low"] == pytest.approx(1.0) and 2 < table.loc[0, "high"] <= 3.0
    assert table.loc[1, "low"] == table.loc[1, "high"] == 0
    assert found.slope == pytest.approx(1.0)
    assert replace(found, random=random[[0, 2, 2]] ** [[1], [2], [1]]).slope == pytest.approx(2.0)
    assert np.isnan(replace(found, random=np.empty((3, 0))).slope)


def test_features_that_pass_come_largest_first(tiny_subject):
    change = np.array([0.5, 0.1, -0.9])
    found = Effects(np.arange(3), change, np.ones(3), np.full(3, 0.2), change[None], np.ones(1))
    assert found.passed.tolist() == [2, 0]
    assert found.of(np.array([2, 7])).change.tolist() == [-0.9]
    with pytest.raises(UserError, match="need a decision and a live feature"):
        measured(tiny_subject, "decision", DECISIONS.select(np.array([], dtype=np.int64)))


# --- gradient attribution and the output score -------------------------------------------------------------


def test_gradient_attribution_is_the_slope_of_ablation(tiny_subject):
    corpus, sae = small_corpus(), signed_identity(tiny_subject.d_model)
    at = np.array([4, 13])
    decisions = replace(DECISIONS, corpus=corpus, positions=at, documents=corpus.document_of[at])
    means = np.full(2 * tiny_subject.d_model, 0.1)
    ours = effects.gradient_attribution(tiny_subject, sae, decisions, means, 64)
    total, step = np.zeros(len(means)), 1e-2
    for position, document in zip(decisions.positions, decisions.documents, strict=True):
        place = int(position - corpus.starts[document])
        tokens = document_tokens(corpus, document)
        stream_ = tiny_subject.residual(tokens)
        away = sae.encode(stream_[0, place][None])[0] - torch.from_numpy(means).float()
        for i, move in enumerate(away[:, None] * sae.W_dec):
            found = []
            for sign in (step, -step):
                edited = stream_.clone()
                edited[0, place] += sign * move
                logits = tiny_subject.logits_with(tokens, lambda _, edited=edited: edited)
                found.append(float(log_odds(logits[0, place], decisions)))
            total[i] += (found[0] - found[1]) / (2 * step)
    np.testing.assert_allclose(ours, total / 2, rtol=0.05, atol=2e-3)
    assert np.abs(ours).max() > 0.02


def test_output_score_by_hand(tiny_subject):
    sae = signed_identity(tiny_subject.d_model)
    prompt, features = [0, 5, 9], np.array([3, 40])
    ours = effects.output_scores(tiny_subject, sae, [prompt], 6, features)
    tokens = torch.tensor([prompt])
    stream_ = tiny_subject.residual(tokens)
    amount = 10 * sae.encode(stream_[0, -1][None]).max()
    for score, feature in zip(ours, features, strict=True):
        meant = logit_effects(tiny_subject, sae.W_dec[[feature]])[0].argsort(descending=True)[:20]
        raised = stream_.clone()
        raised[0, -1] += amount * sae.W_dec[feature]
        chances = tiny_subject.logits_with(tokens, lambda _, raised=raised: raised)[0, -1].softmax(0)
        order = chances.argsort(descending=True).tolist()
        best = min(order.index(token) for token in meant.tolist())
        assert score == pytest.approx((1 - best / len(chances)) * float(chances[meant].max()), rel=1e-4)


def test_prompts_come_from_documents_without_thinking():
    corpus = small_corpus()
    corpus.thinking[corpus.span(0)] = True
    prompts = effects.neutral_prompts(corpus, 3, 8)
    # document 0 thinks; of the other eleven the first, the middle and the last
    assert prompts == [corpus.document(i)[:8].tolist() for i in (1, 6, 11)]
    with pytest.raises(UserError, match="has 4 documents without thinking of more than 9 tokens"):
        effects.neutral_prompts(corpus, 5, 9)


# --- patching ----------------------------------------------------------------------------------------------

PATCHED = make_corpus(8)
WHERE = [0, 1, 1, 3, 4, 6]
TAKEN = replace(decisions_at([3, 2, 4, 4, 3, 4], WHERE, PATCHED), negative=np.array([20]))
SHIFTED = np.where(PATCHED.special, PATCHED.tokens, (PATCHED.tokens + 7) % VOCABULARY).astype(np.int32)
OTHER = replace(PATCHED, tokens=SHIFTED)


def test_shares_that_must_be_all_or_nothing(tiny_subject):
    table = effects.patch(tiny_subject, TAKEN, OTHER, batch_tokens=12)
    assert len(table) == LAYERS * len(GROUPS)
    share = table.pivot(index="layer", columns="group", values="share")
    assert share["all"].to_numpy() == pytest.approx(1.0, abs=1e-4)
    # nothing is read from other tokens after the last block
    last = share.loc[LAYERS - 1]
    assert last["decision"] == last["opening"] == pytest.approx(1.0, abs=1e-4)
    assert last["before"] == pytest.approx(0.0, abs=1e-4)
    assert abs(share.loc[0, "decision"] - 1) > 0.001
    assert (table["low"] <= table["share"]).all() and (table["share"] <= table["high"]).all()
    assert set(table["traces"]) == {5} and set(table["decisions"]) == {6}
    # the batches' size changes nothing
    assert effects.patch(tiny_subject, TAKEN, OTHER, 4096)["share"].to_numpy() == pytest.approx(
        table["share"].to_numpy(), abs=1e-3
    )
