"""Stability, grid and nulls of a selection, on small statistics worked by hand; their figures."""

import numpy as np
import pandas as pd
import pytest

from reasoning_features.scoring import selection
from reasoning_features.scoring.feature_statistics import FeatureStatistics
from reasoning_features.scoring.reason_score import vocabulary_scores
from reasoning_features.scoring.selection import Hyperparameters
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


def test_top_features_are_the_best_with_intervals_around_them():
    data = statistics()
    table = selection.top_features(data, "ab", WINDOW, 0.7, k=3, resamples=200, seed=0)
    scores = vocabulary_scores(data.total(), "R", "ab", WINDOW, 0.7)
    assert table["feature"].tolist() == np.argsort(-scores)[:3].tolist()
    assert table["score"].is_monotonic_decreasing
    assert (table["low"] <= table["score"]).all() and (table["score"] <= table["high"]).all()
    assert set(table["main_word"]) <= {"a", "b"} and table["chosen_again"].between(0, 1).all()


def test_grid():
    data = statistics().total()
    # the released variant at our window: norms that are all equal change nothing
    same = [Hyperparameters(0.7, WINDOW), Hyperparameters(0.7, WINDOW, "released")]
    scores = [way.score(data, np.full(9, 2.0), "ab") for way in same]
    np.testing.assert_allclose(scores[0], scores[1])
    table = selection.grid_table(same, scores, scores[0], [1, 9])
    assert table["overlap"].tolist() == [1, 1, 1, 1]
    assert table.loc[table["k"] == 9, "chance"].tolist() == pytest.approx([1, 1])
    assert table["chance"].iloc[0] == pytest.approx(1 / 9)  # one of nine, twice the same
    drawn = selection.resampled_overlap(
        statistics(), np.ones(9), "ab", same, same[0], k=3, resamples=5, seed=0
    )
    assert drawn.to_dict("list") == {"α = 0.7, window 1-1, released": [1] * 6}


def test_null_table_and_ranks():
    data = statistics()
    whole = selection.score_all(data.total(), VOCABULARIES, WINDOW, 0.7)
    table = selection.null_table(data, VOCABULARIES, WINDOW, 0.7, k=3).set_index("vocabulary")
    assert table["words_of_R"].to_dict() == {"R": 2, "slot 0": 1, "slot 1": 1, "twins": 0}
    assert table.loc["twins", "score_mass"] == pytest.approx(np.sort(whole["twins"])[-3:].mean())
    # R is its own reference: it has no overlap with itself, and no rank by it
    assert np.isnan(table.loc["R", "overlap_halves"]) and table.drop("R")["overlap_halves"].notna().all()
    ranks = selection.null_ranks(table.reset_index(), ["score_mass", "overlap_halves"])
    assert ranks["null"].tolist() == ["slot"] and ranks["n"].tolist() == [2]
    above = (table.loc[["slot 0", "slot 1"], "score_mass"] >= table.loc["R", "score_mass"]).sum()
    assert ranks.loc[0, "p_value"] == pytest.approx((1 + above) / 3)


def test_resampled_comparison_begins_with_the_data():
    data = statistics()
    drawn = selection.resampled_comparison(data, VOCABULARIES, WINDOW, 0.7, k=3, resamples=50, seed=1)
    whole = selection.score_all(data.total(), VOCABULARIES, WINDOW, 0.7)
    mass = {name: selection.top_mean(scores, 3) for name, scores in whole.items()}
    assert drawn.loc[0, "score_mass"] == pytest.approx(mass["R"])
    assert drawn.loc[0, "above_twins"] == pytest.approx(mass["R"] - mass["twins"])
    assert drawn.loc[0, "null_mean"] == pytest.approx((mass["slot 0"] + mass["slot 1"]) / 2)
    assert len(drawn) == 51
    found = selection.intervals(drawn, ["score_mass", "overlap"], blocks=12)
    assert found["statistic"].tolist() == ["score_mass", "overlap"] and (found["n"] == 12).all()
    assert (found["low"] <= found["high"]).all()


def test_what_is_chosen_on_half_of_the_documents_is_judged_on_the_other_half():
    data = statistics()
    halves = [FeatureStatistics(data.names, data.counts[i::2], data.sums[i::2]).total() for i in (0, 1)]
    even, odd = (vocabulary_scores(half, "R", "ab", WINDOW, 0.7) for half in halves)
    drawn = selection.held_out_overlap(data, {"odd": halves[1]}, "ab", WINDOW, 0.7, 3, resamples=40, seed=0)
    assert len(drawn) == 41 and drawn.loc[0, "odd"] == 1
    assert drawn.loc[0, "R"] == selection.overlap(selection.chosen(even, 3), selection.chosen(odd, 3))
    assert drawn["odd"].min() < 1  # other documents, another choice


def test_identity_table():
    # ranks 1 2 3 4 against 2 1 4 3: ρ = 1 − 6·4/(4·15) = 0.6; the dead fifth feature is left out
    score, other = np.array([1.0, 2, 3, 4, 0]), np.array([2.0, 1, 4, 3, 9])
    live = np.array([True] * 4 + [False])
    held_out = pd.DataFrame({"R": [0.9, 0.8, 1.0], "token": [0.5, 0.3, 0.7], "itself": [0.9, 0.8, 1.0]})
    table = selection.identity_table(score, {"token": other, "itself": score}, live, held_out, blocks=6)
    assert table["spearman"].tolist() == pytest.approx([0.6, 1])
    assert table["falls short by"].tolist() == pytest.approx([0.4, 0])
    assert table["low"].tolist() == pytest.approx([0.305, 0])  # of 0.5 and 0.3, and their 2.5% quantile


def test_figures_draw_every_series():
    rng = np.random.default_rng(0)
    scores = {"R": np.array([0.1, 0.3, 0.2]), "random 0": np.array([0.0, 0.1, 0.2]), "random 1": np.zeros(3)}
    _, data = selection.draw_scores(scores, "one", k=1, quantile=0.9)
    assert data["R"].tolist() == [0.3, 0.2, 0.1] and set(data["variant"]) == {"one"}
    # best scores of the two: 0.2 and 0; their 2.5% and 97.5% quantiles
    assert data.loc[0, ["random low", "random high"]].tolist() == pytest.approx([0.005, 0.195])

    kinds = {"vocabulary": ["R", "random 0", "random 1"], "kind": ["R", "random", "random"], "words_of_R": 0}
    nulls = pd.DataFrame(kinds).assign(score_mass=[0.3, 0.1, 0.2])
    _, data = selection.draw_nulls({"one": nulls, "other": nulls}, "score_mass", "mean score")
    assert data["score_mass"].tolist() == [0.3, 0.1, 0.2] * 2 and data["variant"].nunique() == 2

    columns = ["score", "token", "token and the one before", "f1"]
    frame = pd.DataFrame(rng.random((40, 4)), columns=columns)
    fig, data = selection.draw_identity(frame.assign(chosen=frame["score"] > 0.8), "one", k=5)
    assert len(data) == 40 and len(fig.axes[0].collections) == 2
