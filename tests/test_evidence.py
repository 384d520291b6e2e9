"""Evidence of features: sets by hand, columns against direct sums, gradients against differences."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from test_word_masks import Pieces, corpus_of
from tiny import signed_identity

from reasoning_features.errors import UserError
from reasoning_features.interpretation.logit_effects import logit_effects
from reasoning_features.models.subject import Subject
from reasoning_features.residual_stream.activations import collect, stream
from reasoning_features.scoring.feature_statistics import accumulate
from reasoning_features.scoring.reason_score import vocabulary_scores
from reasoning_features.text.corpus import Corpus
from reasoning_features.text.vocabulary import Lexicon
from reasoning_features.text.word_masks import token_sets, vocabulary_set, word_set
from reasoning_features.truth.attribution import gradient_attribution, neutral_prompts, output_scores
from reasoning_features.truth.decisions import Decisions, log_odds
from reasoning_features.truth.evidence import gather
from reasoning_features.truth.evidence_sets import before_only, label_sets, without_words

WINDOW = (2, 1)
VOCABULARIES = {"R": ("wait", "let me"), "random 0": ("a", "let me"), "slot 0": ("wait", "a")}


def small() -> Corpus:
    """Three kinds of documents, some of them long enough to open a prompt."""
    return corpus_of(
        *[["<s>", " a", " b", " wait", " a", ".", " let", " me", " b"]] * 4,
        *[["<s>", "wait", " a", " a", " b", " let", " me", ".", " b", " b"]] * 4,
        *[["<s>", " b", " b", " a", ".", " b", " a", " b", " a"]] * 4,
    )


def decided(corpus: Corpus, positions: list[int], towards: list[bool]) -> Decisions:
    at = np.array(positions)
    return Decisions(
        name="persistence",
        corpus=corpus,
        positions=at,
        documents=corpus.document_of[at],
        styles=[""] * len(at),
        towards=np.array(towards),
        positive=np.array([1, 2]),
        negative=np.array([3]),
    )


@pytest.fixture(scope="module")
def gathered(tiny_subject: Subject) -> pd.DataFrame:
    return table(tiny_subject, small(), {"persistence": decided(small(), [4, 13, 30], [True, False, True])})


def table(
    subject: Subject, corpus: Corpus, decisions: dict[str, Decisions], kept: Path | None = None
) -> pd.DataFrame:
    sae = signed_identity(subject.d_model)
    words = VOCABULARIES["R"]
    rest = (Pieces(), words, Lexicon(), VOCABULARIES, decisions, WINDOW, 0.7, 64)
    return gather(subject, sae, corpus, small(), *rest, kept)


def test_evidence_is_the_same_by_shards_that_are_kept(tiny_subject: Subject, gathered, tmp_path):
    decisions = {"persistence": decided(small(), [4, 13, 30], [True, False, True])}
    for _ in range(2):
        pd.testing.assert_frame_equal(table(tiny_subject, small(), decisions, tmp_path), gathered)
    assert len(list(tmp_path.glob("evidence-*/*.safetensors"))) == 1


def where(sets, name: str) -> list[int]:
    return np.flatnonzero(sets.mask(name)).tolist()


def test_before_only_and_masked_by_hand():
    corpus = corpus_of(["<s>", "a", " wait", " b", "."], [" a", " let", " me", " b"])
    given = corpus, Pieces(), ("wait", "let me"), WINDOW, Lexicon()
    before = before_only(*given)
    assert where(before, word_set("wait", (2, 0))) == [1]
    assert where(before, word_set("let me", (2, 0))) == [5]
    assert where(before, vocabulary_set("R", (2, 0))) == [1, 5]
    masked = without_words(*given)
    # the window is 2 before and 1 after; the words' own tokens 2, 6 and 7 are in no set at all
    assert where(masked, word_set("wait", WINDOW)) == [1, 3]
    assert where(masked, word_set("let me", WINDOW)) == [5, 8]
    assert where(masked, "all") == [1, 3, 4, 5, 8]


def test_scores_equal_those_of_direct_sums(tiny_subject: Subject, gathered: pd.DataFrame):
    corpus, sae = small(), signed_identity(tiny_subject.d_model)
    sets = token_sets(corpus, Pieces(), VOCABULARIES, [WINDOW])
    statistics = accumulate(stream(tiny_subject, corpus, 64), sae, sets)
    for name, words in VOCABULARIES.items():
        direct = vocabulary_scores(statistics, name, words, WINDOW, 0.7)
        column = "score:reason score" if name == "R" else f"score:{name}"
        np.testing.assert_allclose(gathered[column], direct, rtol=1e-5, atol=1e-7)
    batch = collect(stream(tiny_subject, corpus, 64))
    features = sae.encode(batch.residual).double().numpy()
    for column, values in (
        ("mean", features.mean(0)),
        ("maximum", features.max(0)),
        ("density", (features > 0).mean(0)),
        ("standard deviation", features.std(0)),
    ):
        np.testing.assert_allclose(gathered[column], values, rtol=1e-4, atol=1e-5)
    at = {int(position): row for row, position in enumerate(batch.positions)}
    positive = features[[at[4], at[30]]].mean(0)
    np.testing.assert_allclose(gathered["at persistence:positive"], positive, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(gathered["at persistence:negative"], features[at[13]], rtol=1e-4, atol=1e-6)


def test_labels_are_optional(tiny_subject: Subject, gathered: pd.DataFrame):
    plain = table(tiny_subject, small(), {})
    missing = set(gathered) - set(plain)
    assert missing == {
        "at persistence:positive",
        "at persistence:negative",
        "score:gradient persistence",
        "score:output",  # it only serves to be judged by effects on decisions
    }
    pd.testing.assert_frame_equal(plain, gathered[list(plain)])
    assert plain["score:masked"].notna().all() and not any(name.startswith("mean:") for name in plain)


def test_sets_of_moves_by_hand():
    corpus = corpus_of(["<s>", " a", ".", " b", " b", ".", " a"])
    moves = np.array([0, 1, 1, 2, 2, 2, 1], dtype=np.int8)
    labelled = replace(corpus, moves=moves, move_names=("prompt", "explore", "verify"))
    sets = label_sets(labelled, Pieces(), {})
    # nothing precedes the first sentence; the token before the sentence of verifying is 2
    found = {name: np.flatnonzero(mask).tolist() for name, mask in sets.items()}
    assert found == {
        "mean:explore": [1, 2, 6],
        "before:explore": [5],
        "mean:verify": [3, 4, 5],
        "before:verify": [2],
    }
    with pytest.raises(UserError, match="decisions of persistence are from the corpus"):
        label_sets(labelled, Pieces(), {"persistence": decided(small(), [4], [True])})


def test_gradient_attribution_is_the_slope_of_ablation(tiny_subject: Subject):
    corpus, sae = small(), signed_identity(tiny_subject.d_model)
    decisions = decided(corpus, [4, 13], [True, False])
    means = np.full(2 * tiny_subject.d_model, 0.1)
    ours = gradient_attribution(tiny_subject, sae, decisions, means, 64)
    total, step = np.zeros(len(means)), 1e-2
    for position, document in zip(decisions.positions, decisions.documents, strict=True):
        place = int(position - corpus.starts[document])
        tokens = torch.from_numpy(corpus.document(document).astype(np.int64))[None]
        stream_ = tiny_subject.residual(tokens)
        moves = (sae.encode(stream_[0, place][None])[0] - torch.from_numpy(means).float())[
            :, None
        ] * sae.W_dec
        for i, move in enumerate(moves):
            found = []
            for sign in (step, -step):
                edited = stream_.clone()
                edited[0, place] += sign * move
                logits = tiny_subject.logits_with(tokens, lambda _, edited=edited: edited)
                found.append(float(log_odds(logits[0, place], decisions)))
            total[i] += (found[0] - found[1]) / (2 * step)
    np.testing.assert_allclose(ours, total / 2, rtol=0.05, atol=2e-3)
    assert np.abs(ours).max() > 0.02


def test_output_score_by_hand(tiny_subject: Subject):
    sae = signed_identity(tiny_subject.d_model)
    prompt, features = [0, 5, 9], np.array([3, 40])
    ours = output_scores(tiny_subject, sae, [prompt], 6, features)
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
    corpus = small()
    corpus.thinking[corpus.span(0)] = True
    prompts = neutral_prompts(corpus, 3, 8)
    # document 0 thinks; of the other eleven the first, the middle and the last
    assert prompts == [corpus.document(i)[:8].tolist() for i in (1, 6, 11)]
    with pytest.raises(UserError, match="has 4 documents without thinking of more than 9 tokens"):
        neutral_prompts(corpus, 5, 9)
