"""Patching names the directions that a hand-built model reads; what is causal; gradients, output scores."""

from collections.abc import Sequence
from dataclasses import replace
from math import erfc
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from sae_lens import StandardSAE
from scipy.stats import false_discovery_control
from tiny import LAYERS, VOCABULARY, WIDTH, make_corpus

from reasoning_features.errors import UserError
from reasoning_features.interpretation.features import logit_effects
from reasoning_features.models.subject import Subject, load_subject
from reasoning_features.text.corpus import Corpus
from reasoning_features.truth import effects
from reasoning_features.truth.decisions import Decisions, log_odds
from reasoning_features.truth.effects import GROUPS, Effects

GAIN = 3.0


def worded(corpus: Corpus) -> Corpus:
    """A corpus with every token but the special ones another."""
    shifted = np.where(corpus.special, corpus.tokens, (corpus.tokens + 7) % VOCABULARY)
    return replace(corpus, tokens=shifted.astype(np.int32))


CORPUS = make_corpus()
OTHER = worded(CORPUS)
DECISIONS = tiny.make_decisions(CORPUS, [0, 0, 1, 5], [3, 4, 2, 4], [10, 11], [20, 21, 22])


def document_tokens(corpus: Corpus, document: int) -> torch.Tensor:
    return torch.from_numpy(corpus.document(document).astype(np.int64))[None]


@pytest.fixture(scope="module")
def reader(tiny_llama):
    """A model whose decision is GAIN times the sum of the stream's first two coordinates, and no more."""
    subject = load_subject(str(tiny_llama), 1)
    last = subject.model.model.layers[2]
    last.self_attn.o_proj.weight.zero_()
    last.mlp.down_proj.weight.zero_()
    subject.model.model.norm = torch.nn.Identity()
    unembedding = torch.nn.Linear(WIDTH, 300, bias=False).requires_grad_(False)
    unembedding.weight.zero_()
    unembedding.weight[DECISIONS.positive, :2] = GAIN
    subject.model.set_output_embeddings(unembedding)
    return subject


def coordinates(gain: float = 1.0) -> StandardSAE:
    """An autoencoder whose feature i is coordinate i, raised so that it is positive; it gives gain · x."""
    same, raised = torch.eye(WIDTH), torch.full((WIDTH,), 50.0)
    return tiny.relu_sae(same, gain * same, raised, -gain * raised)


def measured(
    subject: Subject, sae: Any, decisions: Decisions = DECISIONS, features: range = range(WIDTH)
) -> Effects:
    return effects.measure_effects(
        subject, sae, decisions, OTHER, np.array(features, dtype=np.int64), n_random=200, seed=0
    )


def away(subject: Subject, decisions: Decisions) -> np.ndarray:
    """How far each decision's stream lies from that of the other wording ``[n, d]``."""
    ours, theirs = (
        [subject.residual(document_tokens(corpus, int(i)))[0] for i in decisions.documents]
        for corpus in (CORPUS, OTHER)
    )
    pairs = zip(ours, theirs, decisions.places, strict=True)
    return np.stack([(one[at] - other[at]).numpy() for one, other, at in pairs])


def test_the_directions_that_are_read_are_named_and_nothing_else(reader):
    found, expected = measured(reader, coordinates()), GAIN * away(reader, DECISIONS)
    # a coordinate that the other wording lowers speaks for the positive side, and so does one that it raises
    sign = np.sign(expected.mean(axis=0))
    assert found.effect[:2] == pytest.approx(np.abs(expected[:, :2].mean(axis=0)), abs=1e-3)
    assert np.abs(found.effect[2:]).max() < 1e-4
    assert found.size * GAIN == pytest.approx(np.abs(expected).mean(axis=0), abs=1e-3)
    # by trace: the first document's two decisions are summed
    assert found.counts.tolist() == [2, 1, 1]
    by_trace = sign[0] * np.add.reduceat(expected[:, 0], [0, 2, 3])
    assert found.sums[:, 0] == pytest.approx(by_trace, abs=1e-3)
    # random directions push as far as some feature; one decision's effects are in proportion to the size
    assert np.isclose(found.random[1][:, None], found.size, rtol=1e-4).any(axis=1).all()
    one = measured(reader, coordinates(), DECISIONS.select(np.array([0])))
    assert one.spread == pytest.approx(GAIN * np.sqrt(2 / WIDTH), rel=0.3)
    assert np.flatnonzero(one.causal).tolist() == [0, 1]


@pytest.mark.parametrize("gain", [1.0, 0.6])
def test_sets_carry_what_their_features_do_and_the_parts_add_up(reader, gain):
    sets = {"both": [0, 1], "first": [0], "second": [1], "unrelated": [2, 9], "none": []}
    ids = {name: np.array(own, dtype=np.int64) for name, own in sets.items()}
    table = effects.mechanism(reader, coordinates(gain), DECISIONS, OTHER, ids).set_index("part")
    expected = GAIN * away(reader, DECISIONS).mean(axis=0)
    effect, share = table["effect"], table["share"]
    assert effect["whole stream"] == pytest.approx(expected[:2].sum(), abs=1e-3)
    assert effect[["first", "second"]].tolist() == pytest.approx(gain * expected[:2], abs=1e-3)
    assert share["both"] == pytest.approx(gain, abs=1e-3)
    assert share["reconstruction"] == pytest.approx(gain, abs=1e-3)
    assert share["reconstruction"] + share["error term"] == pytest.approx(1, abs=1e-3)
    assert share[["unrelated", "none"]].tolist() == pytest.approx([0, 0], abs=1e-4)
    assert (table["traces"] == 3).all() and share["whole stream"] == 1


def test_a_feature_that_is_the_same_in_both_wordings_has_no_effect(tiny_subject):
    sae = coordinates()
    sae.W_enc.data[:, 0], sae.b_enc.data[0] = 0, 0.7
    found = measured(tiny_subject, sae)
    assert found.effect[0] == found.size[0] == 0 and (found.sums[:, 0] == 0).all()
    assert found.p_values[0] == 1 and not found.causal[0]
    assert np.abs(found.effect[1:]).min() > 0


def constructed(effect: Sequence[float], size: Sequence[float], spread: float) -> Effects:
    """Effects of features by hand; random directions of size 1 and 2."""
    own, random = np.array(effect), np.array([[spread, -2 * spread], [1.0, 2.0]])
    return Effects(np.arange(len(own)), own, np.array(size), random, own[None], np.ones(1))


def test_an_effect_below_the_floor_is_never_causal_and_none_that_random_directions_have():
    # beyond doubt, all but the last
    sure = constructed([0.019, -0.019, 0.021, -0.021, 0.0], [1, 1, 1, 1, 0], spread=1e-5)
    assert (sure.p_values[:4] < 1e-100).all() and sure.p_values[4] == 1
    assert sure.causal.tolist() == [False, False, True, True, False]
    # effects of a nat, but no larger than those of random directions of their size
    assert not constructed([1.0, -1.0, 1.5], [10, 10, 20], spread=0.1).causal.any()


@pytest.mark.parametrize("seed", range(5))
def test_false_discoveries_are_bounded_as_scipy_bounds_them(seed):
    rng = np.random.default_rng(seed)
    size, spread = rng.uniform(0.5, 3, 300), 0.1
    effect = spread * size * rng.normal(size=300)
    effect[:20] += rng.choice([-1, 1], 20) * rng.uniform(0.2, 2, 20)
    found = constructed(effect, size, spread)
    assert found.spread == pytest.approx(spread)
    by_hand = [erfc(abs(e) / (spread * s) / 2**0.5) for e, s in zip(effect, size, strict=True)]
    assert found.p_values == pytest.approx(by_hand)
    rejected = false_discovery_control(by_hand) <= 0.05
    assert 5 < rejected.sum() < 30 and found.causal.sum() == rejected.sum()
    assert (found.causal == rejected).all()


def test_intervals_resample_traces():
    traces, random = np.array([[1.0, 0.0], [3.0, 0.0], [2.0, 0.0]]), 0.1 * np.ones((2, 3))
    of_features = np.arange(2), np.array([1.5, 0]), np.ones(2)
    table = Effects(*of_features, random, traces, np.array([1, 1, 2])).table()
    assert table["feature"].tolist() == [0, 1, -1, -1, -1] and table["rank"].tolist()[:2] == [1, 2]
    assert table["effect"].tolist() == pytest.approx([1.5, 0, 0.1, 0.1, 0.1])
    # the means are 1 and 3 and 1 a trace: a resample lies between drawing one of them three times
    assert table.loc[0, "low"] == pytest.approx(1.0) and 2 < table.loc[0, "high"] <= 3.0
    assert table.loc[1, "low"] == table.loc[1, "high"] == 0


def test_nothing_to_measure_is_told(tiny_subject):
    none = DECISIONS.select(np.array([], dtype=np.int64))
    with pytest.raises(UserError, match="No feature differs between wordings at any decision"):
        measured(tiny_subject, coordinates(), features=range(0))
    with pytest.raises(UserError, match="No feature differs between wordings at any decision"):
        measured(tiny_subject, coordinates(), none)
    with pytest.raises(UserError, match="need a decision: take more documents"):
        effects.mechanism(tiny_subject, coordinates(), none, OTHER, {})


def test_gradient_attribution_is_distance_from_the_mean_times_the_slope(tiny_subject):
    corpus, sae = tiny.small_corpus(), tiny.signed_identity(tiny_subject.d_model)
    at = np.array([4, 13])
    decisions = replace(DECISIONS, corpus=corpus, positions=at, documents=corpus.document_of[at])
    means, expected = np.linspace(0, 0.2, 2 * tiny_subject.d_model), 0.0
    ours = effects.gradient_attribution(tiny_subject, sae, decisions, means, 64)
    for document, place in zip(decisions.documents, decisions.places.tolist(), strict=True):

        def odds(logits: torch.Tensor, place: int = place) -> torch.Tensor:
            return log_odds(logits[0, place], decisions)

        stream, slope = tiny_subject.gradient(document_tokens(corpus, document), odds)
        away = sae.encode(stream[0, place]).numpy() - means
        expected += away * (sae.W_dec @ slope[0, place]).numpy() / 2
    np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-5)
    assert np.abs(ours).max() > 0.02


def test_output_score_by_hand(tiny_subject):
    sae = tiny.signed_identity(tiny_subject.d_model)
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
    corpus = tiny.small_corpus()
    corpus.thinking[corpus.span(0)] = True
    prompts = effects.neutral_prompts(corpus, 3, 8)
    # document 0 thinks; of the other eleven the first, the middle and the last
    assert prompts == [corpus.document(i)[:8].tolist() for i in (1, 6, 11)]
    with pytest.raises(UserError, match="has 4 documents without thinking of more than 9 tokens"):
        effects.neutral_prompts(corpus, 5, 9)


def test_shares_that_must_be_all_or_nothing(tiny_subject):
    corpus = make_corpus(8)
    taken = tiny.make_decisions(corpus, [0, 1, 1, 3, 4, 6], [3, 2, 4, 4, 3, 4], [10, 11], [20])
    table = effects.patch(tiny_subject, taken, worded(corpus), batch_tokens=12)
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
    at_once = effects.patch(tiny_subject, taken, worded(corpus), 4096)["share"]
    assert at_once.tolist() == pytest.approx(table["share"].tolist(), abs=1e-3)
