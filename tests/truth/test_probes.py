"""The AUC is scikit-learn's, and what is chosen on one half is reported on the other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from tiny import WIDTH, signed_identity

from reasoning_features.errors import UserError
from reasoning_features.models.subject import Subject
from reasoning_features.text.corpus import Corpus
from reasoning_features.truth.decisions import Decisions
from reasoning_features.truth.probes import (
    Probed,
    auc_by_class,
    best_class,
    decodability,
    probe_decision,
    targets,
)

RNG = np.random.default_rng(0)


def test_auc_is_scikit_learns():
    activations = RNG.integers(0, 4, size=(60, 5)).astype(np.float32)  # with many ties
    classes = RNG.integers(0, 3, size=60)
    found = auc_by_class(activations, classes, 4)
    assert found.shape == (5, 4)
    for feature in range(5):
        for label in range(3):
            expected = roc_auc_score(classes == label, activations[:, feature])
            assert found[feature, label] == pytest.approx(expected)
    assert np.isnan(found[:, 3]).all()


def test_class_and_side_are_chosen_on_the_first_half():
    classes = np.tile([0, 1, 2], 40)
    half = np.arange(120) < 60
    activations = np.zeros((120, 3), dtype=np.float32)
    activations[:, 0] = classes == 1  # high at class 1
    activations[:, 1] = classes != 2  # low at class 2
    activations[:, 2] = np.where(half, classes == 0, classes != 0)  # the other half says the opposite
    best, high, auc = best_class(activations, classes, half, 3)
    assert best.tolist() == [1, 2, 0]
    assert high.tolist() == [True, False, True]
    assert auc.tolist() == pytest.approx([1, 1, 0])
    # class 2 only in the first half: it cannot be reported, so it is not chosen
    missing = np.where(half, classes, classes % 2)
    assert 2 not in best_class(activations, missing, half, 3)[0]


def decisions_of(corpus: Corpus) -> dict[str, Decisions]:
    documents = np.arange(corpus.n_documents)
    held = Decisions(
        name="persistence",
        corpus=corpus,
        positions=corpus.starts[:-1] + 2,
        documents=documents,
        styles=[""] * len(documents),
        towards=documents % 2 == 0,
        positive=np.array([10]),
        negative=np.array([20]),
    )
    return {"persistence": held}


def test_targets_by_hand(tiny_subject: Subject) -> None:
    text = "Try 3. Hm.\nNo."
    ids = tiny_subject.tokenizer.encode(text, add_special_tokens=False)
    pieces = [tiny_subject.tokenizer.decode([i]) for i in ids]
    begins = np.cumsum([0, *map(len, pieces)])[:-1]
    # one move a sentence
    moves = np.where(begins < text.index(" Hm"), 0, np.where(begins < text.index("No"), 1, 2))
    n = len(ids) + 1
    corpus = Corpus(
        name="one",
        tokens=np.array([0, *ids], dtype=np.int32),
        starts=np.array([0, n]),
        special=np.arange(n) == 0,
        thinking=np.arange(n) > 0,
        domains=["a"],
        moves=np.array([0, *moves], dtype=np.int8),
        move_names=("explore", "uncertain", "backtrack"),
    )
    found = targets(corpus, tiny_subject.tokenizer, {})
    assert found["current move"][1].tolist() == [-1, *moves]
    following = found["next move"][1]
    told = {int(at): int(following[at]) for at in np.flatnonzero(following >= 0)}
    assert list(told.values()) == [1, 2]
    assert ["".join(pieces[:at]) for at in told] == ["Try 3.", "Try 3. Hm.\n"]


def test_a_table_a_label(tiny_subject: Subject, tiny_corpus: Corpus) -> None:
    features = np.array([0, 3, WIDTH])
    table = decodability(
        tiny_subject,
        signed_identity(WIDTH),
        tiny_corpus,
        decisions_of(tiny_corpus),
        features,
        256,
        150,
        seed=0,
    )
    assert table is not None
    counts = table.groupby("label")["tokens"].first().to_dict()
    assert counts["current move"] == 150 and counts["persistence"] == tiny_corpus.n_documents
    assert table["feature"].tolist() == features.tolist() * (len(table) // 3)
    assert set(table.loc[table["label"] == "persistence", "best"]) <= {"go on", "give up"}
    told = table[table["label"] != "next move"]
    assert told["auc"].between(0, 1).all()
    # moves at random ends of sentences: no class is in both halves
    assert table.loc[table["label"] == "next move", "auc"].isna().all()
    # by hand: feature 3 is the positive part of coordinate 3
    held = decisions_of(tiny_corpus)["persistence"]
    first = np.random.default_rng(0).permutation(tiny_corpus.n_documents) < tiny_corpus.n_documents // 2
    active = []
    for document in range(tiny_corpus.n_documents):
        tokens = torch.from_numpy(tiny_corpus.document(document).astype(np.int64))
        stream = tiny_subject.residual(tokens[None])[0]
        active.append(max(float(stream[2, 3]), 0.0))
    row = table[(table["label"] == "persistence") & (table["feature"] == 3)].iloc[0]
    expected = roc_auc_score(held.towards[~first], np.array(active)[~first])
    assert row["auc"] == pytest.approx(expected) or row["auc"] == pytest.approx(1 - expected)


def test_without_labels_there_is_nothing_to_report(tiny_subject: Subject, tiny_corpus: Corpus) -> None:
    plain = replace(tiny_corpus, moves=None, move_names=())
    sae, features = signed_identity(WIDTH), np.arange(3)
    assert decodability(tiny_subject, sae, plain, {}, features, 256, 100, seed=0) is None


@pytest.fixture
def decisions():
    """600 decisions of 200 traces; one direction of twelve tells the side, with noise."""
    rng = np.random.default_rng(0)
    documents = np.repeat(np.arange(200), 3)
    towards = rng.random(600) < 0.5
    residual = rng.normal(size=(600, 12)).astype(np.float32)
    residual[:, 4] += 2 * towards
    return residual, towards, documents


def test_a_direction_that_tells_is_found_on_other_traces(decisions):
    residual, towards, documents = decisions
    probed = probe_decision(residual, towards, documents)
    assert len(np.unique(probed.documents)) == 80
    auc = probed.auc()
    assert auc.estimate == pytest.approx(roc_auc_score(probed.towards, probed.scores))
    assert auc.low > 0.8 and auc.n == 80


def test_shuffled_labels_and_noise_are_chance(decisions):
    residual, towards, documents = decisions
    control = probe_decision(residual, towards, documents, shuffled=True)
    noise = probe_decision(np.delete(residual, 4, axis=1), towards, documents)
    for probed in (noise, control):
        assert probed.auc().low < 0.55
    difference = probe_decision(residual, towards, documents).auc_less(noise)
    assert difference.low > 0.2
    assert (
        probe_decision(residual, towards, documents)
        .auc_less(probe_decision(residual, towards, documents))
        .estimate
        == 0
    )


def test_the_area_counts_ties_half_and_weights_as_copies():
    scores = np.array([1.0, 2.0, 2.0, 3.0])
    probed = Probed(scores, np.array([False, False, True, True]), np.arange(4))
    assert probed.auc(n_resamples=2).estimate == pytest.approx(roc_auc_score(probed.towards, scores))
    weights = np.array([1.0, 2.0, 3.0, 0.0])
    copies = np.repeat(np.arange(4), weights.astype(int))
    assert probed._weighted(weights) == pytest.approx(roc_auc_score(probed.towards[copies], scores[copies]))


def test_too_few_decisions():
    with pytest.raises(UserError, match="raise reasoning_documents"):
        probe_decision(np.zeros((4, 2), np.float32), np.array([True] * 4), np.arange(4))
