"""ReasonScore worked by hand and against loops."""

import math

import numpy as np
import pytest
import torch
from tiny import Positive, reversed_batches

from reasoning_features.errors import UserError
from reasoning_features.scoring import reason_score as scores
from reasoning_features.scoring.feature_statistics import SetSums, accumulate, one_pass
from reasoning_features.scoring.selection import Hyperparameters
from reasoning_features.text.words import ALL, TokenSets, vocabulary_set, word_set

WINDOW = (0, 1)
NAMES = (ALL, word_set("a", WINDOW), word_set("b", WINDOW), vocabulary_set("R", WINDOW))
BY_HAND = np.array([[2, 3, 0], [2, 0, 1], [2, 0, 2], [0, 1, 3], [0, 1, 0], [0, 1, 0]], dtype=float)
BY_HAND_SETS = np.array([[1] * 6, [1, 1, 0, 0, 0, 0], [0, 1, 1, 0, 0, 0], [1, 1, 1, 0, 0, 0]], bool)


def named(masks: np.ndarray) -> TokenSets:
    return TokenSets.of(dict(zip(NAMES, masks, strict=True)))


def test_three_features_by_hand():
    # Six tokens. D_a = {0, 1}, D_b = {1, 2}, so D_R = {0, 1, 2} and D_¬R = {3, 4, 5}.
    # feature 0: 2 2 2 | 0 0 0   μ_R = 2, μ_¬R = 0, μ_a = 2,   μ_b = 2    p = (1/2, 1/2), H = 1
    # feature 1: 3 0 0 | 1 1 1   μ_R = 1, μ_¬R = 1, μ_a = 3/2, μ_b = 0    p = (1, 0),     H = 0
    # feature 2: 0 1 2 | 3 0 0   μ_R = 1, μ_¬R = 1, μ_a = 1/2, μ_b = 3/2  p = (1/4, 3/4),
    #            H = [1/4 log 4 + 3/4 log(4/3)] / log 2 = 2 − 3/4 log₂ 3 = 0.811278
    # Σ μ_R = 4: shares 1/2, 1/4, 1/4.  Σ μ_¬R = 2: shares 0, 1/2, 1/2.
    # Equation 3: 1/2, −1/4, −1/4.
    # Equation 5 with α = 0.7: 1/2 · 1 − 0, 1/4 · 0 − 1/2, 1/4 · H^0.7 − 1/2.
    statistics = accumulate(reversed_batches(BY_HAND, 2, 5), Positive(3), named(BY_HAND_SETS))
    assert statistics.counts.tolist() == [6, 2, 2, 3]
    inside, outside, by_word = scores.set_means(statistics, "R", ["a", "b"], WINDOW)
    assert inside.tolist() == [2, 1, 1] and outside.tolist() == [0, 1, 1]
    assert by_word.tolist() == [[2, 1.5, 0.5], [2, 0, 1.5]]
    h = 2 - 0.75 * math.log2(3)
    assert scores.entropy(by_word) == pytest.approx([1, 0, h])
    expected = [0.5, -0.5, 0.25 * h**0.7 - 0.5]
    assert scores.vocabulary_scores(statistics, "R", ["a", "b"], WINDOW, 0.7) == pytest.approx(expected)
    assert scores.reason_score(inside, outside, by_word, 0) == pytest.approx([0.5, -0.25, -0.25])


def test_released_code_by_hand():
    # The same with decoder norms 1, 2, 4: μ_R = 2, 2, 4 (shares 1/4, 1/4, 1/2), μ_¬R = 0, 2, 4 (0, 1/3, 2/3).
    # H does not change: a feature's norm cancels in p.
    sae = Positive(3, torch.diag(torch.tensor([1.0, 2.0, 4.0])))
    statistics = accumulate(reversed_batches(BY_HAND), sae, named(BY_HAND_SETS))
    h = 2 - 0.75 * math.log2(3)
    expected = [0.25, -1 / 3, 0.5 * h**0.7 - 2 / 3]
    way = Hyperparameters(0.7, WINDOW, "released")
    assert way.score(statistics, scores.decoder_norms(sae), ["a", "b"]) == pytest.approx(expected)


def test_resampled_some_at_a_time(monkeypatch):
    rng = np.random.default_rng(3)
    activations, masks = np.abs(rng.normal(size=(60, 6))), rng.random((4, 60)) < 0.4
    masks[3] = masks[1] | masks[2]
    sums = SetSums(named(masks), np.repeat(np.arange(6), 10), 6)
    one_pass(reversed_batches(activations), Positive(6), [sums])
    weights = rng.integers(1, 4, size=(8, 6)).astype(float)
    given = "R", ["a", "b"], WINDOW, 0.7
    direct = scores.vocabulary_scores(sums.result().weighted(weights), *given)
    three_resamples = 4 * 3 * 24  # of four sets of six features
    monkeypatch.setattr("reasoning_features.scoring.reason_score.ELEMENTS", three_resamples)
    np.testing.assert_allclose(scores.resampled_scores(sums.result(), *given, weights), direct, rtol=1e-12)


def test_entropy_and_score_where_little_is_active():
    # H := 0 where a feature fires on no word; feature 1 never fires, feature 2 only outside
    inside, outside = np.array([1.0, 0.0, 0.0]), np.array([0.0, 0.0, 1.0])
    by_word = np.array([[1.0, 0, 0], [1.0, 0, 0]])
    assert scores.entropy(by_word).tolist() == [1, 0, 0]
    assert scores.reason_score(inside, outside, by_word, 0.7).tolist() == [1, 0, -1]
    zero = np.zeros(3)
    assert scores.reason_score(zero, zero, np.zeros((2, 3)), 0.7).tolist() == [0, 0, 0]
    # of one word there is nothing to spread over
    assert scores.entropy(np.array([[2.0, 0.0]])).tolist() == [1, 1]


@pytest.mark.filterwarnings("ignore:divide by zero")
def test_what_is_not_finite_has_no_score_and_is_not_chosen():
    words = np.array([[1.0, 0.0], [1.0, 1.0]])
    for means in ((np.array([1, np.nan]), np.ones(2), words), (np.ones(2), np.array([1, np.inf]), words)):
        with pytest.raises(UserError, match=r"The mean activation of a feature is not finite .*\[1\]"):
            scores.reason_score(*means, 0.7)
    with pytest.raises(UserError, match=r"ReasonScore of a feature is not finite .*\[1\]\): give an `alpha`"):
        scores.reason_score(np.ones(2), np.ones(2), words, -1.0)
    with pytest.raises(UserError, match=r"The score of a feature is not finite \(first at \[1\]\)"):
        scores.select(np.array([0.5, np.nan, 1.0]), k=1)


def test_select():
    values = np.array([0.1, 0.9, 0.5, 0.9, -1.0])
    assert scores.select(values, k=3).tolist() == [1, 3, 2]
    # the 0.5 quantile of five values is their median 0.5; two lie above
    assert scores.select(values, quantile=0.5).tolist() == [1, 3]
    with pytest.raises(UserError, match="there are 5"):
        scores.select(values, k=6)
    # 65,536 · 0.003 = 196.6: the paper's text rounds to 200
    assert len(scores.select(np.random.default_rng(0).random(65536), quantile=0.997)) == 197


def test_empty_sets():
    activations = np.ones((6, 3))
    masks = np.array([[1] * 6, [0] * 6, [1, 1, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0]], bool)
    statistics = accumulate(reversed_batches(activations), Positive(3), named(masks))
    with pytest.raises(UserError, match="'a' never occurs"):
        scores.vocabulary_scores(statistics, "R", ["a", "b"], WINDOW, 0.7)
    masks[1] = masks[3] = True
    statistics = accumulate(reversed_batches(activations), Positive(3), named(masks))
    with pytest.raises(UserError, match="covers every token"):
        scores.vocabulary_scores(statistics, "R", ["a", "b"], WINDOW, 0.7)
