"""Probes find what is there, find nothing where labels are shuffled, and never see a test document."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from tiny import LAYERS, corpus_of, make_corpus

from reasoning_features.errors import UserError
from reasoning_features.residual_stream import probes
from reasoning_features.residual_stream.probes import EMBEDDINGS


def test_a_probe_finds_clusters_and_its_control_does_not():
    """Three well separated clusters in 8 dimensions, 20 tokens in each of 40 documents."""
    rng = np.random.default_rng(0)
    targets, documents = rng.integers(0, 3, size=800), np.repeat(np.arange(40), 20)
    centres = 3 * rng.normal(size=(3, 8))
    activations = (centres[targets] + rng.normal(size=(800, 8))).astype(np.float32)
    true = probes.probe(activations, targets, documents)
    assert true.estimate > 0.95 and true.low <= true.estimate <= true.high
    assert true.n == 16  # 40% of 40 documents
    shuffled = probes.probe(activations, targets, documents, shuffled=True)
    assert shuffled.estimate < 0.6 and shuffled.high < true.low
    hidden, nonsense = targets.copy(), activations.copy()
    hidden[::2], nonsense[::2] = -1, 1e6  # would wreck the scaling if it were seen
    assert probes.probe(nonsense, hidden, documents).estimate > 0.95
    with pytest.raises(UserError, match="too few documents"):
        probes.probe(activations[:20], targets[:20], documents[:20])


def test_a_probe_does_not_see_test_documents():
    """Labels that depend on the document alone cannot be decoded in other documents."""
    rng = np.random.default_rng(0)
    documents = np.repeat(np.arange(40), 20)
    activations = rng.normal(size=(40, 30)).astype(np.float32)[documents]  # one point a document
    targets = rng.integers(0, 2, size=40)[documents]
    assert probes.probe(activations, targets, documents).estimate < 0.75


def test_balanced_accuracy_and_the_area_by_hand():
    # class 0: 3 of 4 right, class 1: 0 of 1, class 2: 1 of 1; mean (0.75 + 0 + 1) / 3
    right = np.array([1, 1, 1, 0, 0, 1], dtype=bool)
    targets = np.array([0, 0, 0, 0, 1, 2])
    found = probes.balanced_accuracy(right, targets, np.array([0, 0, 1, 1, 2, 2]))
    assert found.estimate == pytest.approx(1.75 / 3) and found.n == 3
    # the area counts ties half, and weights as copies
    scores, towards = np.array([1.0, 2.0, 2.0, 3.0]), np.array([False, False, True, True])
    weights = np.array([1.0, 2.0, 3.0, 0.0])
    expected = roc_auc_score(towards, scores, sample_weight=weights)
    assert probes.weighted_auc(scores, towards, weights) == pytest.approx(expected)


def test_move_targets_by_hand():
    # two documents of 3 and 2 tokens, each beginning with a special token
    moves, names = np.array([0, 1, 2, 0, 1], dtype=np.int8), ("prompt", "explore", "verify")
    corpus = replace(corpus_of(["<s>", " a", " b"], ["<s>", " a"]), moves=moves, move_names=names)
    assert probes.move_targets(corpus).tolist() == [-1, 1, 2, -1, 1]
    assert probes.move_targets(corpus, offset=1).tolist() == [-1, 2, -1, -1, -1]
    with pytest.raises(UserError, match="'example' has no move labels"):
        probes.move_targets(replace(corpus, moves=None, move_names=()))


def test_a_tokens_parity_is_in_the_embeddings(tiny_subject):
    corpus = make_corpus(40)
    corpus = replace(corpus, moves=(corpus.tokens % 2).astype(np.int8))
    probed = probes.probe_layers(tiny_subject, corpus, 200)
    assert probed["layer"].tolist() == sorted([-1, *range(LAYERS)] * 2) * 2
    assert probed["chance"].unique().tolist() == [0.5]
    accuracy = probed.set_index(["target", "layer", "labels"])["balanced accuracy"]
    own = accuracy["own move"][EMBEDDINGS]
    assert own["true"] > 0.55 > own["shuffled"]
    assert accuracy["next token's move"][EMBEDDINGS]["true"] < own["true"]


def test_a_direction_that_tells_is_found_on_other_traces():
    """600 decisions of 200 traces; one direction of twelve tells the side, with noise."""
    rng = np.random.default_rng(0)
    documents = np.repeat(np.arange(200), 3)
    towards = rng.random(600) < 0.5
    residual = rng.normal(size=(600, 12)).astype(np.float32)
    residual[:, 4] += 2 * towards
    auc = probes.probe_decision(residual, towards, documents)
    assert auc.low > 0.8 and auc.n == 80
    assert probes.probe_decision(residual, towards, documents, shuffled=True).low < 0.55
    with pytest.raises(UserError, match="raise reasoning_documents"):
        probes.probe_decision(residual[:4], np.array([True] * 4), np.arange(4))
