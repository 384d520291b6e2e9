"""Probes of a decision: what is there is found on traces never seen, what is not is not."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from reasoning_features.errors import UserError
from reasoning_features.truth.decision_probes import Probed, probe_decision


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
