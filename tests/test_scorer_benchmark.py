"""The benchmark of scorers: hand-computed metrics, a perfect score, noise, and what is refused."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score

from reasoning_features.errors import UserError
from reasoning_features.truth.scorer_benchmark import (
    CEILING,
    average_precision,
    effect_itself,
    evaluate_all,
    evaluate_scorer,
    metrics,
    null_band,
    rank_correlation,
)
from reasoning_features.truth.scorers import Scorer, builtin, column, mean_difference
from reasoning_features.truth.stored_benchmarks import Benchmark, Truth


def benchmark(
    effect: np.ndarray, threshold: float, noise: float = 0.0, dead: int = 0, traces: int = 40
) -> Benchmark:
    """Effects as they are ``[f]``, the same in every trace but for noise; ``dead`` features come first."""
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 4, traces).astype(float)
    sums = -(effect + noise * rng.standard_normal((traces, len(effect)))) * counts[:, None]
    truth = Truth(
        features=np.arange(dead, dead + len(effect)),
        effect=-sums.sum(0) / counts.sum(),
        sums=sums,
        counts=counts,
        threshold=np.full(len(effect), threshold),
    )
    evidence = pd.DataFrame({"feature": np.arange(dead + len(effect))})
    return Benchmark("coupled-0", 1.0, 0, "relu", 0, evidence, {"persistence": truth})


FIVE = np.array([0.5, -0.4, 0.1, 0.0, 0.02])
# passing 0.3: features 0 and 1. Ranked by this score: 2, 0, 4, 1, 3
SCORE = np.array([4.0, 2.0, 5.0, 1.0, 3.0])


def test_five_features_by_hand():
    table = evaluate_scorer(lambda evidence: SCORE, [benchmark(FIVE, 0.3)]).set_index("metric")
    # the true ones are met at ranks 2 and 4: (1/2 + 2/4) / 2
    assert table.loc["average precision", "estimate"] == pytest.approx(0.5)
    assert table.loc["average precision", "chance"] == pytest.approx(2 / 5)
    # fewer than 10 positives: no precision at 10; all features are among the top 10
    assert "precision at 10" not in table.index
    assert table.loc["share of effect, top 10", "estimate"] == pytest.approx(1)
    assert (table["positives"] == 2).all() and (table["live"] == 5).all() and (table["traces"] == 40).all()
    # without noise every resample gives the same
    np.testing.assert_allclose(table["low"], table["high"])


def test_share_of_effect_by_hand(monkeypatch):
    monkeypatch.setattr("reasoning_features.truth.scorer_benchmark.TOP", (1, 2))
    found = metrics(SCORE, FIVE[None], np.full(5, 0.3), signed=False)
    assert found["share of effect, top 1"][0] == pytest.approx(0.1 / 1.02)
    assert found["share of effect, top 2"][0] == pytest.approx(0.6 / 1.02)
    assert found["precision at 2"][0] == 0.5


def test_signed_scores_rank_by_size():
    def score(evidence):
        return FIVE  # the signed effect itself

    for signed, precision in ((True, 1.0), (False, (1 + 2 / 5) / 2)):
        table = evaluate_scorer(score, [benchmark(FIVE, 0.3)], signed=signed).set_index("metric")
        # read as one-sided, the feature of effect −0.4 comes last
        assert table.loc["average precision", "estimate"] == pytest.approx(precision)
        assert table.loc["rank correlation", "estimate"] == pytest.approx(1)


def test_metrics_equal_sklearn_and_scipy_with_ties():
    rng = np.random.default_rng(1)
    score = rng.integers(0, 6, 60).astype(float)
    effects = rng.standard_normal((7, 60))
    true = effects > 0.8
    expected = [average_precision_score(row, score) for row in true]
    np.testing.assert_allclose(average_precision(score, true), expected)
    expected = [spearmanr(score, row).statistic for row in effects]
    np.testing.assert_allclose(rank_correlation(score, effects), expected)
    assert np.isnan(average_precision(score, np.zeros((1, 60), bool))[0])


def test_a_perfect_score_gets_one_and_noise_the_base_rate():
    rng = np.random.default_rng(2)
    effect = rng.laplace(size=300) * 0.1
    made = benchmark(effect, 0.25, noise=0.05, dead=20)
    sizes = np.abs(made.truths["persistence"].effect)
    perfect = evaluate_scorer(lambda evidence: np.append(np.zeros(20), sizes), [made]).set_index("metric")
    assert perfect.loc["average precision", "estimate"] == 1
    base = perfect.loc["average precision", "chance"]
    assert 0 < base < 0.2
    draws = [
        evaluate_scorer(lambda evidence: rng.random(320), [made]).set_index("metric").loc["average precision"]
        for _ in range(40)
    ]
    estimates = np.array([row["estimate"] for row in draws])
    error = estimates.std(ddof=1) / np.sqrt(len(estimates))
    # with few positives the average precision of noise lies slightly above the base rate
    exact = expected_precision_of_noise(300, round(base * 300))
    assert abs(estimates.mean() - exact) < 4 * error
    assert exact == pytest.approx(base, abs=0.025)


def expected_precision_of_noise(n: int, positives: int) -> float:
    """Mean average precision of a random order: (1/n) Σ_k [1/k + (k − 1)/k · (P − 1)/(n − 1)]."""
    k = np.arange(1, n + 1)
    return float(np.mean(1 / k + (k - 1) / k * (positives - 1) / (n - 1)))


def test_the_effect_itself_is_no_perfect_score_where_thresholds_differ():
    made = benchmark(FIVE, 0.3)
    # with its own threshold the weakest effect passes, and the strongest does not
    made.truths["persistence"] = replace(
        made.truths["persistence"], threshold=np.array([0.6, 0.3, 0.3, 0.3, 0.01])
    )
    table = effect_itself([made]).set_index("metric")
    # by size: 0, 1, 2, 4, 3; the true ones are 1 and 4
    assert table.loc["average precision", "estimate"] == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert table.loc["rank correlation", "estimate"] == 1


def test_intervals_widen_with_noise_and_cover_the_estimate():
    effect = np.linspace(-0.4, 0.4, 50)
    quiet, loud = (
        evaluate_scorer(lambda evidence: effect, [benchmark(effect, 0.2, noise)], signed=True).iloc[0]
        for noise in (0.05, 1.0)
    )
    assert quiet["high"] - quiet["low"] < loud["high"] - loud["low"]
    assert loud["low"] <= loud["estimate"] <= loud["high"]


def test_no_positives_is_missing_not_zero():
    table = evaluate_scorer(lambda evidence: SCORE, [benchmark(FIVE, 9.0)]).set_index("metric")
    assert np.isnan(table.loc["average precision", "estimate"])
    assert np.isfinite(table.loc["rank correlation", "estimate"])


def test_what_is_refused():
    made = benchmark(FIVE, 0.3, dead=2)
    with pytest.raises(UserError, match=r"gives \(5,\) numbers for the 7 features of coupled-0"):
        evaluate_scorer(lambda evidence: SCORE, [made])
    with pytest.raises(UserError, match="not a finite number at 1 of 5 live features"):
        evaluate_scorer(lambda evidence: np.array([np.nan, 0, 1, np.nan, 2, 3, 4]), [made])
    # a dead feature may have no score
    assert len(evaluate_scorer(lambda evidence: np.array([np.nan, 0, 1, 2, 3, 4, 5]), [made])) == 4
    with pytest.raises(UserError, match="no decisions of the kind 'mood': choose one of persistence"):
        evaluate_scorer(lambda evidence: np.arange(7), [made], kind="mood")
    with pytest.raises(UserError, match="no benchmark"):
        evaluate_scorer(lambda evidence: SCORE, [])
    with pytest.raises(UserError, match="no column 'score:released'"):
        evaluate_scorer(column("score:released"), [made])


def test_fast_enough():
    rng = np.random.default_rng(3)
    effect = rng.laplace(size=512) * 0.1
    made = benchmark(effect, 0.25, noise=0.2, traces=400)
    started = time.process_time()
    evaluate_scorer(lambda evidence: effect, [made])
    assert time.process_time() - started < 0.3


def test_registry_and_mean_difference():
    evidence = pd.DataFrame(
        {
            "at persistence:positive": [1.0, 2.0],
            "at persistence:negative": [0.0, 3.0],
            "decoder norm": [2.0, 0.5],
        }
    )
    assert np.asarray(mean_difference("persistence")(evidence)).tolist() == [2.0, -0.5]
    rows = builtin("persistence")
    assert len({row.name for row in rows}) == len(rows)
    assert {row.name for row in rows if row.signed} == {"mean difference", "gradient attribution"}
    made = benchmark(FIVE, 0.3)
    table = evaluate_all([Scorer("ours", lambda evidence: SCORE, False, False, "here")], [made])
    assert set(table["scorer"]) == {"ours", CEILING}
    assert not table.loc[table["scorer"] == "ours", "labels"].any()
    most = table[(table["scorer"] == CEILING) & (table["metric"] == "average precision")]
    assert most["estimate"].item() == pytest.approx(1)  # one threshold for all: the largest effects pass


def test_band_of_vocabularies():
    made = benchmark(FIVE, 0.3)
    made.evidence["score:reason score"] = FIVE
    for i in range(9):
        made.evidence[f"score:slot {i}"] = np.roll(FIVE, i % 4 + 1)
    table = null_band([made], null="slot").set_index("metric")
    # R's score is the effect itself: no other vocabulary has so large a Σ score · effect
    assert table.loc["contrast", "ours"] == pytest.approx(float(FIVE @ FIVE))
    assert table.loc["contrast", "p_value"] == pytest.approx(0.1) and table.loc["contrast", "z"] > 0
    assert table.loc["contrast", "vocabularies"] == 9
    assert (table["low"] <= table["mean"]).all() and (table["mean"] <= table["high"]).all()
    assert null_band([made], null="random").empty
