"""Stability, grid and nulls of a selection, on small statistics worked by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from reasoning_features.scoring.feature_statistics import FeatureStatistics
from reasoning_features.scoring.reason_score import vocabulary_scores
from reasoning_features.scoring.selection import (
    Hyperparameters,
    chosen,
    document_blocks,
    grid_table,
    half_weights,
    hyperparameter_grid,
    identity_table,
    intervals,
    null_ranks,
    null_table,
    overlap,
    resampled_comparison,
    resampled_overlap,
    score_all,
    score_under,
    top_features,
    top_mean,
)
from reasoning_features.text.corpus import Corpus
from reasoning_features.text.words import ALL, vocabulary_set, word_set

WINDOW = (1, 1)
VOCABULARIES = {"R": ("a", "b"), "slot 0": ("a", "c"), "slot 1": ("c", "b"), "twins": ("c", "d")}
WORDS = "abcd"


def statistics(blocks: int = 12, features: int = 9, seed: int = 0) -> FeatureStatistics:
    """Random sums in which a union holds at least as much as its words, and the whole more."""
    rng = np.random.default_rng(seed)
    words = rng.gamma(1.0, size=(blocks, 4, features))
    unions = [words[:, [WORDS.index(w) for w in v]].sum(axis=1) for v in VOCABULARIES.values()]
    every = words.sum(axis=1) + rng.gamma(2.0, size=(blocks, features))
    sums = np.stack([every, *words.transpose(1, 0, 2), *unions], axis=1)
    names = (ALL, *(word_set(w, WINDOW) for w in WORDS), *(vocabulary_set(v, WINDOW) for v in VOCABULARIES))
    counts = np.tile(np.array([60.0, 5, 5, 5, 5, 10, 10, 10, 10]), (blocks, 1))
    return FeatureStatistics(names, counts, sums)


def test_blocks_and_halves():
    # documents of 2, 1 and 3 tokens dealt into two blocks: 0 1 0
    zeros = np.zeros(6, bool)
    corpus = Corpus("c", np.zeros(6, np.int32), np.array([0, 2, 3, 6]), zeros, zeros, ["x"] * 3)
    assert document_blocks(corpus, 2).tolist() == [0, 0, 1, 0, 0, 0]
    assert half_weights(5).tolist() == [[1, 0, 1, 0, 1], [0, 1, 0, 1, 0]]


def test_top_mean_chosen_and_overlap():
    scores = np.array([[4.0, 1, 3, 3], [0, 0, 5, 1]])
    assert top_mean(scores, 2).tolist() == [3.5, 3]
    member = chosen(scores, 2)
    # ties (3, 3) go to the lower index
    assert member.tolist() == [[True, False, True, False], [False, False, True, True]]
    # {0, 2} and {2, 3} share one of three
    assert overlap(member[0], member[1]) == pytest.approx(1 / 3)
    assert overlap(member, member).tolist() == [1, 1]


def test_top_features_are_the_best_with_intervals_around_them():
    data = statistics()
    table = top_features(data, "ab", WINDOW, 0.7, k=3, resamples=200, seed=0)
    scores = vocabulary_scores(data.total(), "R", "ab", WINDOW, 0.7)
    assert table["feature"].tolist() == np.argsort(-scores)[:3].tolist()
    assert table["score"].is_monotonic_decreasing
    assert (table["low"] <= table["score"]).all() and (table["score"] <= table["high"]).all()
    assert set(table["main_word"]) <= {"a", "b"} and table["chosen_again"].between(0, 1).all()


def test_grid():
    data = statistics().total()
    grid = hyperparameter_grid([0.0, 0.7], [WINDOW], released_alpha=0.7)
    assert grid == [
        Hyperparameters(0.0, WINDOW),
        Hyperparameters(0.7, WINDOW),
        Hyperparameters(0.7, (1, 2), "released"),
    ]
    # the released variant at our window: norms that are all equal change nothing
    same = [Hyperparameters(0.7, WINDOW), Hyperparameters(0.7, WINDOW, "released")]
    scores = [score_under(data, np.full(9, 2.0), "ab", way) for way in same]
    np.testing.assert_allclose(scores[0], scores[1])
    table = grid_table(same, scores, scores[0], [1, 9])
    assert table["overlap"].tolist() == [1, 1, 1, 1]
    assert table.loc[table["k"] == 9, "chance"].tolist() == pytest.approx([1, 1])
    assert table["chance"].iloc[0] == pytest.approx(1 / 9)  # one of nine, twice the same


def test_null_table_and_ranks():
    data = statistics()
    whole = score_all(data.total(), VOCABULARIES, WINDOW, 0.7)
    halves = score_all(data.weighted(half_weights(12)), VOCABULARIES, WINDOW, 0.7)
    table = null_table(whole, halves, VOCABULARIES, k=3).set_index("vocabulary")
    assert table.loc["R", "overlap"] == 1
    assert table["words_of_R"].to_dict() == {"R": 2, "slot 0": 1, "slot 1": 1, "twins": 0}
    assert table.loc["twins", "score_mass"] == pytest.approx(np.sort(whole["twins"])[-3:].mean())
    ranks = null_ranks(table.reset_index(), ["score_mass"])
    assert ranks["null"].tolist() == ["slot"] and ranks["n"].tolist() == [2]
    above = (table.loc[["slot 0", "slot 1"], "score_mass"] >= table.loc["R", "score_mass"]).sum()
    assert ranks.loc[0, "p_value"] == pytest.approx((1 + above) / 3)


def test_stability_is_the_overlap_of_the_two_halves():
    one = np.array([[3.0, 2, 1, 0], [3, 0, 2, 0]])  # tops of two: {0, 1} and {0, 2}: 1/3
    table = null_table({"R": one[0]}, {"R": one}, {"R": ("a",)}, k=2)
    assert table.loc[0, "overlap_halves"] == pytest.approx(1 / 3)


def test_resampled_comparison_begins_with_the_data():
    data = statistics()
    vocabularies = {name: words for name, words in VOCABULARIES.items() if name != "twins"}
    drawn = resampled_comparison(data, vocabularies, WINDOW, 0.7, k=3, resamples=50, seed=1)
    whole = score_all(data.total(), vocabularies, WINDOW, 0.7)
    assert drawn.loc[0, "score_mass"] == pytest.approx(top_mean(whole["R"], 3))
    assert len(drawn) == 51
    found = intervals(drawn, ["score_mass", "overlap"], blocks=12)
    assert found["statistic"].tolist() == ["score_mass", "overlap"] and (found["n"] == 12).all()
    assert (found["low"] <= found["high"]).all()


def test_a_planted_vocabulary_beats_its_slots():
    # features 0 and 1 are active around a and b alone: R's score mass exceeds the mixtures'
    data = statistics()
    sums = data.sums.copy()
    for name in (word_set("a", WINDOW), word_set("b", WINDOW)):
        sums[:, data.names.index(name), :2] += 50
    for name, gain in (("R", 100), ("slot 0", 50), ("slot 1", 50)):
        sums[:, data.names.index(vocabulary_set(name, WINDOW)), :2] += gain
    sums[:, 0, :2] += 100
    planted = FeatureStatistics(data.names, data.counts, sums)
    vocabularies = {name: words for name, words in VOCABULARIES.items() if name != "twins"}
    drawn = resampled_comparison(planted, vocabularies, WINDOW, 0.7, k=2, resamples=20, seed=0)
    assert (drawn["score_mass"] > drawn["null_mean"]).all()
    assert isinstance(drawn, pd.DataFrame)


def test_overlap_of_dials_on_resamples():
    data = statistics()
    same = [Hyperparameters(0.7, WINDOW), Hyperparameters(0.7, WINDOW, "released")]
    drawn = resampled_overlap(data, np.ones(9), "ab", same, same[0], k=3, resamples=5, seed=0)
    assert drawn["overlap"].tolist() == [1] * 6


def test_identity_table():
    # ranks 1 2 3 4 against 2 1 4 3: ρ = 1 − 6·4/(4·15) = 0.6; the dead fifth feature is left out
    score, other = np.array([1.0, 2, 3, 4, 0]), np.array([2.0, 1, 4, 3, 9])
    live = np.array([True] * 4 + [False])
    table = identity_table(score, {"token": other, "itself": score}, live, k=2)
    assert table["spearman"].tolist() == pytest.approx([0.6, 1])
    # tops {3, 2} and {4, 2}: one of three
    assert table["overlap"].tolist() == pytest.approx([1 / 3, 1])
